"""Running normalisation of activations and gradients (arXiv 2110.11309, section 3.2)."""

from __future__ import annotations

import torch
from torch import distributed, nn

MIN_DEVIATION_SHARE = 1e-2
"""A dimension's deviation is never taken for less than this share of its weight's mean one."""
MAX_DEVIATIONS = 4.0
"""Normalised values are clamped to this: a gated MLP's inputs have heavy tails, and one dimension
that only a new subject moves would dominate its edit (held-out loss of small LLaMAs: 1.67 to
0.66)."""


class RunningNormalizer(nn.Module):
    """Running mean and standard deviation of vectors, one of each for ``modes`` weights.

    Attributes:
        sync_across_ranks: whether :meth:`update` takes the vectors of every process of a training.
            It then waits for them, so all must call it alike.
    """

    sync_across_ranks = False
    count: torch.Tensor
    mean: torch.Tensor
    squares: torch.Tensor

    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(modes, dtype=torch.long))
        self.register_buffer("mean", torch.zeros(modes, width))
        self.register_buffer("squares", torch.zeros(modes, width))  # of deviations, summed

    @torch.no_grad()
    def update(self, mode: int, z: torch.Tensor) -> None:
        """Take ``z`` ``(n, width)`` into account; all ranks' with ``sync_across_ranks``."""
        mean = z.sum(0) / max(len(z), 1)
        seen = torch.cat([z.new_tensor([len(z)]), mean, ((z - mean) ** 2).sum(0)])
        for one in _of_all_ranks(seen) if self.sync_across_ranks else [seen]:
            self._merge(mode, int(one[0]), *one[1:].chunk(2))

    def _merge(self, mode: int, n: int, mean: torch.Tensor, squares: torch.Tensor) -> None:
        """Chan's parallel update."""
        if not n:
            return
        before = self.count[mode]
        total = before + n
        drift = mean - self.mean[mode]
        self.squares[mode] += squares + drift**2 * (before * n / total)
        self.mean[mode] += drift * (n / total)
        self.count[mode] = total

    def forward(self, mode: int, z: torch.Tensor) -> torch.Tensor:
        """``z`` less the mean, over the deviation, within ±``MAX_DEVIATIONS``."""
        if self.count[mode] < 2:
            return z
        deviation = (self.squares[mode] / (self.count[mode] - 1)).sqrt()
        floor = (MIN_DEVIATION_SHARE * deviation.mean()).clamp(min=torch.finfo(z.dtype).tiny)
        return ((z - self.mean[mode]) / deviation.clamp(min=floor)).clamp(
            -MAX_DEVIATIONS, MAX_DEVIATIONS
        )


def _of_all_ranks(seen: torch.Tensor) -> list[torch.Tensor]:
    """This tensor of every rank, in their order."""
    parts = [torch.empty_like(seen) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, seen)
    return parts
