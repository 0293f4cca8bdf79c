"""The networks of MALMEN: from gradient factors to what each position wants, and their solve.

At every position that predicts an answer a weight has an input ``h`` and a gradient ``g`` at its
output. One network per *shape* of weight maps the normalised pair to ``(h̃, g̃)``, each position
wants its output changed by ``d``, and a ridge finds the change that does it for all positions of
all edits (arXiv 2311.04661, section 4)::

    x = normalised [h, g]
    x = x + s ⊙ relu(x A B + b) + t                 (per block; A random, B = 0 at the start)
    d = −η (h · h̃) g̃                               (h as it is; η learnt, one per weight)
    ΔWᵀ = Hᵀ (HHᵀ + exp(ℓ) I)⁻¹ D                   (rows of H: h; ℓ learnt, 0 at the start)

``s`` and ``t`` belong to one weight each. The ``n × n`` system has the size of the answers' tokens;
it is differentiable, so ``ℓ`` and the networks learn through it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from easyeditor.associative.solve import Cholesky, closed_form
from easyeditor.gradients.normalizer import RunningNormalizer
from easyeditor.gradients.running_statistics import RunningStatistics
from easyeditor.methods.network_per_shape import NetworkPerShape


class Block(nn.Module):
    """``x + s ⊙ relu(x A B + b) + t``; exactly ``x`` at the start."""

    def __init__(self, width: int, rank: int, modes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(width, rank, generator=generator))
        self.b = nn.Parameter(torch.zeros(rank, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(modes, width))
        self.shift = nn.Parameter(torch.zeros(modes, width))

    def forward(self, mode: int, x: torch.Tensor) -> torch.Tensor:
        """``(n, width)`` to the same."""
        # clamp passes a gradient at exactly 0, where relu passes none and B would stay 0 for ever.
        hidden = torch.addmm(self.bias, x @ self.a, self.b).clamp(min=0)
        return x + self.scale[mode] * hidden + self.shift[mode]


class Transform(nn.Module):
    """The network of one shape, and the running statistics of each of its weights."""

    def __init__(
        self,
        shape: tuple[int, int],
        modes: int,
        rank: int,
        n_blocks: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.shape, width = shape, sum(shape)
        self.pairs = RunningNormalizer(width, modes)
        rank = min(rank, width)
        self.blocks = nn.ModuleList(Block(width, rank, modes, generator) for _ in range(n_blocks))

    def forward(self, mode: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``h̃`` ``(n, d_in)`` and ``g̃`` ``(n, d_out)`` of normalised pairs."""
        for block in self.blocks:
            x = block(mode, x)
        return x[:, : self.shape[0]], x[:, self.shape[0] :]


class Network(NetworkPerShape[Transform]):
    """Everything that is learnt: one :class:`Transform` per shape, η and ℓ per weight.

    Args:
        shapes: ``{parameter path: (d_in, d_out)}`` of the weights that are edited, in order.
        rank: of the blocks, capped by the width.
        n_blocks: per network.
        edit_lr: η's initial value.
        seed: of the initial ``A``.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        *,
        rank: int,
        n_blocks: int,
        edit_lr: float,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        super().__init__(
            shapes,
            lambda shape, modes: Transform(shape, modes, rank, n_blocks, generator),
            edit_lr,
        )
        self.slack = nn.Parameter(torch.zeros(len(self.paths)))

    def update(self, path: str, h: torch.Tensor, g: torch.Tensor) -> None:
        """Let the running statistics of one weight see ``(n, d_in)`` and ``(n, d_out)``."""
        transform, mode = self.transform_of(path)
        transform.pairs.update(mode, torch.cat([h, g], 1))

    def statistics(self, path: str) -> RunningStatistics:
        """The statistics of one weight, as a value."""
        transform, mode = self.transform_of(path)
        return transform.pairs.statistics(mode)

    def forward(
        self, path: str, h: torch.Tensor, g: torch.Tensor, seen: RunningStatistics | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors of the change of one weight: ``uᵀ v`` in ``(d_in, d_out)``, ``n`` rows each.

        Args:
            path: of the weight.
            h: inputs ``(n, d_in)``.
            g: gradients at the output ``(n, d_out)``.
            seen: what normalises them; by default the statistics of the training.
        """
        transform, mode = self.transform_of(path)
        seen = seen or transform.pairs.statistics(mode)
        x = seen.normalized(torch.cat([h, g], 1), transform.shape).to(h)
        h_tilde, g_tilde = transform(mode, x)
        wanted = -self.rate_of(path) * (h * h_tilde).sum(1, keepdim=True) * g_tilde
        u = closed_form(h.T, Cholesky.identity(), self.slack[self.paths.index(path)].exp())
        return u.T.to(h), wanted
