"""Compares tokenizers: same vocabulary, same ids, same segmentation of sample texts."""

from __future__ import annotations

import hashlib
import json
from typing import Any

SAMPLE = (
    "The Eiffel Tower is in the city of Paris; 3,141 people said: «Größe, façade, naïve» — and "
    "don't you know?\n  New lines, two spaces, 东京 and Δx = 0.5e-3 count, too."
)
"""Text that tokenizers with one vocabulary but other rules segment differently."""


def differences(one: Any, other: Any) -> str:
    """How ``other`` differs from ``one``, or an empty string.

    Special tokens do not count: GPT-J's tokenizer is GPT-2's with 143 more of them.
    """
    mine, its = _ordinary(one), _ordinary(other)
    if mine != its:
        shared = len(mine.items() & its.items())
        return f"{len(mine)} and {len(its)} ordinary tokens, of which {shared} are the same"
    if _cut(one) != _cut(other):
        return "the same vocabulary, but they cut text in other places"
    return ""


def signature(tokenizer: Any) -> str:
    """A digest that is equal for tokenizers without :func:`differences`."""
    result = [sorted(_ordinary(tokenizer).items()), _cut(tokenizer)]
    return hashlib.sha256(json.dumps(result).encode()).hexdigest()[:16]


def largest(tokenizer: Any) -> int:
    """The highest number of an ordinary token."""
    return max(_ordinary(tokenizer).values(), default=0)


def _ordinary(tokenizer: Any) -> dict[str, int]:
    special = set(tokenizer.get_added_vocab())
    return {t: int(i) for t, i in tokenizer.get_vocab().items() if t not in special}


def _cut(tokenizer: Any) -> list[int]:
    return list(tokenizer(SAMPLE, add_special_tokens=False)["input_ids"])
