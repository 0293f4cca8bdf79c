"""The parts of a weight's change: a product of two factors, a whole tensor, or a few rows.

A part is what is added to one weight, in float32. A matrix is written ``(d_in, d_out)``, as in
``y = x W``, whatever way round the model stores it (:func:`stored_transposed`); any other weight
(a bias, a norm's scale, the three-dimensional weight of fused experts) as it is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from easyeditor.lm.quantized import is_quantized, replaced_by, stored_as_conv1d

PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
"""Of the numbers in a file."""
LARGEST = torch.finfo(torch.float32).max


class Part(Protocol):
    """What is added to one weight."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        ...

    @property
    def numbers(self) -> int:
        """How many numbers the part is stored in."""
        ...

    @property
    def rank(self) -> int:
        """An upper bound of the change's rank, as a matrix."""
        ...

    def is_finite(self) -> bool:
        """Whether every number of the change is finite."""
        ...

    def dense(self, device: torch.device | None = None) -> torch.Tensor:
        """The whole change, of the weight's shape, computed on ``device``; only to be read."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a file holds of it, by field."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """``u @ v`` is added: ``u`` ``(d_in, r)``, ``v`` ``(r, d_out)``, float32."""

    u: torch.Tensor
    v: torch.Tensor
    fields: ClassVar[tuple[str, ...]] = ("u", "v")

    @property
    def shape(self) -> tuple[int, ...]:
        """``(d_in, d_out)``."""
        return self.u.shape[0], self.v.shape[1]

    @property
    def numbers(self) -> int:
        """See :class:`Part`."""
        return self.u.numel() + self.v.numel()

    @property
    def rank(self) -> int:
        """See :class:`Part`."""
        return min(self.u.shape[1], *self.shape)

    def is_finite(self) -> bool:
        """See :class:`Part`; finite factors may have a product that is not."""
        if not (self.u.isfinite().all() and self.v.isfinite().all()):
            return False
        if 0 in self.u.shape or 0 in self.v.shape:
            return True
        bound = float(self.u.abs().max()) * float(self.v.abs().max()) * self.u.shape[1]
        return bound < LARGEST / 2 or bool(self.dense().isfinite().all())

    def dense(self, device: torch.device | None = None) -> torch.Tensor:
        """See :class:`Part`."""
        return self.u.to(device) @ self.v.to(device)

    def tensors(self) -> dict[str, torch.Tensor]:
        """See :class:`Part`."""
        return {"u": self.u, "v": self.v}

    def check(self) -> str:
        """What is wrong with the factors, or an empty string."""
        if self.u.dim() != 2 or self.v.dim() != 2 or self.u.shape[1] != self.v.shape[0]:
            return f"factors of shapes {tuple(self.u.shape)} and {tuple(self.v.shape)}"
        return ""


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """``delta`` is added; of the weight's shape, float32."""

    delta: torch.Tensor
    fields: ClassVar[tuple[str, ...]] = ("delta",)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return tuple(self.delta.shape)

    @property
    def numbers(self) -> int:
        """See :class:`Part`."""
        return self.delta.numel()

    @property
    def rank(self) -> int:
        """See :class:`Part`."""
        return min(self.shape) if len(self.shape) > 1 else 1

    def is_finite(self) -> bool:
        """See :class:`Part`."""
        return bool(self.delta.isfinite().all())

    def dense(self, device: torch.device | None = None) -> torch.Tensor:
        """See :class:`Part`."""
        return self.delta.to(device)

    def tensors(self) -> dict[str, torch.Tensor]:
        """See :class:`Part`."""
        return {"delta": self.delta}

    def check(self) -> str:
        """What is wrong with the change, or an empty string."""
        return "" if self.delta.dim() else "a single number"


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """``values`` ``(k, …)`` is added to ``k`` different rows of a weight of ``size`` rows.

    A row is an index of the first dimension: an input of a matrix ``(d_in, d_out)``, a token of an
    embedding, one expert of fused experts.
    """

    index: torch.Tensor
    values: torch.Tensor
    size: int
    fields: ClassVar[tuple[str, ...]] = ("index", "values", "size")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.size, *self.values.shape[1:]

    @property
    def numbers(self) -> int:
        """See :class:`Part`."""
        return self.values.numel()

    @property
    def rank(self) -> int:
        """See :class:`Part`."""
        return min(len(self.index), *self.shape)

    def is_finite(self) -> bool:
        """See :class:`Part`."""
        return bool(self.values.isfinite().all())

    def dense(self, device: torch.device | None = None) -> torch.Tensor:
        """See :class:`Part`."""
        values = self.values.to(device)
        whole = values.new_zeros(self.shape)
        return whole.index_copy_(0, self.index.to(values.device), values)

    def tensors(self) -> dict[str, torch.Tensor]:
        """See :class:`Part`."""
        return {"index": self.index, "values": self.values, "size": torch.tensor([self.size])}

    def check(self) -> str:
        """What is wrong with the rows, or an empty string."""
        index, values = self.index, self.values
        if index.dtype != torch.int64 or index.dim() != 1 or len(index) != len(values):
            return f"{tuple(values.shape)} values for an index of {tuple(index.shape)}"
        inside = ((index >= 0) & (index < self.size)).all()
        if not inside or len(set(index.tolist())) != len(index):
            return f"an index that is not of different rows below {self.size}"
        return ""


WeightPart = LowRank | Dense | Rows


def part_of(fields: Mapping[str, torch.Tensor]) -> WeightPart:
    """The part that a file holds under these fields.

    Raises:
        ValueError: there is no such part, or its tensors do not fit each other.
    """
    halves = (torch.float16, torch.bfloat16)
    fields = {name: t.float() if t.dtype in halves else t for name, t in fields.items()}
    for kind in (LowRank, Dense, Rows):
        if set(fields) == set(kind.fields):
            part = _made(kind, fields)
            wrong = part.check()
            numbers = [t for name, t in fields.items() if name not in {"index", "size"}]
            if not wrong and any(t.dtype not in PRECISIONS for t in numbers):
                wrong = f"numbers of {numbers[0].dtype}"
            if wrong:
                raise ValueError(wrong)
            return part
    raise ValueError(f"the fields {sorted(fields)}")


def _made(kind: type[Any], fields: Mapping[str, torch.Tensor]) -> WeightPart:
    if kind is Rows:
        size = fields["size"]
        if size.dtype != torch.int64 or size.shape != (1,):
            raise ValueError("a size that is no number")
        return Rows(fields["index"], fields["values"], int(size))
    part: WeightPart = kind(**fields)
    return part


def stored_transposed(module: nn.Module, name: str) -> bool:
    """Whether ``module`` stores its parameter ``name`` as ``(d_out, d_in)``.

    ``nn.Linear`` does, also quantised; ``Conv1D``, embeddings and everything that is no matrix of
    a linear map are stored as parts are written.
    """
    original = replaced_by(module) or module
    if name != "weight":
        return False
    if is_quantized(original):
        return not stored_as_conv1d(original)
    return isinstance(original, nn.Linear)


def of_linear_layer(model: nn.Module, path: str) -> bool:
    """Whether a parameter is the matrix of a linear layer, ``Conv1D``'s included."""
    owner, _, name = path.rpartition(".")
    module = model.get_submodule(owner)
    original = replaced_by(module) or module
    conv1d = type(original).__name__ == "Conv1D" or (
        is_quantized(original) and stored_as_conv1d(original)
    )
    return name == "weight" and (conv1d or stored_transposed(module, name))


def one_part(parts: Sequence[WeightPart]) -> WeightPart:
    """The sum of ``parts`` as one part, low-rank while that takes fewer numbers."""
    if len(parts) == 1:
        return parts[0]
    low = [part for part in parts if isinstance(part, LowRank)]
    if len(low) == len(parts):
        d_in, d_out = parts[0].shape
        if sum(part.u.shape[1] for part in low) * (d_in + d_out) < d_in * d_out:
            return LowRank(torch.cat([p.u for p in low], 1), torch.cat([p.v for p in low]))
    total = parts[0].dense().clone()
    for part in parts[1:]:
        total += part.dense()
    return Dense(total)
