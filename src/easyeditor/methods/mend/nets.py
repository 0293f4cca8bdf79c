"""The networks of MEND: from a gradient's rank-one factors to those of an edit.

The gradient of a loss at a weight is ``Σ x δᵀ`` over positions, ``x`` the layer's input and ``δ``
the gradient at its output. One network per *shape* of weight, shared by all weights of that shape,
maps the pair to ``(x̃, δ̃)``; the edit is ``−rate · Σ x̃ δ̃ᵀ`` (arXiv 2110.11309, section 3)::

    z = normalised [x, δ]
    h = z + relu(s₁ ⊙ (U₁ V₁ z + b₁) + o₁)
    [x̃, δ̃] = h + s₂ ⊙ (U₂ V₂ h + b₂) + o₂

``s`` and ``o`` belong to one weight each; ``U`` starts at zero, so the network starts as the
identity. The last layer has no relu: a correction may have either sign.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from easyeditor.gradients.normalizer import RunningNormalizer
from easyeditor.methods.network_per_shape import NetworkPerShape


class LowRankLayer(nn.Module):
    """``z + act(s ⊙ (U V z + b) + o)``; exactly ``z`` at the start."""

    def __init__(
        self, width: int, rank: int, modes: int, act: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.act = act
        self.u = nn.Parameter(torch.zeros(width, rank))
        self.v = nn.Parameter(torch.randn(rank, width, generator=generator) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(modes, width))
        self.shift = nn.Parameter(torch.zeros(modes, width))

    def forward(self, mode: int, z: torch.Tensor) -> torch.Tensor:
        """``(n, width)`` to the same."""
        change = torch.addmm(self.bias, z @ self.v.T, self.u.T)
        change = self.scale[mode] * change + self.shift[mode]
        # clamp passes a gradient at exactly 0, where relu passes none and U would stay 0 for ever.
        return z + (change.clamp(min=0) if self.act else change)


class Transform(nn.Module):
    """The network of one shape; ``mode`` says for which of its weights it works."""

    def __init__(
        self,
        shape: tuple[int, int],
        modes: int,
        rank: int,
        n_hidden: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.shape, width = shape, sum(shape)
        self.inputs, self.gradients = (
            RunningNormalizer(shape[0], modes),
            RunningNormalizer(shape[1], modes),
        )
        rank = min(rank, width)
        self.layers = nn.ModuleList(
            LowRankLayer(width, rank, modes, i < n_hidden, generator) for i in range(n_hidden + 1)
        )

    def update(self, mode: int, x: torch.Tensor, delta: torch.Tensor) -> None:
        """Let the running statistics see ``x`` ``(n, d_in)`` and ``delta`` ``(n, d_out)``."""
        self.inputs.update(mode, x)
        self.gradients.update(mode, delta)

    def forward(
        self, mode: int, x: torch.Tensor, delta: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``(n, d_in)`` and ``(n, d_out)`` to the same shapes."""
        z = torch.cat([self.inputs(mode, x), self.gradients(mode, delta)], 1)
        for layer in self.layers:
            z = layer(mode, z)
        return z[:, : self.shape[0]], z[:, self.shape[0] :]


class Network(NetworkPerShape[Transform]):
    """Everything that is learnt: one :class:`Transform` per shape, one rate per weight.

    Args:
        shapes: ``{parameter path: (d_in, d_out)}`` of the weights that are edited, in order.
        rank: of the layers, capped by the width.
        n_hidden: hidden layers.
        edit_lr: the rates' initial value.
        seed: of the initial ``V``.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        *,
        rank: int,
        n_hidden: int,
        edit_lr: float,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        super().__init__(
            shapes,
            lambda shape, modes: Transform(shape, modes, rank, n_hidden, generator),
            edit_lr,
        )

    def update(self, path: str, x: torch.Tensor, delta: torch.Tensor) -> None:
        """Let the statistics of one weight see its factors."""
        transform, mode = self.transform_of(path)
        transform.update(mode, x, delta)

    def forward(
        self, path: str, x: torch.Tensor, delta: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors of the change of one weight, ``uᵀ v`` in ``(d_in, d_out)``, rate and sign in."""
        transform, mode = self.transform_of(path)
        u, v = transform(mode, x, delta)
        return u, v * -self.rate_of(path)
