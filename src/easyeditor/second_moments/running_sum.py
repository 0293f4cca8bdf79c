"""Running sums ``Σ k kᵀ`` over tokens, as upper triangles, in float32 and then float64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

STRIP_ROWS = 1024
"""Rows of one strip of the product."""
MAX_FLOAT32_TOKENS = 2**18
"""Number of tokens after which the float32 sums are added to float64 ones.

A float32 sum of n batches has an error of at most n roundings (6e-8 each): negligible for an edit
with 128 batches of 2048 tokens, but not with a corpus of millions of tokens.
"""


def strips(width: int, **kind: Any) -> list[torch.Tensor]:
    """Zeros for the upper triangle of a ``(width, width)`` matrix: rows from the diagonal on.

    s strips take ``(s + 1) / 2s`` of the memory and of the multiplications of the whole matrix:
    100 % up to 1,024 columns, 54 % for 14,336. (One layer's product costs about as much as its
    block's forward pass, and in full float32 on a GPU far more.)
    """
    starts = range(0, width, STRIP_ROWS)
    return [torch.zeros(min(STRIP_ROWS, width - i), width - i, **kind) for i in starts]


def add_products(total: Sequence[torch.Tensor], keys: torch.Tensor) -> None:
    """Add ``keysᵀ keys``: a symmetric rank-k update, which torch has no function for."""
    start = 0
    for strip in total:
        stop = start + len(strip)
        strip.addmm_(keys[:, start:stop].T, keys[:, start:])
        start = stop


def whole(total: Iterable[torch.Tensor], width: int) -> torch.Tensor:
    """The symmetric matrix with these strips as its upper triangle; float32, on the CPU."""
    matrix, start = torch.empty(width, width, dtype=torch.float32, device="cpu"), 0
    for strip in total:
        stop = start + len(strip)
        square, right = strip[:, : len(strip)], strip[:, len(strip) :]
        matrix[start:stop, start:stop] = square.triu() + square.triu(1).T
        matrix[start:stop, stop:] = right
        matrix[stop:, start:stop] = right.T
        start = stop
    return matrix


class RunningSums:
    """``Σ k kᵀ`` of several layers, float32 on each layer's device.

    After every :data:`MAX_FLOAT32_TOKENS` tokens they are added to float64 sums in main memory:
    accelerators have little memory for those, and some no float64.

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
        if self._unfolded + tokens > MAX_FLOAT32_TOKENS:
            self._fold()
        for total, of_layer in zip(self._recent, keys, strict=True):
            add_products(total, of_layer.float())
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

        ``last`` frees the layer's sums meanwhile: nothing can be added afterwards.
        """
        return whole(self._means(i, last), self._widths[i])

    def _means(self, i: int, last: bool) -> Iterator[torch.Tensor]:
        by_age = [sums[i] for sums in (self._older, self._recent) if sums]
        for totals in zip(*by_age, strict=True):
            yield sum(total.cpu() for total in totals) / self.seen
            if last:
                for total in totals:
                    total.set_()

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """The state for :meth:`restore`: tensors on the CPU, and numbers as text."""
        tensors = {
            f"{age}.{i}.{k}": strip.cpu()
            for age, sums in (("recent", self._recent), ("older", self._older))
            for i, total in enumerate(sums)
            for k, strip in enumerate(total)
        }
        return tensors, {"seen": str(self.seen), "unfolded": str(self._unfolded)}

    def restore(self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, str]) -> None:
        """Continue from a :meth:`state`.

        Raises:
            KeyError, ValueError: it belongs to other layers or widths; nothing was changed.
        """
        recent = self._like("recent", tensors, torch.float32)
        older = self._like("older", tensors, torch.float64) if "older.0.0" in tensors else []
        self.seen, self._unfolded = int(numbers["seen"]), int(numbers["unfolded"])
        for total, stored in zip(self._recent, recent, strict=True):
            for strip, values in zip(total, stored, strict=True):
                strip.copy_(values)
        self._older = older

    def _like(
        self, age: str, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> list[list[torch.Tensor]]:
        result = []
        for i, total in enumerate(self._recent):
            stored = [tensors[f"{age}.{i}.{k}"] for k in range(len(total))]
            if any(
                a.dtype != dtype or a.shape != b.shape for a, b in zip(stored, total, strict=True)
            ):
                raise ValueError(f"these are no sums of layer {i}")
            result.append(stored)
        return result
