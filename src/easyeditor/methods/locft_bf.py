"""LocFT-BF: fine-tuning of one localised matrix, breadth-first (arXiv 2509.22072).

Every epoch goes through *all* edits in a new order, in mini-batches, instead of learning one edit
to the end before the next; targets end with the end-of-sequence token, so that free generation
stops where the answer does; the loss is the mean over edits of the mean over target tokens. An
edit under a loss of 0.01 is left out of a step.

In a sequence the earlier edits are trained again together with the new ones, from the *unedited*
matrix. They are those of the LocFT-BF patches that the model carries, so nothing is remembered but
the patches, and the new patch is the difference of the two trainings. The traps: an edit late in a
sequence of n costs what a batch of n costs, and a patch undone out of order leaves the differences
of others; undoing the last one is exact, and the next edit trains those that remain from the
unedited matrix. Whoever can wait collects edits and makes them in one call.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field

from easyeditor.edits import Edit, check_consistent
from easyeditor.errors import HyperParamsError
from easyeditor.gradients.minimize import Schedule, minimize
from easyeditor.gradients.parametrizations import FullMatrices
from easyeditor.hyperparams import HyperParams, Layers
from easyeditor.lm.forward.lower_block_cache import logits_above
from easyeditor.lm.model import LM
from easyeditor.lm.originals import unedited
from easyeditor.lm.projection import NamedWeight
from easyeditor.lm.weights import weight_handle
from easyeditor.methods.base import Method, Outcome, State
from easyeditor.methods.tuning import grouped, target_objective, target_rows
from easyeditor.patches.stack import applied_patches
from easyeditor.patches.weight import WeightPatch, weight_patch
from easyeditor.timing import Stopwatch

_BLOCK = [
    *(f"model.layers.{{}}.self_attn.{name}_proj" for name in "qkvo"),
    *(f"model.layers.{{}}.mlp.{name}_proj" for name in ("gate", "up", "down")),
]
"""The matrices of a whole layer."""


class LocFTBFHyperParams(HyperParams):
    """Settings of LocFT-BF; defaults as published for LLaMA-3, the layer relative to the depth."""

    ignored: ClassVar[frozenset[str]] = frozenset({"kl_factor", "max_length", "norm_constraint"})
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "llama-3-8b": {"layers": [22]},
        "mistral-7b": {"layers": [23], "modules": _BLOCK, "lr": 5e-5},
        "qwen2.5-7b": {"layers": [6]},
        "smollm2-135m": {"layers": [21], "lr": 1e-3, "batch_size": 10, "num_steps": 75},
    }

    alg_name: str = "LocFT-BF"
    layers: Layers = (0.69,)
    modules: tuple[str, ...] = ()
    """Weights to train in place of the down-projection, as ``print(model)`` names them; ``{}``
    stands for each of ``layers``."""
    num_steps: int = Field(25, ge=1)
    """Epochs at most."""
    batch_size: int = Field(100, ge=1)
    """Edits in one step; an editor's ``batch_edit`` hands over all edits at once."""
    lr: float = Field(5e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    append_eos: bool = True
    seed: int = 0


class LocFTBF(Method[State]):
    """Fine-tuning of one matrix on all edits, the earlier ones included, from where it was."""

    name = "LocFT-BF"
    title = "localised fine-tuning, breadth-first, arXiv 2509.22072"
    hyperparams_class = LocFTBFHyperParams
    searches_expansions = True

    hyperparams: LocFTBFHyperParams

    @property
    def batch_size(self) -> int:
        """All edits in one call."""
        return sys.maxsize

    def edit(self, lm: LM, edits: Sequence[Edit], state: State | None = None) -> Outcome[State]:
        """The dense patch that makes ``edits`` and those the model carries true at once.

        An edit of a prompt that was edited before replaces that edit.

        Raises:
            ContradictingEditsError: one prompt, two targets.
            DivergedError: a loss is not a number.
            HyperParamsError: the model carries LocFT-BF edits of other weights.
        """
        check_consistent(edits)
        settings = self.hyperparams.resolved(lm.n_layers)
        watch = Stopwatch()
        weights = lm.weights([int(layer) for layer in settings.layers], settings.modules)
        carried = [
            patch
            for patch in applied_patches(lm.model)
            if isinstance(patch, WeightPatch) and patch.info.method == self.name
        ]
        _refuse_other_weights(weights, carried)
        earlier = [edit for patch in carried for edit in patch.info.edits]
        trained = latest([*earlier, *edits])
        every = [row for edit in trained for row in edit.rows]
        rows = target_rows(lm, every, append_eos=settings.append_eos)
        schedule = Schedule(
            settings.num_steps,
            settings.batch_size,
            settings.lr,
            settings.weight_decay,
            torch.Generator().manual_seed(settings.seed),
        )
        with watch("train"), lm.at_rest():
            matrices = FullMatrices(
                weights,
                start=lambda weight: _start(lm, weight, carried),
                earlier=lambda weight: _change_of(carried, weight),
            )
            logits = logits_above(lm, [weight.path for weight in weights], rows)
            objective = grouped(target_objective(logits, rows), trained)
            minimize(lm, matrices, objective, len(trained), schedule, self.name)
        parts = matrices.parts()
        return Outcome(weight_patch(lm, self.name, edits, settings, parts, watch.seconds))


def latest(edits: Sequence[Edit]) -> list[Edit]:
    """The edits in their order; of several of one prompt only the last."""
    by_prompt = {edit.prompt.with_text(edit.prompt.text.strip()): edit for edit in edits}
    return list(by_prompt.values())


def _start(lm: LM, weight: NamedWeight, carried: Sequence[WeightPatch]) -> torch.Tensor:
    """The weight without the patches ``carried``; its unedited bits where no other changes it."""
    changing = [p for p in applied_patches(lm.model) if weight.path in getattr(p, "entries", ())]
    if len(changing) > len(carried):
        change = _change_of(carried, weight)
        return weight.stored if change is None else weight.stored.float() - change
    handle = weight_handle(lm.model, weight.path)
    return handle.read(unedited(lm.model, weight.path, handle)).to(weight.device)


def _change_of(carried: Sequence[WeightPatch], weight: NamedWeight) -> torch.Tensor | None:
    """The sum of the patches' changes of a weight, in the shape it is stored in; None: none."""
    if not carried:
        return None
    change = torch.stack([patch.dense(weight.path) for patch in carried]).sum(0)
    return (change.T if weight.transposed else change).to(weight.device)


def _refuse_other_weights(weights: Sequence[NamedWeight], carried: Sequence[WeightPatch]) -> None:
    wanted = {weight.path for weight in weights}
    for patch in carried:
        if set(patch.entries) != wanted:
            raise HyperParamsError(
                f"These settings train {', '.join(sorted(wanted))}, and the model carries LocFT-BF "
                f"edits of {', '.join(sorted(patch.entries))}, which are trained again with every "
                "new one. Use the same layers and modules, or undo those edits first."
            )
