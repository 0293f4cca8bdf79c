"""KV cache for a batch of prefixes; a prefix that several rows share is computed once.

The edits of a batch follow the same sampled contexts: with a hundred edits each context is a prefix
of a hundred sequences.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise, takewhile
from typing import Any

import torch

from easyeditor.lm.caches import LMCache
from easyeditor.lm.forward.context import forward_generation
from easyeditor.lm.forward.prefix_cache import Prefix, prefill, unread
from easyeditor.lm.image_tokens import whole_units
from easyeditor.lm.model import LM

log = logging.getLogger(__name__)

SHARES_PREFIXES: LMCache[tuple[()], bool] = LMCache(
    "whether two passes, shared prefixes and rests, give the cache of one", forward_generation
)

Ids = tuple[int, ...]
MIN_SHARED_TOKENS = 4
"""Minimum length of a common prefix."""
MIN_SHARED_RATIO = 0.5
"""Minimum length of a common prefix, relative to the neighbouring group's: two contexts that happen
to begin alike would leave nearly all of both to be run row by row."""
MAX_TOKEN_RATIO = 0.75
"""Two passes are made if they run at most this share of the tokens of one plain pass."""


def past_of(lm: LM, sequences: Sequence[Ids]) -> Any:
    """The model's cache after one pass of these sequences, padded on the left.

    Shared prefixes are run once if that saves enough and if a comparison, once per model, has shown
    that it gives the keys and values of the plain pass.
    """
    heads, head_of_row = shared_prefixes(sequences)
    longest = max(map(len, sequences))
    rest = max(len(ids) - len(heads[i]) for ids, i in zip(sequences, head_of_row, strict=True))
    tokens = len(heads) * max(map(len, heads)) + len(sequences) * rest
    if tokens <= MAX_TOKEN_RATIO * len(sequences) * longest and _trusted(
        lm, sequences, heads, head_of_row
    ):
        return _shared(lm, sequences, heads, head_of_row)
    return prefill(lm, sequences)


def shared_prefixes(sequences: Sequence[Ids]) -> tuple[list[Ids], list[int]]:
    """``(prefixes, index of each sequence's prefix)``.

    A sequence that shares nothing is its own prefix. A prefix of several sequences leaves at least
    one token of one of them: the second pass needs a token to run.
    """
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    ordered = [sequences[i] for i in order]
    after = [*(_common(a, b) for a, b in pairwise(ordered)), 0]
    heads: list[Ids] = []
    head_of_row = [0] * len(sequences)
    several = False  # whether the last prefix belongs to several sequences
    for i, ids, next_common in zip(order, ordered, after, strict=True):
        common = _common(heads[-1], ids[:-1]) if heads else 0
        several_share = max(next_common, len(heads[-1]) if several else 0)
        if common >= max(MIN_SHARED_TOKENS, MIN_SHARED_RATIO * several_share):
            heads[-1], several = heads[-1][:common], True
        else:
            heads.append(ids)
            several = False
        head_of_row[i] = len(heads) - 1
    return heads, head_of_row


def _common(a: Ids, b: Ids) -> int:
    n = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
    return whole_units(a, n)


def _shared(
    lm: LM, sequences: Sequence[Ids], heads: Sequence[Ids], head_of_row: Sequence[int]
) -> Any:
    """The cache by two passes, prefixes and rests; None if it is not one of all keys and values."""
    prefix = Prefix(lm, *heads)
    if not prefix.usable:
        return None
    rests = [ids[len(heads[i]) :] for ids, i in zip(sequences, head_of_row, strict=True)]
    with unread(lm):
        cache = prefix.call(rests, head_of_row).past_key_values
    # A row is padded left of its prefix and right of its rest: rotated until all is on the left.
    rest = max(map(len, rests))
    width, longest = prefix.length + rest, max(map(len, sequences))
    over = torch.tensor([rest - len(tokens) for tokens in rests])
    index = (torch.arange(width - longest, width)[None] - over[:, None]) % width
    for layer in cache.layers:
        at = index[:, None, :, None].to(layer.keys.device)
        layer.keys = torch.take_along_dim(layer.keys, at, 2)
        layer.values = torch.take_along_dim(layer.values, at, 2)
    return cache


def _trusted(
    lm: LM, sequences: Sequence[Ids], heads: Sequence[Ids], head_of_row: Sequence[int]
) -> bool:
    """Whether two passes give the cache of one; compared once per model, on padded rows.

    A batch without padding proves nothing, so it is run in one pass unless another has proved it.
    """
    agreement = SHARES_PREFIXES(lm)
    if () not in agreement:
        sample = _padded(sequences, heads, head_of_row)
        if sample is None:
            return False
        shared, plain = _shared(lm, sample, *shared_prefixes(sample)), prefill(lm, sample)
        real = lm.pad(sample, left=True).mask.bool()
        agree = shared is not None and all(
            _near(getattr(a, name), getattr(b, name), real)
            for a, b in zip(shared.layers, plain.layers, strict=True)
            for name in ("keys", "values")
        )
        agreement[()] = agree
        if not agree:
            log.info("%s shares no prefixes in a batch", type(lm.model).__name__)
    return agreement[()]


def _padded(
    sequences: Sequence[Ids], heads: Sequence[Ids], head_of_row: Sequence[int]
) -> list[Ids] | None:
    """Two sequences of one prefix and two lengths, and one with a prefix of another length."""
    most = max(head_of_row, key=head_of_row.count)
    alike = sorted(
        (ids for ids, i in zip(sequences, head_of_row, strict=True) if i == most), key=len
    )
    length = len(heads[most])
    other = max(heads, key=lambda head: abs(len(head) - length))
    if len(alike[0]) == len(alike[-1]) or len(other) == length:
        return None
    return [alike[0], alike[-1], other]


def _near(a: torch.Tensor, b: torch.Tensor, real: torch.Tensor) -> bool:
    """Whether keys or values differ by no more than rounding, padding left out."""
    if a.shape != b.shape:
        return False
    tolerance = 1e-4 if a.dtype == torch.float32 else 0.05
    pads = ~real.to(a.device)[:, None, :, None]
    a, b = (states.float().masked_fill(pads, 0) for states in (a, b))
    return bool((a - b).norm() <= tolerance * b.norm())
