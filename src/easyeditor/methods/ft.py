"""FT: fine-tuning a few down-projections under a box, the baseline every editor is held against.

Adam on the listed weights; after each step every number is put back to within ``norm_constraint``
of where it was (an L∞ box). Two objectives: ``prompt_last`` (FT-L, the ROME paper's baseline, arXiv
2202.05262, appendix E.1: all target tokens read at the last prompt position) and ``target_new``
(FT-M: cross-entropy over the target tokens). The trap: without a box FT learns the fact and forgets
the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from easyeditor.edits import Edit, check_consistent
from easyeditor.gradients.kept import keeping
from easyeditor.gradients.minimize import Schedule, minimize
from easyeditor.gradients.parametrizations import FullMatrices
from easyeditor.hyperparams import HyperParams, Layers, NumberOrOff
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Row
from easyeditor.methods.base import Method, Outcome, State
from easyeditor.methods.tuning import row_numbers, target_rows
from easyeditor.patches.weight import weight_patch
from easyeditor.timing import Stopwatch


class FTHyperParams(HyperParams):
    """Settings of FT-L and FT-M; defaults as published, the layer relative to the depth."""

    ignored: ClassVar[frozenset[str]] = frozenset({"kl_factor", "max_length"})
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt2-xl": {"layers": [0], "norm_constraint": 5e-4},
        "gpt-j-6B": {"layers": [21], "norm_constraint": 5e-5},
        "gpt-neo-2.7B": {"layers": [21], "norm_constraint": 5e-5},
        "llama-7b": {"layers": [21]},
        "llama-2-7b": {"layers": [21]},
        "t5-3b": {"layers": [0, 21], "num_steps": 50, "objective_optimization": "target_new"},
        "smollm2-135m": {"layers": [20], "objective_optimization": "target_new"},
    }

    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "FT-L": {"objective_optimization": "prompt_last"},
        "FT-M": {"objective_optimization": "target_new"},
    }

    alg_name: str = "FT"
    layers: Layers = (0.66,)
    site: Literal["text", "projector", "vision"] = "text"
    """Where a model that sees is trained: in its blocks of text at ``layers``, in what hands
    image features to them, or in its blocks of vision at ``layers`` (relative to their number)."""
    modules: tuple[str, ...] = ()
    """Weights to train in place of the down-projections, as ``print(model)`` names them; ``{}``
    stands for each of ``layers``."""
    num_steps: int = Field(25, ge=1)
    batch_size: int = Field(1, ge=1)
    lr: float = Field(5e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    norm_constraint: NumberOrOff = Field(None, gt=0)
    objective_optimization: Literal["prompt_last", "target_new"] = "prompt_last"
    append_eos: bool = False
    keep_factor: float = Field(1.0, ge=0)
    """Weighs the divergence at the prompts that an edit keeps."""


class FT(Method[State]):
    """Constrained fine-tuning; ``edit`` learns all it is given together.

    The trap: an editor hands over ``batch_size`` edits at a time, 1 by default, in sequence.
    """

    name = "FT"
    title = "constrained fine-tuning (FT-L, FT-M)"
    hyperparams_class = FTHyperParams
    searches_expansions = True
    keeps = True

    hyperparams: FTHyperParams

    def edit(self, lm: LM, edits: Sequence[Edit], state: State | None = None) -> Outcome[State]:
        """The dense patch that training on ``edits`` leads to; the model's weights are only read.

        Raises:
            ContradictingEditsError: one prompt, two targets.
            DivergedError: a loss is not a number.
        """
        check_consistent(edits)
        settings = self.hyperparams.resolved(lm.depth_of(self.hyperparams.site))
        if lm.encoder_decoder:  # the decoder's first position is not where a prompt ends
            settings = settings.replace(objective_optimization="target_new")
        watch = Stopwatch()
        layers = [int(layer) for layer in settings.layers]
        projections = lm.weights(layers, settings.modules, site=settings.site)
        every = [row for edit in edits for row in edit.rows]
        rows = target_rows(lm, every, append_eos=settings.append_eos)
        numbers = row_numbers(edits)
        schedule = Schedule(
            settings.num_steps, settings.batch_size, settings.lr, settings.weight_decay
        )

        def target_loss(batch: Sequence[int]) -> torch.Tensor:
            return _loss(lm, [rows[n] for i in batch for n in numbers[i]], settings)[None]

        with watch("train"), lm.at_rest():
            matrices = FullMatrices(projections, settings.norm_constraint)
            paths = [projection.path for projection in projections]
            objective = keeping(lm, target_loss, edits, paths, settings.keep_factor)
            minimize(lm, matrices, objective, len(edits), schedule, self.name)
        entries = matrices.parts()
        return Outcome(weight_patch(lm, self.name, edits, settings, entries, watch.seconds))


def _loss(lm: LM, rows: Sequence[Row], settings: FTHyperParams) -> torch.Tensor:
    """Mean over rows of the mean negative log-likelihood over the target's tokens."""
    targets = torch.tensor([token for row in rows for token in row.target])
    weight = torch.tensor([1 / (len(rows) * len(row.target)) for row in rows for _ in row.target])
    if settings.objective_optimization == "target_new":
        logits = lm.target_logits(rows)
    else:  # every target token is read where the prompt ends
        first = [Row(row.ids[: row.prompt_length + 1], row.target[:1]) for row in rows]
        repeat = torch.tensor([i for i, row in enumerate(rows) for _ in row.target])
        logits = lm.target_logits(first)
        logits = logits[repeat.to(logits.device)]
    nll = torch.nn.functional.cross_entropy(
        logits.float(), targets.to(logits.device), reduction="none"
    )
    return (nll * weight.to(nll.device)).sum()
