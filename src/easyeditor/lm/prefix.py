"""Long beginnings that several token sequences share are run once; their keys and values stay."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicLayer

from easyeditor.lm.hooks import gathering
from easyeditor.lm.scoring import Passage, cut
from easyeditor.lm.tokens import Batch

if TYPE_CHECKING:
    from easyeditor.lm.model import LM

LEAST = 48
"""Tokens that a shared beginning must have to be worth a pass of its own."""
BUDGET = 8192
"""Tokens whose keys and values are held at once, the shared ones once per row."""


class Prefix:
    """The beginning of some sequences, run once; or None of it where the model cannot resume.

    Attributes:
        length: in tokens.
    """

    def __init__(self, lm: LM, ids: Sequence[int]) -> None:
        self._lm, self.length = lm, len(ids)
        zero = torch.zeros(1, dtype=torch.long)
        with gathering(lm.head, zero, zero):
            cache = lm.call(lm.pad([ids]), use_cache=True).past_key_values
        layers = getattr(cache, "layers", None)
        # Recurrent states and windows cannot be handed to several rows like this.
        self.usable = bool(layers) and all(type(each) is DynamicLayer for each in layers or ())
        self._cache = cache if self.usable else None

    def call(self, rests: Sequence[Sequence[int]]) -> Any:
        """One forward pass of what follows the beginning in each row."""
        lm, n = self._lm, len(rests)
        rest = lm.pad(rests)
        before = rest.mask.new_ones(n, self.length)
        batch = Batch(rest.ids, torch.cat([before, rest.mask], 1), rest.positions + self.length)
        cache = copy.copy(self._cache)
        assert cache is not None
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in cache.layers:
            layer.keys = layer.keys.expand(n, -1, -1, -1)
            layer.values = layer.values.expand(n, -1, -1, -1)
        return lm.call(batch, past_key_values=cache, use_cache=True)


def groups(plan: Sequence[Passage], whose: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """``(length of the shared beginning, passages)``: every passage once, the unshared under 0.

    A passage's reads lie behind what it shares.
    """
    alike: dict[Any, list[int]] = defaultdict(list)
    for i, passage in enumerate(plan):
        start = passage.ids[:LEAST] if passage.reads[0] >= LEAST else ()
        alike[(whose[i], start) if len(start) == LEAST else None].append(i)
    alone = alike.pop(None, [])
    for own in alike.values():
        if len(own) == 1:
            alone += own
            continue
        rows = zip(*(plan[i].ids for i in own), strict=False)
        shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, rows))
        yield min(shared, *(plan[i].reads[0] for i in own)), own
    if alone:
        yield 0, sorted(alone)


def cut_after(plan: Sequence[Passage], own: Sequence[int], shared: int) -> Iterator[list[int]]:
    """Chunks of passages that run together after a shared beginning."""
    lengths = [len(plan[i].ids) for i in own]
    for chunk in cut(lengths, [0] * len(own), max(BUDGET, shared), 1):
        yield [own[k] for k in chunk]
