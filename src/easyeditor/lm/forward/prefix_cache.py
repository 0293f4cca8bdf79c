"""Long beginnings that several token sequences share are run once; their keys and values stay."""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from easyeditor.lm.forward.batching import ScoredSequence, batches_by_length
from easyeditor.lm.hooks import gathering
from easyeditor.lm.tokens import Batch

if TYPE_CHECKING:
    from easyeditor.lm.model import LM

LEAST = 48
"""Tokens that a shared beginning must have to be worth a pass of its own."""
BUDGET = 8192
"""Tokens whose keys and values are held at once, the shared ones once per row."""


def takes_cache(model: PreTrainedModel) -> bool:
    """Whether the model's forward pass takes ``past_key_values``; Mamba's has another state."""
    return "past_key_values" in inspect.signature(model.forward).parameters


def prefill(lm: LM, sequences: Sequence[Sequence[int]]) -> Any:
    """The model's cache after one pass of these sequences, padded on the left; no logits.

    None where the model has no such cache.
    """
    if not takes_cache(lm.model):
        return None
    with unread(lm):
        out = lm.call(lm.pad(sequences, left=True), use_cache=True)
    return getattr(out, "past_key_values", None)


def unread(lm: LM) -> AbstractContextManager[None]:
    """Inside, a pass computes the logits of one token alone: they are not what it is run for."""
    zero = torch.zeros(1, dtype=torch.long)
    return gathering(lm.head, zero, zero)


class Prefix:
    """Beginnings of sequences, run once; unusable where the model cannot hand them on.

    Attributes:
        length: in tokens; of the longest.
    """

    def __init__(self, lm: LM, *shared_prefixes: Sequence[int]) -> None:
        self._lm, self._mask = lm, lm.pad(shared_prefixes, left=True).mask
        self.length = self._mask.shape[1]
        cache = prefill(lm, shared_prefixes)
        layers = cache.layers if type(cache) is DynamicCache else ()
        # Recurrent states and windows cannot be handed to several rows like this.
        plain = all(type(each) is DynamicLayer and each.is_initialized for each in layers)
        self.usable = bool(layers) and plain
        self._cache = cache if self.usable else None

    def call(self, rests: Sequence[Sequence[int]], whose: Sequence[int] = ()) -> Any:
        """One forward pass of what follows in each row.

        Row i follows the beginning ``whose[i]``; without ``whose`` all follow the first.
        """
        lm, n, before = self._lm, len(rests), self._mask
        rest, rows = lm.pad(rests), torch.tensor(whose or [0] * len(rests), device=lm.device)
        past = before[rows].sum(1)
        mask = torch.cat([before[rows], rest.mask], 1)
        batch = Batch(rest.ids, mask, rest.positions + past[:, None])
        cache = copy.copy(self._cache)
        assert cache is not None
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in cache.layers:
            layer.keys, layer.values = (
                each.expand(n, -1, -1, -1) if len(each) == 1 else each[rows.to(each.device)]
                for each in (layer.keys, layer.values)
            )
        return lm.call(batch, past_key_values=cache, use_cache=True)


def groups(plan: Sequence[ScoredSequence], whose: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """``(shared prefix length, indices)`` of every sequence once; the unshared under 0.

    A passage's reads lie behind what it shares.
    """
    alike: dict[Any, list[int]] = defaultdict(list)
    for i, passage in enumerate(plan):
        start = passage.ids[:LEAST] if passage.positions[0] >= LEAST else ()
        alike[(whose[i], start) if len(start) == LEAST else None].append(i)
    alone = alike.pop(None, [])
    for own in alike.values():
        if len(own) == 1:
            alone += own
            continue
        rows = zip(*(plan[i].ids for i in own), strict=False)
        shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, rows))
        yield min(shared, *(plan[i].positions[0] for i in own)), own
    if alone:
        yield 0, sorted(alone)


def cut_after(
    plan: Sequence[ScoredSequence], own: Sequence[int], shared: int
) -> Iterator[list[int]]:
    """Chunks of passages that run together after a shared beginning."""
    lengths = [len(plan[i].ids) for i in own]
    for chunk in batches_by_length(lengths, [0] * len(own), max(BUDGET, shared), 1):
        yield [own[k] for k in chunk]
