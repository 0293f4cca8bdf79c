"""Settings and phases that the methods share that train weights on edits.

What is trained, on which loss and in which order are the parts of
:func:`~easyeditor.gradients.minimize.minimize`; here is what comes before it: the token rows, the
trained weights by name, and logits from stored states below the lowest of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal

import torch
from pydantic import Field

from easyeditor.edits import Edit, check_consistent
from easyeditor.errors import HyperParamsError
from easyeditor.gradients.factors import Logits
from easyeditor.gradients.kept import keeping
from easyeditor.gradients.losses import target_nll
from easyeditor.gradients.minimize import Objective, Schedule, minimize
from easyeditor.gradients.parametrizations import (
    BudgetedProducts,
    LowRankProducts,
    Parametrization,
)
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.forward.lower_block_cache import logits_above
from easyeditor.lm.model import LM
from easyeditor.lm.projection import NamedWeight
from easyeditor.lm.structure import weights_in_blocks
from easyeditor.lm.tokens import Row
from easyeditor.methods.base import Method, Outcome, State
from easyeditor.patches.weight import weight_patch
from easyeditor.timing import Stopwatch

PRESETS: Final[dict[str, dict[str, Any]]] = {
    "gpt2-xl": {"target_modules": ["c_attn"], "num_steps": 30},
    "gpt-j-6B": {"target_modules": ["fc_in", "fc_out"], "num_steps": 50},
    "llama-2-7b": {"target_modules": ["q_proj", "v_proj"]},
    "llama-3-8b": {"target_modules": ["q_proj", "v_proj"]},
    "smollm2-135m": {"layers": [21], "num_steps": 30, "lr": 2e-3},
}
"""What LoRA and AdaLoRA share, and the others in part; the last by trials on six other facts."""


class LowRankHyperParams(HyperParams):
    """Settings that the low-rank trainings share, with the published defaults.

    ``layers`` empty: all. ``target_modules`` are names of linear layers within a block, as in PEFT
    (``"q_proj"``), or whole names with ``{}`` for the layer; empty: the down-projections.
    """

    ignored: ClassVar[frozenset[str]] = frozenset({"kl_factor", "max_length", "norm_constraint"})

    layers: tuple[int | float, ...] = ()
    target_modules: tuple[str, ...] = ()
    rank: int = Field(8, ge=1)
    lora_alpha: float = Field(32, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """0 where classic files have 0.1: an edit is a few sentences, learnt whole."""
    lora_type: Literal["lora", "adalora"] = "lora"
    initial_rank: int = Field(12, ge=1)
    """Of ``lora_type="adalora"``, whose average rank at the end is ``rank``."""
    num_steps: int = Field(70, ge=1)
    batch_size: int = Field(1, ge=1)
    lr: float = Field(5e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    append_eos: bool = False
    keep_factor: float = Field(1.0, ge=0)
    """Weighs the divergence at the prompts that an edit keeps."""
    seed: int = 0


class LowRankMethod(Method[State]):
    """Trains low-rank changes of linear layers on edits; subclasses add settings or a loss.

    The trap: an editor hands over ``batch_size`` edits at a time, 1 by default, in sequence.
    """

    searches_expansions = True
    keeps = True

    hyperparams: LowRankHyperParams

    def edit(self, lm: LM, edits: Sequence[Edit], state: State | None = None) -> Outcome[State]:
        """The low-rank patch that training on ``edits`` leads to.

        Raises:
            ContradictingEditsError: one prompt, two targets.
            DivergedError: a loss is not a number.
            HyperParamsError: ``target_modules`` that are no linear layers of the model.
        """
        check_consistent(edits)
        settings = self.hyperparams.resolved(lm.n_layers)
        watch = Stopwatch()
        weights = linear_weights(lm, settings.layers, settings.target_modules)
        generator = torch.Generator().manual_seed(settings.seed)
        products = low_rank_products(weights, settings, generator)
        with watch("train"), lm.at_rest():
            every = [row for edit in edits for row in edit.rows]
            objective = grouped(self.objective(lm, every, weights), edits)
            paths = [weight.path for weight in weights]
            objective = keeping(lm, objective, edits, paths, settings.keep_factor)
            schedule = Schedule(
                settings.num_steps, settings.batch_size, settings.lr, settings.weight_decay
            )
            minimize(lm, products, objective, len(edits), schedule, self.name)
        parts = products.parts()
        return Outcome(weight_patch(lm, self.name, edits, settings, parts, watch.seconds))

    def objective(self, lm: LM, edits: Sequence[Edit], weights: Sequence[NamedWeight]) -> Objective:
        """The loss of each edit: the mean negative log-likelihood of its target's tokens."""
        rows = target_rows(lm, edits, append_eos=self.hyperparams.append_eos)
        logits = logits_above(lm, [weight.path for weight in weights], rows)
        return target_objective(logits, rows)


def linear_weights(
    lm: LM, layers: Sequence[int | float], names: Sequence[str]
) -> list[NamedWeight]:
    """The weights called ``names`` in the blocks at ``layers`` of every column, each once.

    No layers stand for all, and no names for the down-projections. A name with ``{}`` is a whole
    one; any other ends a module's name within a block.

    Raises:
        HyperParamsError: no such weight.
        UnsupportedModelError: a block without an MLP, or a weight that cannot be read.
    """
    columns = {id(side.blocks): side.blocks for side in (lm.encoder_side(), lm)}.values()
    chosen = [int(i) for i in layers] or list(range(max(map(len, columns))))
    whole = [name for name in names if "{}" in name]
    ends = [name for name in names if "{}" not in name]
    result = lm.weights(chosen, whole) if whole or not names else []
    if ends:
        paths = {id(module): path for path, module in lm.model.named_modules()}
        blocks = [column[i] for i in chosen for column in columns if i < len(column)]
        result += weights_in_blocks(lm.model, {paths[id(b)]: b for b in blocks}, ends)
    return list({weight.path: weight for weight in result}.values())


def low_rank_products(
    weights: Sequence[NamedWeight], settings: LowRankHyperParams, generator: torch.Generator
) -> Parametrization:
    """What ``lora_type`` names, of these weights."""
    rank, alpha, dropout = settings.rank, settings.lora_alpha, settings.lora_dropout
    if settings.lora_type == "lora":
        return LowRankProducts(weights, rank, alpha, dropout, generator)
    if settings.initial_rank < rank:
        raise HyperParamsError(
            f"initial_rank={settings.initial_rank}, rank={rank}: the budget falls from "
            "initial_rank to rank. Give an initial_rank of at least rank."
        )
    return BudgetedProducts(weights, settings.initial_rank, rank, alpha, dropout, generator)


def target_rows(lm: LM, edits: Sequence[Edit], *, append_eos: bool) -> list[Row]:
    """The edits as token rows, their targets followed by the end-of-sequence token or not.

    Raises:
        HyperParamsError: the tokenizer has no such token.
    """
    rows = [lm.text.row(edit.prompt, edit.target) for edit in edits]
    return [lm.text.with_end(row) for row in rows] if append_eos else rows


def grouped(objective: Objective, edits: Sequence[Edit]) -> Objective:
    """An objective of edits from one of their rows (:attr:`Edit.rows`): the mean over each edit's.

    A step then trains on an edit's prompt and all of its expansions, and there are as many steps
    as without any.

    Args:
        objective: the loss of each row, all edits' in order.
        edits: the edits.
    """
    if not any(edit.expansions for edit in edits):
        return objective
    numbers = row_numbers(edits)

    def losses(batch: Sequence[int]) -> torch.Tensor:
        values = objective([row for i in batch for row in numbers[i]])
        sizes = [len(numbers[i]) for i in batch]
        return torch.stack([part.mean() for part in torch.split(values, sizes)])

    return losses


def row_numbers(edits: Sequence[Edit]) -> list[list[int]]:
    """For each edit the numbers of its rows among those of all, in order."""
    count = itertools.count()
    return [[next(count) for _ in edit.rows] for edit in edits]


def target_objective(logits: Logits, rows: Sequence[Row]) -> Objective:
    """The mean negative log-likelihood of each row's target."""

    def losses(batch: Sequence[int]) -> torch.Tensor:
        chosen = [rows[i] for i in batch]
        return target_nll(logits(chosen), chosen)

    return losses
