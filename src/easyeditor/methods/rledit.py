"""RLEdit: MALMEN's networks trained over a whole sequence of edits (Li et al., arXiv 2502.05759).

A batch of edits stays in the model when the next one comes, in training as in use. After every
batch the loss looks back over the last ``backtrack`` batches, ``i`` of them ago::

    L_t = Σ_i γ^i (cedit · NLL of the paraphrases + cloc · KL of unrelated answers)

under all changes so far; the KL is to the model before the newest change. Earlier changes count as
constants, so the gradient of ``L_t`` goes through the newest one only, as published. The running
statistics that normalise gradient factors go on through the edits, as a state. The published
penalty on the size of a change is left out: in the published code it has no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field

from easyeditor.edits import Case, Edit, check_consistent
from easyeditor.gradients.factors import answer_factors, differentiable
from easyeditor.gradients.running_statistics import RunningStatistics
from easyeditor.lm.model import LM
from easyeditor.methods.archive import Archive
from easyeditor.methods.base import Outcome
from easyeditor.methods.gradient_learner import Changes
from easyeditor.methods.gradient_method import GradientMethod
from easyeditor.methods.malmen.learner import MALMENLearner, carrying, joined
from easyeditor.methods.malmen.malmen import MALMEN
from easyeditor.methods.malmen.settings import MALMENHyperParams, MALMENTrainingHparams, named
from easyeditor.methods.statistics_state import StatisticsState
from easyeditor.patches.weight import Part, smallest_part, weight_patch
from easyeditor.timing import Stopwatch

_PLACES: dict[str, list[str]] = {
    "llama-3-8b": [
        *named("model.layers.{}.mlp.gate_proj", range(22, 31)),
        *named("model.layers.{}.mlp.up_proj", range(22, 31)),
    ],
    "mistral-7b": named("model.layers.{}.mlp.down_proj", range(17, 19)),
}


class RLEditHyperParams(MALMENHyperParams):
    """Settings for editing with a trained archive; ``batch_size`` edits are solved for at once."""

    ignored: ClassVar[frozenset[str]] = MALMENHyperParams.ignored | {"backtrack", "discount"}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        **{name: {"archive": f"results/RLEdit/{name}", "batch_size": 20} for name in _PLACES},
        "smollm2-135m": {"archive": "results/RLEdit/smollm2-135m", "batch_size": 4},
    }

    alg_name: str = "RLEdit"


class RLEditTrainingHparams(MALMENTrainingHparams):
    """Settings for training; the presets of large models are the published ones.

    ``batch_size`` cases are one sequence, ``n_edits`` of them are edited at once. ``backtrack`` is
    how many batches a loss looks back, ``discount`` what a batch weighs against the one after it.
    The trap: the published training makes a single step, after its only sequence; the archive's
    log says what the networks do untrained (``untrained_…``).
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        **{
            name: {
                "inner_params": paths,
                "lr": 1e-5,
                "edit_lr": 1e-6,
                "n_edits": 20,
                "batch_size": 8000,
                "max_iters": 1,
                "log_interval": 1,
                "val_interval": 1,
            }
            for name, paths in _PLACES.items()
        },
        "smollm2-135m": {
            "lr": 1e-4,
            "edit_lr": 1e-5,
            "lr_schedule": "cosine",
            "n_edits": 4,
            "batch_size": 16,
            "backtrack": 3,
            "max_iters": 20,
            "log_interval": 2,
            "val_interval": 10,
        },
    }

    alg_name: str = "RLEdit"
    batch_size: int = Field(100, ge=1)
    n_edits: int = Field(20, ge=1)
    backtrack: int = Field(10, ge=1)
    discount: float = Field(0.95, gt=0, le=1)
    cloc: float = Field(0.6, ge=0)
    n_blocks: int = Field(4, ge=0)
    rank: int = Field(1024, ge=1)

    @classmethod
    def counted(cls, data: dict[str, Any]) -> dict[str, Any]:
        """``n_edits`` is a setting of its own here."""
        return data


class RLEditLearner(MALMENLearner):
    """Trains MALMEN's networks on sequences of batches that stay in the model."""

    name = "RLEdit"
    config: RLEditTrainingHparams

    def loss(self, cases: Sequence[Case]) -> dict[str, torch.Tensor]:
        """The mean over the batches of the losses that look back; see the module."""
        config, steps = self.config, self._steps(cases)
        applied: Changes = {}
        parts: dict[str, torch.Tensor] = {}
        with torch.enable_grad():
            for t, batch in enumerate(steps):
                changes = self._step(batch, applied, learning=self.module.training)
                recent = steps[max(0, t + 1 - config.backtrack) : t + 1][::-1]
                weights = [config.discount**i for i in range(len(recent))]
                for weight, earlier in zip(weights, recent, strict=True):
                    share = weight / sum(weights) / len(steps)
                    values, gradients = self.outer(earlier, changes, applied)
                    values["loss"] = carrying(values["loss"], changes, gradients)
                    for name, value in values.items():
                        parts[name] = parts.get(name, 0) + share * value
                applied = joined(applied, _constant(changes))
        return parts

    @property
    def edits_at_once(self) -> int:
        """A sequence: its cases are scored under all their changes, at its end."""
        return self.config.batch_size

    def _judge(self, cases: Sequence[Case]) -> dict[str, torch.Tensor]:
        applied: Changes = {}
        seen = {site.path: self.network.statistics(site.path) for site in self.sites}
        for batch in self._steps(cases):
            applied = joined(applied, self._step(batch, applied, seen=seen))
        return self._scores(cases, applied)

    def _steps(self, cases: Sequence[Case]) -> list[Sequence[Case]]:
        n = self.config.n_edits
        return [cases[i : i + n] for i in range(0, len(cases), n)]

    def _step(
        self,
        cases: Sequence[Case],
        applied: Changes,
        *,
        learning: bool = False,
        seen: dict[str, RunningStatistics] | None = None,
    ) -> Changes:
        """The change for one batch on the model that carries ``applied``; updates ``seen``."""
        rows, changes = self.rows(cases)[0], {}
        with differentiable(self.lm, applied):
            factors = answer_factors(self.lm, self.sites, rows, self._logits)
        for path, pair in factors.items():
            h, g = (t.to(self.network.device) for t in pair)
            if learning:
                self.network.update(path, h, g)
            if seen is not None:
                seen[path] = seen[path].updated(torch.cat([h, g], 1))
            changes[path] = self.network(path, h, g, None if seen is None else seen[path])
        return changes


def _constant(changes: Changes) -> Changes:
    return {path: (u.detach(), v.detach()) for path, (u, v) in changes.items()}


class RLEdit(GradientMethod[StatisticsState, RLEditLearner]):
    """Batch after batch of edits that stay in the model. Needs a trained archive, no subject."""

    name = "RLEdit"
    title = "value differences learnt over a sequence of edits, arXiv 2502.05759"
    hyperparams_class = RLEditHyperParams
    training_class = RLEditTrainingHparams
    state_class = StatisticsState
    learner_class = RLEditLearner

    hyperparams: RLEditHyperParams

    @classmethod
    def check_archive(cls, archive: Archive, config: RLEditTrainingHparams) -> None:
        """Refuse sizes that the tensors do not bear out."""
        MALMEN.check_archive(archive, config)

    def initial_state(self, lm: LM) -> StatisticsState:
        """The statistics at the end of the training.

        Raises:
            HyperParamsError: no archive is given, or it was trained for other weights than
                ``inner_params`` or ``layers`` name.
            ArchiveError: it cannot be read, or is of another method or model.
        """
        network = self.learnt(lm).network
        return StatisticsState.of({path: network.statistics(path) for path in network.paths})

    def edit(
        self, lm: LM, edits: Sequence[Edit], state: StatisticsState | None = None
    ) -> Outcome[StatisticsState]:
        """The patch for all ``edits`` on the model as it is, and the next statistics.

        Raises:
            ContradictingEditsError: one prompt, two targets.
            HyperParamsError: no archive is given.
            ArchiveError: it does not belong to this model.
            DivergedError: a number of the change is not finite.
        """
        check_consistent(edits)
        watch = Stopwatch()
        with watch("archive"):
            learnt = self.learnt(lm)
            state = state or self.initial_state(lm)
        rows = [lm.text.row(edit.prompt, edit.target) for edit in edits]
        with watch("gradient"):
            factors = answer_factors(lm, learnt.sites, rows)
        entries: dict[str, list[Part]] = {}
        statistics: dict[str, RunningStatistics] = {}
        network = learnt.network
        with watch("solve"), torch.no_grad():
            for path, pair in factors.items():
                h, g = (t.to(network.device) for t in pair)
                seen = statistics[path] = state.statistics(path).updated(torch.cat([h, g], 1))
                u, v = network(path, h, g, seen)
                entries[path] = [smallest_part(u.T.cpu(), self.hyperparams.lr_scale * v.cpu())]
        patch = weight_patch(lm, self.name, edits, self.places(learnt), entries, watch.seconds)
        return Outcome(patch, StatisticsState.of(statistics))
