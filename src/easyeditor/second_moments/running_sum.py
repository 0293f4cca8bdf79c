"""Running sums ``Σ k kᵀ`` over tokens: only one triangle is there, and no digits get lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

EDGE = 1024
"""Rows of one strip of the product."""
FOLD = 2**18
"""Tokens after which float32 sums are added to float64 ones.

A float32 sum of n batches is wrong by at most n roundings (6e-8 each): 128 batches of 2048 tokens
lose no digit that an edit could feel, a corpus of millions of tokens would.
"""


def strips(width: int, **kind: Any) -> list[torch.Tensor]:
    """Zeros for the upper triangle of a ``(width, width)`` matrix: rows from the diagonal on.

    With s strips ``(s + 1) / 2s`` of the memory and of the multiplications: all of them up to 1,024
    columns, 54 % for 14,336. (One layer's product costs about what its block's forward pass does,
    and in full float32 on a GPU far more.)
    """
    starts = range(0, width, EDGE)
    return [torch.zeros(min(EDGE, width - i), width - i, **kind) for i in starts]


def add_products(total: Sequence[torch.Tensor], keys: torch.Tensor) -> None:
    """Add ``keysᵀ keys``, a symmetric rank-k update, which torch lacks."""
    start = 0
    for strip in total:
        stop = start + len(strip)
        strip.addmm_(keys[:, start:stop].T, keys[:, start:])
        start = stop


def whole(total: Iterable[torch.Tensor], width: int) -> torch.Tensor:
    """The symmetric matrix that these strips are the upper triangle of; float32, on the CPU."""
    matrix, start = torch.empty(width, width, dtype=torch.float32, device="cpu"), 0
    for strip in total:
        stop = start + len(strip)
        square, right = strip[:, : len(strip)], strip[:, len(strip) :]
        matrix[start:stop, start:stop] = square.triu() + square.triu(1).T
        matrix[start:stop, stop:] = right
        matrix[stop:, start:stop] = right.T
        start = stop
    return matrix


class Sums:
    """``Σ k kᵀ`` of several layers, float32 on each layer's device.

    Beyond :data:`FOLD` tokens they are added to float64 sums in main memory: an accelerator has
    little room for those, and some have no such numbers.

    Attributes:
        seen: tokens added so far.
    """

    def __init__(self, widths: Sequence[int], devices: Sequence[torch.device]) -> None:
        self.seen = 0
        self._unfolded = 0
        self._widths = list(widths)
        self._recent = [
            strips(width, dtype=torch.float32, device=device)
            for width, device in zip(widths, devices, strict=True)
        ]
        self._older: list[list[torch.Tensor]] = []

    def add(self, keys: Sequence[torch.Tensor]) -> None:
        """Add the same tokens' keys ``(tokens, d_in)`` of every layer."""
        tokens = len(keys[0])
        if self._unfolded + tokens > FOLD:
            self._fold()
        for total, own in zip(self._recent, keys, strict=True):
            add_products(total, own.float())
        self._unfolded += tokens
        self.seen += tokens

    def _fold(self) -> None:
        if not self._older:
            self._older = [
                strips(width, dtype=torch.float64, device="cpu") for width in self._widths
            ]
        for older, recent in zip(self._older, self._recent, strict=True):
            for far, near in zip(older, recent, strict=True):
                far += near.cpu()
                near.zero_()
        self._unfolded = 0

    def mean(self, i: int, *, last: bool = False) -> torch.Tensor:
        """``E[k kᵀ]`` of the i-th layer, ``(d_in, d_in)`` float32 on the CPU, exactly symmetric.

        ``last`` gives the layer's memory back on the way: nothing can be added any more.
        """
        return whole(self._means(i, last), self._widths[i])

    def _means(self, i: int, last: bool) -> Iterator[torch.Tensor]:
        for totals in zip(*(own[i] for own in (self._older, self._recent) if own), strict=True):
            yield sum(total.cpu() for total in totals) / self.seen
            if last:
                for total in totals:
                    total.set_()

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Everything, to be gone on with: tensors on the CPU, and numbers as text."""
        tensors = {
            f"{age}.{i}.{k}": strip.cpu()
            for age, sums in (("recent", self._recent), ("older", self._older))
            for i, total in enumerate(sums)
            for k, strip in enumerate(total)
        }
        return tensors, {"seen": str(self.seen), "unfolded": str(self._unfolded)}

    def restore(self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, str]) -> None:
        """Go on from a :meth:`state`.

        Raises:
            KeyError, ValueError: it is none of sums like these, which are then unchanged.
        """
        recent = self._like("recent", tensors, torch.float32)
        older = self._like("older", tensors, torch.float64) if "older.0.0" in tensors else []
        self.seen, self._unfolded = int(numbers["seen"]), int(numbers["unfolded"])
        for own, stored in zip(self._recent, recent, strict=True):
            for mine, its in zip(own, stored, strict=True):
                mine.copy_(its)
        self._older = older

    def _like(
        self, age: str, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> list[list[torch.Tensor]]:
        result = []
        for i, own in enumerate(self._recent):
            stored = [tensors[f"{age}.{i}.{k}"] for k in range(len(own))]
            if any(
                a.dtype != dtype or a.shape != b.shape for a, b in zip(stored, own, strict=True)
            ):
                raise ValueError(f"these are no sums of layer {i}")
            result.append(stored)
        return result
