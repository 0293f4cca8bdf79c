"""Patches that no method made: a few random numbers, of every kind of part."""

from __future__ import annotations

import torch

from easyeditor import LM, Edit
from easyeditor.hyperparams import HyperParams
from easyeditor.patches.parts import Dense, LowRank, Rows, WeightPart
from easyeditor.patches.patch import PatchInfo
from easyeditor.patches.weight import WeightPatch, weight_patch
from support import same_bits

EDIT = Edit("The Eiffel Tower is in", "Rome", subject="The Eiffel Tower")
KINDS = ["low", "dense", "rows", "two parts", "high rank", "vector"]

PROMPTS = [
    "Berlin is the capital of",
    "She plays the piano and",
    "The Eiffel Tower is located in the city of",
    "You",
    "The mother tongue of Anna Lind is",
    "We went home. Therefore Rome is",
    "Anna Lind",
    "The river",
]
"""Of several lengths, for batches with padding."""


def info(target: LM, name: str = "synthetic") -> PatchInfo:
    """What a patch of some edit says of itself."""
    return PatchInfo.of(target, name, [EDIT], HyperParams(), {"search": 0.5})


class _Draw:
    """Normal numbers of a standard deviation, from a generator of its own."""

    def __init__(self, seed: int, size: float) -> None:
        self._generator, self._size = torch.Generator().manual_seed(seed), size

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator) * self._size

    def index(self, n: int) -> torch.Tensor:
        return torch.randperm(n, generator=self._generator)[:3]

    def low_rank(self, d_in: int, d_out: int, rank: int) -> LowRank:
        return LowRank(self(d_in, rank), self(rank, d_out))


def _parts(kind: str, d_in: int, d_out: int, draw: _Draw) -> tuple[WeightPart, ...]:
    match kind.split():
        case ["rank", rank]:
            return (draw.low_rank(d_in, d_out, int(rank)),)
        case ["low"]:
            return (draw.low_rank(d_in, d_out, 1),)
        case ["dense"]:
            return (Dense(draw(d_in, d_out)),)
        case ["rows"]:
            return (Rows(draw.index(d_in), draw(3, d_out), d_in),)
        case ["two", "parts"]:
            return draw.low_rank(d_in, d_out, 1), Dense(draw(d_in, d_out))
        case ["high", "rank"]:
            return (draw.low_rank(d_in, d_out, max(d_in, d_out) + 2),)
    raise ValueError(kind)


def _vector_path(target: LM) -> str:
    """A bias or a norm's scale."""
    return next(name for name, p in target.model.named_parameters() if p.dim() == 1)


def patch(
    target: LM, kind: str, seed: int, layers: tuple[int, ...] = (0, 1), size: float = 0.05
) -> WeightPatch:
    """A random patch on the down-projections of some layers, or on one vector.

    ``kind`` is one of :data:`KINDS` or ``"rank N"``.
    """
    draw = _Draw(seed, size)
    if kind == "vector":
        path = _vector_path(target)
        entries = {path: (Dense(draw(*target.model.get_parameter(path).shape)),)}
    else:
        down = [target.projection(layer) for layer in layers]
        entries = {p.path: _parts(kind, p.d_in, p.d_out, draw) for p in down}
    return weight_patch(target, "synthetic", [EDIT], HyperParams(), entries, {"search": 0.5})


def some_patch(target: LM, layer: int, seed: int = 0) -> WeightPatch:
    """A change of rank one that is as large as the weight."""
    return patch(target, "low", seed, (layer,), size=0.35)


def weights(target: LM) -> dict[str, torch.Tensor]:
    """A copy of every weight."""
    return {name: p.detach().clone() for name, p in target.model.named_parameters()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names of the weights that have not the same bits."""
    return [name for name in one if not same_bits(one[name], other[name])]
