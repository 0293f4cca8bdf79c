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
from torch import distributed, nn

from easyeditor.errors import ArchiveError
from easyeditor.methods.archive import Archive

FLOOR = 1e-2
"""A dimension's deviation is never taken for less than this share of its weight's mean one."""
LIMIT = 4.0
"""Normalised values end here: a gated MLP's inputs have heavy tails, and one dimension that only a
new subject stirs would carry its edit away (held-out loss of small LLaMAs: 1.67 to 0.66)."""


def check_rank(archive: Archive, rank: int) -> None:
    """Refuse a rank that is not the one of the archive's factors, before it is allocated.

    Raises:
        ArchiveError: the header and the tensors say different things.
    """
    for name, tensor in archive.tensors.items():
        fits = tensor.dim() == 2 and tensor.shape[1] == min(rank, tensor.shape[0])
        if name.endswith(".u") and not fits:
            raise ArchiveError(
                f"The archive {archive.file} says rank={rank}, and {name} has shape "
                f"{tuple(tensor.shape)}. Copy it again, or train again."
            )


class Running(nn.Module):
    """Running mean and deviation of vectors, kept apart for each of ``modes`` weights.

    Attributes:
        gathers: whether :meth:`update` takes what every process of the training sees. It then waits
            for them, so all must call it alike.
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
        for one in _of_all(seen) if self.sync_across_ranks else [seen]:
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
        """``z`` less the mean, over the deviation, within ±``LIMIT``."""
        if self.count[mode] < 2:
            return z
        deviation = (self.squares[mode] / (self.count[mode] - 1)).sqrt()
        floor = (FLOOR * deviation.mean()).clamp(min=torch.finfo(z.dtype).tiny)
        return ((z - self.mean[mode]) / deviation.clamp(min=floor)).clamp(-LIMIT, LIMIT)


def _of_all(seen: torch.Tensor) -> list[torch.Tensor]:
    """This tensor of every process, in their order."""
    found = [torch.empty_like(seen) for _ in range(distributed.get_world_size())]
    distributed.all_gather(found, seen)
    return found


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
        self.inputs, self.gradients = Running(shape[0], modes), Running(shape[1], modes)
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


class Network(nn.Module):
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
        super().__init__()
        self.paths = list(shapes)
        alike: dict[tuple[int, int], list[str]] = {}
        for path, shape in shapes.items():
            alike.setdefault(shape, []).append(path)
        generator = torch.Generator().manual_seed(seed)
        self.transforms = nn.ModuleList(
            Transform(shape, len(own), rank, n_hidden, generator) for shape, own in alike.items()
        )
        self._place = {
            path: (i, mode) for i, own in enumerate(alike.values()) for mode, path in enumerate(own)
        }
        self.rates = nn.Parameter(torch.full((len(self.paths),), edit_lr))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.rates.device

    def update(self, path: str, x: torch.Tensor, delta: torch.Tensor) -> None:
        """Let the statistics of one weight see its factors."""
        index, mode = self._place[path]
        transform = self.transforms[index]
        assert isinstance(transform, Transform)
        transform.update(mode, x, delta)

    def forward(
        self, path: str, x: torch.Tensor, delta: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors of the change of one weight, ``uᵀ v`` in ``(d_in, d_out)``, rate and sign in."""
        index, mode = self._place[path]
        u, v = self.transforms[index](mode, x, delta)
        return u, v * -self.rates[self.paths.index(path)]
