"""Running mean and deviation of vectors: the update, the deviation's floor, and both as a value.

:func:`merged` and :func:`deviation_of` are all the arithmetic there is; the statistics of a
sequence of edits (:class:`RunningStatistics`, a value in float64) and those that a training keeps
in buffers (:mod:`easyeditor.gradients.normalizer`) use them alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from easyeditor.lm.weights import float64_device

MIN_DEVIATION_SHARE = 1e-2
"""A dimension's deviation is never taken for less than this share of the mean deviation."""

Count = TypeVar("Count", int, torch.Tensor)


def merged(
    count: Count,
    mean: torch.Tensor,
    squares: torch.Tensor,
    new_count: int,
    new_mean: torch.Tensor,
    new_squares: torch.Tensor,
) -> tuple[Count, torch.Tensor, torch.Tensor]:
    """Count, mean and summed squared deviations of two sets of vectors together (Chan's update)."""
    total = count + new_count
    drift = new_mean - mean
    return (
        total,
        mean + drift * (new_count / total),
        squares + (new_squares + drift**2 * (count * new_count / total)),
    )


def deviation_of(squares: torch.Tensor, divisor: int | torch.Tensor) -> torch.Tensor:
    """The deviation of each dimension ``(width,)``, at least a share of their mean.

    The trap: the floor is of dimensions of one kind. Gradients are hundreds of times smaller than
    activations, so in one vector with these they would all lie under it.
    """
    deviation = (squares / divisor).sqrt()
    floor = (MIN_DEVIATION_SHARE * deviation.mean()).clamp(min=torch.finfo(torch.float32).tiny)
    return deviation.clamp(min=floor)


@dataclass(frozen=True, slots=True)
class RunningStatistics:
    """Mean and summed squared deviations ``(width,)`` of ``count`` vectors, float64 on the CPU.

    A state of a sequence of edits holds them, so an update returns new statistics and changes none.
    The deviation is the population's (division by ``count``) with a floor, so one vector gives
    finite numbers; the sample's formula divides by zero there. The trap: the result depends on the
    order of updates in its last bits, as every running sum does.
    """

    count: torch.Tensor
    mean: torch.Tensor
    squares: torch.Tensor

    @classmethod
    def start(cls, width: int) -> RunningStatistics:
        """Statistics of one vector of zeros.

        It makes the first real vector ``x`` normalise to ``sign(x)``, not to zero, and weighs one
        in ``count`` afterwards.
        """
        zeros = torch.zeros(width, dtype=torch.float64)
        return cls(torch.ones((), dtype=torch.int64), zeros, zeros.clone())

    def updated(self, vectors: torch.Tensor) -> RunningStatistics:
        """The statistics with ``vectors`` ``(n, width)`` taken into account."""
        n = len(vectors)
        if not n:
            return self
        new = vectors.detach().cpu().double()
        mean = new.mean(0)
        squares = ((new - mean) ** 2).sum(0)
        total, *both = merged(int(self.count), self.mean, self.squares, n, mean, squares)
        return RunningStatistics(torch.tensor(total), *both)

    def normalized(
        self, vectors: torch.Tensor, widths: Sequence[int] | None = None
    ) -> torch.Tensor:
        """``vectors`` ``(n, width)`` less the mean, over the deviation; float64.

        Args:
            vectors: what is normalised.
            widths: of the kinds of dimensions that a vector consists of, each with a floor of its
                deviations; None: it is of one kind.
        """
        parts = torch.split(self.squares, list(widths or [len(self.squares)]))
        deviation = torch.cat([deviation_of(part, self.count) for part in parts])
        device = float64_device(vectors.device)
        centred = vectors.to(device).double() - self.mean.to(device)
        return centred / deviation.to(device)
