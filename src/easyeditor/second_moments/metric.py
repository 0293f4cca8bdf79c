"""How a key metric is computed from a layer's second moment: the one thing a new metric adds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from easyeditor.associative.solve import Cholesky, KeyMetric
from easyeditor.second_moments import Moments
from easyeditor.second_moments.cholesky import factor_of, factor_once


class MetricOfMoment(ABC):
    """Turns a second moment ``C`` into the metric ``M`` of the closed form.

    Settings name one by :meth:`~easyeditor.methods.locate.LocateHyperParams.metric`. What takes
    long may be kept in a file beside the moment's.
    """

    @abstractmethod
    def compute(self, moment: Moments, device: torch.device) -> KeyMetric:
        """The metric, on ``device``. The trap: ``moment.matrix`` may be used up by it."""

    def prepare(self, moment: Moments, device: torch.device) -> None:
        """Make sure that whatever :meth:`compute` reads from files is there, and hold nothing.

        What can go wrong with a moment goes wrong here, before a long search.
        """
        self.compute(moment, device)


class InverseOfMoment(MetricOfMoment):
    """``M = C⁻¹`` by its Cholesky factor: ROME, MEMIT, EMMET."""

    def compute(self, moment: Moments, device: torch.device) -> KeyMetric:
        """The factor from its file, or factored now."""
        return factor_of(moment, device)

    def prepare(self, moment: Moments, device: torch.device) -> None:
        """See :func:`~easyeditor.second_moments.cholesky.factor_once`."""
        factor_once(moment, device)


@dataclass(frozen=True, slots=True)
class InverseOfSum(MetricOfMoment):
    """``M = (λC + μI)⁻¹`` by its Cholesky factor, which is computed anew and in no file.

    Attributes:
        weight: λ.
        ridge: μ in the units of the keys; None for a share of the mean diagonal of ``λC``.
        share: that share.
    """

    weight: float
    ridge: float | None
    share: float

    def compute(self, moment: Moments, device: torch.device) -> Cholesky:
        """The factor of the sum."""
        total = moment.matrix.to(device, copy=True) * self.weight
        mean = float(total.diagonal().mean())
        total.diagonal().add_(self.share * mean if self.ridge is None else self.ridge)
        return Cholesky.of(total, overwrite=True)

    def prepare(self, moment: Moments, device: torch.device) -> None:
        """Nothing is read from files."""
