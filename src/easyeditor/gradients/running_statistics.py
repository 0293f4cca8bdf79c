"""Running mean and deviation of vectors as a value: an update returns new statistics.

A state of a sequence of edits holds them, so nothing is changed in place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from easyeditor.lm.weights import float64_device

MIN_DEVIATION_SHARE = 1e-2
"""A dimension's deviation is never taken for less than this share of the mean deviation."""


@dataclass(frozen=True, slots=True)
class RunningStatistics:
    """Mean and summed squared deviations ``(width,)`` of ``count`` vectors, float64 on the CPU.

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
        """The statistics with ``vectors`` ``(n, width)`` taken into account (Chan's update)."""
        n = len(vectors)
        if not n:
            return self
        new = vectors.detach().cpu().double()
        mean = new.mean(0)
        squares = ((new - mean) ** 2).sum(0)
        before, total = int(self.count), int(self.count) + n
        drift = mean - self.mean
        return RunningStatistics(
            torch.tensor(total),
            self.mean + drift * (n / total),
            self.squares + squares + drift**2 * (before * n / total),
        )

    def normalized(self, vectors: torch.Tensor) -> torch.Tensor:
        """``vectors`` ``(n, width)`` less the mean, over the deviation; float64."""
        deviation = (self.squares / self.count).sqrt()
        floor = (MIN_DEVIATION_SHARE * deviation.mean()).clamp(min=torch.finfo(torch.float32).tiny)
        device = float64_device(vectors.device)
        centred = vectors.to(device).double() - self.mean.to(device)
        return centred / deviation.clamp(min=floor).to(device)
