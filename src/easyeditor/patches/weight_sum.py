"""The sum of an unedited weight and the parts of all patches on it, exact and of bounded cost.

The sum is a function of the unedited weight and of the sequence of parts that are there now, never
of how they came and went, so undoing in any order gives the bits of a model that never carried
what was undone:

- up to :data:`FEW` parts are added one after the other, in float32 (float64 for a float64 weight);
- of more, every part is rounded to multiples of one power of two, the *quantum*, and the multiples
  are added as 64-bit integers. Integer addition is associative and has an exact inverse, so one
  part is added or taken out at the cost of that part, however many there are. The sum is turned
  back, added to the unedited weight in float64, and rounded to float32.

The quantum is 2⁻⁵⁰ of the unedited weight's largest number (rounded up to a power of two), a
hundred-millionth of what float32 resolves there: the sum is closer to the true one than a chain of
float32 additions. It follows from the weight and the parts alone: if the largest numbers of the
parts, added up, would not fit into 62 bits of quanta, it is 2⁸ times as large, and so on.

The integers take eight bytes per number of the weight, only for weights with more than ``FEW``
parts, and are computed again from the parts when they are lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from easyeditor.lm.weights import float64_device
from easyeditor.patches.parts import WeightPart

FEW = 8
"""So many parts are added one after the other, as float32."""
RESOLUTION_BITS = 50
"""The quantum, below the unedited weight's largest number."""
SUM_BITS = 62
"""That the quanta of all parts together may take."""
COARSER_BITS = 8
"""By which the quantum grows when they do not fit."""


class Changing(Protocol):
    """A patch that adds parts to weights."""

    @property
    def entries(self) -> Mapping[str, tuple[WeightPart, ...]]:
        """``{parameter path: parts}``."""
        ...


@dataclass(slots=True, eq=False)
class WeightSum:
    """The parts on one weight, and their running sum.

    Attributes:
        path: of the weight.
        transposed: whether the model stores the weight the other way round than the parts.
        patches: all that the model carries, in order; some change this weight.
        count: how many parts they have for it.
        finest: exponent of the finest quantum, once it is needed.
        bound: sum of the parts' largest numbers, each rounded up, in finest quanta.
        total: the parts' sum in quanta, or None where it has yet to be computed.
    """

    path: str
    transposed: bool
    patches: Sequence[Changing] = ()
    count: int = 0
    finest: int | None = None
    bound: int = 0
    total: torch.Tensor | None = field(default=None, repr=False)

    def parts(self) -> Iterator[WeightPart]:
        """The parts, in the order of the patches."""
        for patch in self.patches:
            yield from patch.entries.get(self.path, ())

    @property
    def exponent(self) -> int:
        """Of the quantum."""
        assert self.finest is not None
        steps = math.ceil(max(0, self.bound.bit_length() - SUM_BITS) / COARSER_BITS)
        return self.finest + COARSER_BITS * steps

    def parts_only(self) -> WeightSum:
        """The same, with the integers to be computed again."""
        return WeightSum(self.path, self.transposed, self.patches, self.count)

    def changed(
        self,
        patches: Sequence[Changing],
        removed: Sequence[WeightPart],
        added: Sequence[WeightPart],
        original: torch.Tensor,
        *,
        give_away: bool,
    ) -> WeightSum:
        """The sum for ``patches``: these parts without ``removed`` and with ``added``.

        With ``give_away`` the new sum takes the integers over, and this one computes them again
        when it is asked; else it gets a copy.
        """
        count = self.count + len(added) - len(removed)
        new = WeightSum(self.path, self.transposed, patches, count)
        if count <= FEW or self.total is None:
            return new
        total = self.total if give_away else self.total.clone()
        if give_away:
            self.total = None  # before it is written into
        new.finest, new.bound = self.finest, self.bound
        changes = [(part, 1) for part in added] + [(part, -1) for part in removed]
        # One part, as a rule: it is multiplied out once for both steps.
        one = changes[0][0].dense(total.device) if len(changes) == 1 else None
        new.bound += sum(sign * new._largest(part, total.device, one) for part, sign in changes)
        if new.exponent != self.exponent:
            return new.parts_only()
        for part, sign in changes:
            new._add(part, sign, total, one)
        new.total = total
        return new

    def weight(self, original: torch.Tensor) -> torch.Tensor:
        """The unedited weight plus the parts, in float32 or better; a new tensor."""
        wide = torch.promote_types(original.dtype, torch.float32)
        if self.count <= FEW:
            result = original.to(wide, copy=True)
            for part in self.parts():
                change = part.dense(original.device).to(wide)
                result.add_(change.T if self.transposed else change)
            return result
        if self.total is None:
            self._sum_up(original)
        assert self.total is not None
        change = self.total.double() * 2.0**self.exponent
        exact = original.to(change.device, torch.float64)
        exact = exact + (change.T if self.transposed else change)
        return exact.to(wide).to(original.device)

    def _sum_up(self, original: torch.Tensor) -> None:
        """Compute the integers from every part."""
        device = float64_device(original.device)
        largest = float(original.abs().max()) if original.numel() else 0.0
        self.finest = math.frexp(largest)[1] - RESOLUTION_BITS
        self.bound = sum(self._largest(part, device) for part in self.parts())
        total: torch.Tensor | None = None
        for part in self.parts():
            if total is None:
                total = torch.zeros(part.shape, dtype=torch.int64, device=device)
            self._add(part, 1, total)
        self.total = total

    def _largest(
        self, part: WeightPart, device: torch.device, dense: torch.Tensor | None = None
    ) -> int:
        """The largest number of a part, in finest quanta, rounded up."""
        assert self.finest is not None
        values = part.dense(device) if dense is None else dense
        largest = float(values.abs().max()) if values.numel() else 0.0
        mantissa, exponent = math.frexp(largest)
        shift = exponent - 53 - self.finest
        whole = int(mantissa * 2**53)
        return 1 + (whole << shift if shift >= 0 else -(-whole >> -shift))

    def _add(
        self,
        part: WeightPart,
        sign: int,
        total: torch.Tensor,
        dense: torch.Tensor | None = None,
    ) -> None:
        values = part.dense(total.device) if dense is None else dense
        quanta = values.double().mul_(2.0**-self.exponent).round_()
        total.add_(quanta.to(torch.int64), alpha=sign)
