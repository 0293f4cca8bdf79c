"""What learners share that turn the gradients of chosen weights into a change of these weights.

A learner of this kind has networks for some linear maps of the model (``sites``). For the cases of
a batch it computes the change its networks make of the edits' gradients, runs the model under that
change and compares: the target's NLL on the *paraphrase* has to fall, the answer to an unrelated
question has to stay (arXiv 2110.11309, section 3.2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from easyeditor.edits import Case
from easyeditor.errors import ArchiveError
from easyeditor.gradients.factors import Factors, Logits
from easyeditor.gradients.losses import kl_per_token, mean_per_row, target_nll
from easyeditor.hyperparams import HyperParams, Layers
from easyeditor.lm.forward.lower_block_cache import LowerBlockCache, first_block
from easyeditor.lm.model import LM
from easyeditor.lm.projection import Projection
from easyeditor.lm.tokens import Row
from easyeditor.methods.archive import Archive, fill, read_archive, write_archive
from easyeditor.methods.learning import TrainingHyperParams, probe_of

Changes = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Per weight the factors of its change, ``uᵀ v`` in ``(d_in, d_out)``."""


class GradientHyperParams(HyperParams):
    """Settings for editing with a trained archive.

    ``archive`` is the file a training wrote, or its folder. Which weights are edited is the
    archive's to say; ``layers`` or ``inner_params`` (names of parameters, as classic files list
    them) are held against it where they are given. ``lr_scale`` makes every edit stronger or
    weaker.
    """

    archive: str | None = None
    layers: Layers = (-3, -2, -1)
    inner_params: tuple[str, ...] = ()
    batch_size: int = Field(1, ge=1)
    lr_scale: float = Field(1.0, gt=0)


class GradientTrainingHparams(TrainingHyperParams):
    """What all trainings of such networks share.

    ``layers`` or ``inner_params`` say which weights are edited. Where the data's hidden states
    below the edited blocks fit into ``cache_mb``, they are computed once.
    """

    layers: Layers = (-3, -2, -1)
    inner_params: tuple[str, ...] = ()
    cache_mb: int = Field(1024, ge=0)


class GradientLearner(ABC):
    """Trains ``network`` beside ``lm``; see :class:`easyeditor.methods.learning.Learner`.

    Subclasses say how a network is built (:meth:`build`), how factors become a change
    (:meth:`changes`) and how rows see it (:meth:`applied`).

    Attributes:
        name: of the method, as it stands in an archive.
        sites: the weights that are edited.
    """

    name: ClassVar[str]
    module: nn.Module

    def __init__(self, lm: LM, config: GradientTrainingHparams) -> None:
        self.lm, self.config = lm, config
        self.sites = self.sites_of(lm, config.layers, config.inner_params)
        self.module = self.build().to(lm.device)
        self._row = lru_cache(maxsize=50_000)(lm.text.row)
        where = config.edit_loss_on
        self._asked = ("prompt", "rephrase") if where == "both" else (where,)
        self._logits: Logits = lm.target_logits

    @classmethod
    @abstractmethod
    def blocks_of(cls, lm: LM, layers: Layers) -> tuple[int, ...]:
        """``layers`` as absolute numbers, as they are meant for this model."""

    @classmethod
    @abstractmethod
    def sites_of(cls, lm: LM, layers: Layers, inner_params: tuple[str, ...]) -> list[Projection]:
        """The weights to edit.

        Raises:
            HyperParamsError: names or layers that this model has not.
        """

    @abstractmethod
    def build(self) -> nn.Module:
        """The untrained networks for ``self.sites``."""

    @abstractmethod
    def changes(self, cases: Sequence[Case], *, learning: bool) -> Changes:
        """What the networks make of the edits of ``cases``, with its graph."""

    @abstractmethod
    def applied(self, changes: Changes, groups: int) -> AbstractContextManager[None]:
        """A pass whose rows, ``groups`` rows of each case in turn, see the change."""

    @property
    def edits_at_once(self) -> int:
        """How many cases of a validation are edited at once."""
        return self.config.val_batch_size

    def prepare(self, cases: Sequence[Case]) -> None:
        """Compute what never changes once, where these cases' share of it fits into memory."""
        rows = [row for of_kind in self.rows(cases) for row in of_kind]
        start = first_block(self.lm, [site.path for site in self.sites])
        if start and LowerBlockCache.bytes_for(self.lm, rows) <= self.config.cache_mb * 2**20:
            trunk = LowerBlockCache(self.lm, start)
            if trunk.agrees(rows[: self.config.batch_size]):
                self._logits = trunk.target_logits

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """See :class:`easyeditor.methods.learning.Learner`."""

    def loss(self, cases: Sequence[Case]) -> dict[str, torch.Tensor]:
        """``cedit`` × edit NLL + ``cloc`` × KL, means over the cases; both parts are logged."""
        edits, rephrasings, unrelated = self.rows(cases)
        by_kind = {"prompt": edits, "rephrase": rephrasings}
        outer = [row for where in self._asked for row in by_kind[where]]
        with self.lm.at_rest():
            changes = self.changes(cases, learning=self.module.training)
            with torch.no_grad():
                before = self._logits(unrelated).float().log_softmax(-1)
            with self.applied(changes, 1 + len(outer) // len(edits)):
                logits = self._logits(outer + unrelated).float()
        cut = len(logits) - len(before)
        edit = target_nll(logits[:cut], outer).mean()
        drift = mean_per_row(kl_per_token(before, logits[cut:].log_softmax(-1)), unrelated).mean()
        return {**self._total(edit, drift), "edit_nll": edit.detach(), "loc_kl": drift.detach()}

    def _total(self, edit: torch.Tensor, drift: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.config.cedit * edit + self.config.cloc * drift}

    @torch.no_grad()
    def validate(self, cases: Sequence[Case]) -> dict[str, float]:
        """Losses and accuracies, as edits are made: alone (all of a chunk in one pass) or at once.

        Nothing is learnt, not even statistics.
        """
        metrics: dict[str, list[float]] = {}
        training = self.module.training
        self.module.eval()
        try:
            for start in range(0, len(cases), self.edits_at_once):
                chunk = cases[start : start + self.edits_at_once]
                for name, values in self._judge(chunk).items():
                    metrics.setdefault(name, []).extend(values.tolist())
        finally:
            self.module.train(training)
        return {name: sum(values) / len(values) for name, values in metrics.items()}

    def _judge(self, cases: Sequence[Case]) -> dict[str, torch.Tensor]:
        with self.lm.at_rest():
            changes = self.changes(cases, learning=False)
        return self._scores(cases, changes)

    def _scores(self, cases: Sequence[Case], changes: Changes) -> dict[str, torch.Tensor]:
        """Losses and accuracies of each case, under ``changes``."""
        edits, rephrasings, unrelated = self.rows(cases)
        with self.lm.at_rest():
            before = self._logits(unrelated).float().log_softmax(-1)
            with self.applied(changes, 3 if rephrasings else 2):
                logits = self._logits([*edits, *rephrasings, *unrelated]).float()
        sizes = [sum(len(row.target) for row in rows) for rows in (edits, rephrasings, unrelated)]
        on_edit, on_again, on_near = torch.split(logits, sizes)
        by_kind = {"prompt": (on_edit, edits), "rephrase": (on_again, rephrasings)}
        edit = torch.stack([target_nll(*by_kind[where]) for where in self._asked]).mean(0)
        drift = mean_per_row(kl_per_token(before, on_near.log_softmax(-1)), unrelated)
        metrics = {
            "edit_loss": self._total(edit, drift)["loss"],
            "edit_nll": edit,
            "loc_kl": drift,
            "rewrite": _hits(on_edit, edits),
            "locality": mean_per_row((on_near.argmax(-1) == before.argmax(-1)).float(), unrelated),
        }
        if rephrasings:
            metrics["rephrase"] = _hits(on_again, rephrasings)
        return metrics

    def untrained(self) -> GradientLearner | None:
        """See :class:`easyeditor.methods.learning.Learner`; by default there is none."""
        return None

    def rows(self, cases: Sequence[Case]) -> tuple[list[Row], list[Row], list[Row]]:
        """Rows of the edits, their paraphrases (none where a case has none), the unrelated."""
        edits = [self._row(case.edit.prompt, case.edit.target) for case in cases]
        unrelated = [probe_of(case, "locality") for case in cases]
        rephrasings = []
        if all(any(p.group == "rephrase" for p in case.probes) for case in cases):
            rephrasings = [
                self._row(probe_of(case, "rephrase").prompt, case.edit.target) for case in cases
            ]
        return edits, rephrasings, [self._row(near.prompt, near.answers[0]) for near in unrelated]

    def save(self, folder: Path) -> Path:
        """Write ``folder/archive.safetensors``."""
        layers: Layers = self.config.layers
        if not self.config.inner_params:
            layers = self.blocks_of(self.lm, layers)
        paths = tuple(site.path for site in self.sites)
        settings = self.config.replace(layers=layers, inner_params=paths)
        return write_archive(folder, self.lm, self.name, settings, self.module.state_dict())

    def load(self, archive: Path) -> None:
        """Take over what an archive holds."""
        self.fill(read_archive(archive, self.name))

    def fill(self, archive: Archive) -> None:
        """Take over an archive that was read; all of it or nothing."""
        archive.check(self.lm, self.name)
        fill(self.module, archive)
        self.module.eval()


def _hits(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    targets = torch.tensor([token for row in rows for token in row.target], device=logits.device)
    return mean_per_row((logits.argmax(-1) == targets).float(), rows)


def by_row(factors: Factors, values: torch.Tensor, rows: int) -> torch.Tensor:
    """``values`` ``(n, width)`` of all positions as ``(rows, positions, width)``, zero-padded."""
    where = (factors.row.to(values.device), factors.place.to(values.device))
    length = int(factors.place.max()) + 1
    return values.new_zeros(rows, length, values.shape[1]).index_put(where, values)


def check_rank(archive: Archive, suffix: str, dimension: int, rank: int) -> None:
    """Refuse a rank that is not the one of the archive's factors, before it is allocated.

    Args:
        archive: as it was read.
        suffix: of the names of the factors.
        dimension: of a factor, 0 or 1, that is as long as the rank.
        rank: as the header says it.

    Raises:
        ArchiveError: the header and the tensors say different things.
    """
    for name, tensor in archive.tensors.items():
        if not name.endswith(suffix):
            continue
        if tensor.dim() != 2 or tensor.shape[dimension] != min(rank, tensor.shape[1 - dimension]):
            raise ArchiveError(
                f"The archive {archive.file} says rank={rank}, and {name} has shape "
                f"{tuple(tensor.shape)}. Copy it again, or train again."
            )
