"""The past of many sequences, what several of them begin with run once.

The edits of a batch stand behind the same sampled contexts: with a hundred edits each context is
the beginning of a hundred sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch

from easyeditor.lm.hooks import gathering
from easyeditor.lm.model import LM
from easyeditor.lm.prefix import Prefix

Ids = tuple[int, ...]
LEAST = 4
"""Tokens that sequences must share to be run behind one beginning."""
WORTH = 0.75
"""Of the tokens of a plain pass; where sharing leaves more, a second pass costs what it saves."""


def past_of(lm: LM, sequences: Sequence[Ids]) -> Any:
    """The model's cache after these sequences, padded on the left.

    What several begin with is run once where that saves enough and was shown, once per model, to
    give the keys and values of the plain pass.
    """
    heads, whose = beginnings(sequences)
    longest = max(map(len, sequences))
    rest = max(len(ids) - len(heads[i]) for ids, i in zip(sequences, whose, strict=True))
    tokens = len(heads) * max(map(len, heads)) + len(sequences) * rest
    if tokens <= WORTH * len(sequences) * longest and _trusted(lm, sequences, whose):
        return _shared(lm, sequences, heads, whose)
    return _whole(lm, sequences)


def beginnings(sequences: Sequence[Ids]) -> tuple[list[Ids], list[int]]:
    """What the sequences begin with, and which of these each has.

    Sequences with at least :data:`LEAST` tokens in common share what all of them begin with, less
    the last token of all but the shortest; one that shares nothing is its own beginning.
    """
    heads: list[Ids] = []
    whose = [0] * len(sequences)
    for i in sorted(range(len(sequences)), key=sequences.__getitem__):
        ids = sequences[i]
        common = _common(heads[-1], ids[:-1]) if heads else 0
        if common >= LEAST:
            heads[-1] = heads[-1][:common]
        else:
            heads.append(ids)
        whose[i] = len(heads) - 1
    return heads, whose


def _common(a: Ids, b: Ids) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _whole(lm: LM, sequences: Sequence[Ids]) -> Any:
    zero = torch.zeros(1, dtype=torch.long)
    with gathering(lm.head, zero, zero):
        return lm.call(lm.pad(sequences, left=True), use_cache=True).past_key_values


def _shared(lm: LM, sequences: Sequence[Ids], heads: Sequence[Ids], whose: Sequence[int]) -> Any:
    """The same by two passes; None where the cache is not one of all keys and values."""
    prefix = Prefix(lm, *heads)
    if not prefix.usable:
        return None
    rests = [ids[len(heads[i]) :] for ids, i in zip(sequences, whose, strict=True)]
    zero = torch.zeros(1, dtype=torch.long)
    with gathering(lm.head, zero, zero):
        cache = prefix.call(rests, whose).past_key_values
    # Each row is padded left of its beginning and right of its rest: turned until all is left.
    rest = max(map(len, rests))
    width, longest = prefix.length + rest, max(map(len, sequences))
    over = torch.tensor([rest - len(each) for each in rests])
    index = (torch.arange(width - longest, width)[None] - over[:, None]) % width
    for layer in cache.layers:
        at = index[:, None, :, None].to(layer.keys.device)
        layer.keys = torch.take_along_dim(layer.keys, at, 2)
        layer.values = torch.take_along_dim(layer.values, at, 2)
    return cache


def _trusted(lm: LM, sequences: Sequence[Ids], whose: Sequence[int]) -> bool:
    """Whether the two ways agree on two sequences of one beginning and one of another."""
    if "shares its past" not in lm.memo:
        most = max(whose, key=whose.count)
        alike = sorted((ids for ids, i in zip(sequences, whose, strict=True) if i == most), key=len)
        others = [ids for ids, i in zip(sequences, whose, strict=True) if i != most]
        sample = [alike[0], alike[-1], *others[:1]]
        shared, whole = _shared(lm, sample, *beginnings(sample)), _whole(lm, sample)
        real = lm.pad(sample, left=True).mask.bool()
        lm.memo["shares its past"] = shared is not None and all(
            _near(getattr(a, name), getattr(b, name), real)
            for a, b in zip(shared.layers, whole.layers, strict=True)
            for name in ("keys", "values")
        )
    trusted: bool = lm.memo["shares its past"]
    return trusted


def _near(a: torch.Tensor, b: torch.Tensor, real: torch.Tensor) -> bool:
    """Whether keys or values differ by no more than rounding where there are tokens."""
    if a.shape != b.shape:
        return False
    tolerance = 1e-4 if a.dtype == torch.float32 else 0.05
    pads = ~real.to(a.device)[:, None, :, None]
    a, b = (each.float().masked_fill(pads, 0) for each in (a, b))
    return bool((a - b).norm() <= tolerance * b.norm())
