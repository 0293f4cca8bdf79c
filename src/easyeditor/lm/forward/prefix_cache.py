"""Prefix caching: a long prefix that several token sequences share is run once.

Its keys and values are replicated for every row; only the tokens after it are run per row. (Batches
of *different* prefixes, some of them shared: :mod:`easyeditor.lm.forward.shared_prefix`.)
"""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import takewhile
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from easyeditor.lm.forward.batching import ScoredSequence, batches_by_length
from easyeditor.lm.hooks import gathering
from easyeditor.lm.image_tokens import whole_units
from easyeditor.lm.model import LM

MIN_PREFIX_TOKENS = 48
"""Shorter shared prefixes do not pay for a separate pass."""
CACHED_TOKENS = 8192
"""Tokens whose keys and values are in memory at once; shared ones count once per row."""


def takes_cache(model: PreTrainedModel) -> bool:
    """Whether the model's forward pass takes ``past_key_values``; Mamba's state is another."""
    return "past_key_values" in inspect.signature(model.forward).parameters


def prefill(
    lm: LM, sequences: Sequence[Sequence[int]], patch_of_row: Sequence[int] | None = None
) -> Any:
    """The model's cache after one pass of these sequences, padded on the left; no logits.

    None where the model has no such cache.
    """
    if not takes_cache(lm.model):
        return None
    with unread(lm):
        batch = lm.pad(sequences, left=True)
        out = lm.call(batch, patch_of_row=patch_of_row, use_cache=True)
    return getattr(out, "past_key_values", None)


def unread(lm: LM) -> AbstractContextManager[None]:
    """A context for passes that only fill a cache: logits of a single token are computed."""
    zero = torch.zeros(1, dtype=torch.long)
    return gathering(lm.head, zero, zero)


class Prefix:
    """The key/value cache of one or several prefixes, to be continued by any number of rows.

    Attributes:
        length: tokens of the longest prefix.
        usable: whether the model has a plain key/value cache; recurrent states and sliding
            windows cannot be replicated for several rows.
    """

    def __init__(
        self,
        lm: LM,
        *prefixes: Sequence[int],
        patch_of_row: Sequence[int] | None = None,
    ) -> None:
        self._lm, self._prefixes = lm, [tuple(prefix) for prefix in prefixes]
        self.length = max(map(len, prefixes))
        cache = prefill(lm, prefixes, patch_of_row)
        layers = cache.layers if type(cache) is DynamicCache else ()
        plain = all(type(layer) is DynamicLayer and layer.is_initialized for layer in layers)
        self.usable = bool(layers) and plain
        self._cache = cache if self.usable else None

    def call(
        self,
        rests: Sequence[Sequence[int]],
        prefix_of_row: Sequence[int] = (),
        *,
        patch_of_row: Sequence[int] | None = None,
    ) -> Any:
        """One forward pass of the tokens after the prefix in each row.

        Args:
            rests: the tokens after the prefix.
            prefix_of_row: which prefix each row follows; by default all follow the first.
            patch_of_row: as in :meth:`LM.call`.
        """
        lm, n = self._lm, len(rests)
        rows = torch.tensor(prefix_of_row or [0] * n, device=lm.device)
        past = [self._prefixes[i] for i in rows.tolist()]
        batch = lm.pad_after(past, rests, width=self.length)
        cache = copy.copy(self._cache)
        assert cache is not None
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in cache.layers:
            layer.keys, layer.values = (
                states.expand(n, -1, -1, -1) if len(states) == 1 else states[rows.to(states.device)]
                for states in (layer.keys, layer.values)
            )
        return lm.call(batch, patch_of_row=patch_of_row, past_key_values=cache, use_cache=True)


def shared_prefix_groups(
    plan: Sequence[ScoredSequence], patch_of: Sequence[int] | None = None
) -> Iterator[tuple[int, list[int]]]:
    """Groups ``(shared prefix length, indices)``; sequences that share nothing have length 0.

    Every sequence is in one group. No position that is read lies in the shared prefix, and
    sequences with different patches share nothing.
    """
    alike: dict[Any, list[int]] = defaultdict(list)
    for i, sequence in enumerate(plan):
        long = sequence.positions[0] >= MIN_PREFIX_TOKENS
        start = sequence.ids[:MIN_PREFIX_TOKENS] if long else ()
        patch = 0 if patch_of is None else patch_of[i]
        alike[(patch, start) if len(start) == MIN_PREFIX_TOKENS else None].append(i)
    alone = alike.pop(None, [])
    for members in alike.values():
        if len(members) == 1:
            alone += members
            continue
        columns = zip(*(plan[i].ids for i in members), strict=False)
        shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        shared = min(shared, *(plan[i].positions[0] for i in members))
        shared = whole_units(plan[members[0]].ids, shared)
        if shared:
            yield shared, members
        else:
            alone += members
    if alone:
        yield 0, sorted(alone)


def batches_after_prefix(
    plan: Sequence[ScoredSequence], members: Sequence[int], shared: int
) -> Iterator[list[int]]:
    """Batches of sequences that run together after a shared prefix."""
    lengths = [len(plan[i].ids) for i in members]
    for chunk in batches_by_length(lengths, [0] * len(members), max(CACHED_TOKENS, shared), 1):
        yield [members[k] for k in chunk]
