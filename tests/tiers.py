"""Which families the fast tier tries, and marks for the others."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest

STRUCTURAL = {
    "llama": "linear layers",
    "gpt2": "Conv1D",
    "opt": "a flat MLP",
    "bloom": "the residual added in the MLP",
    "gemma2": "a norm after the MLP",
    "mistral": "a sliding window",
    "gptj": "attention and MLP in parallel",
    "t5": "encoder and decoder",
}
"""One family of each structure: what an edit meets on the others it meets on one of these."""


def tiered(values: Iterable[Any], fast: Container[Any] = STRUCTURAL) -> list[Any]:
    """Values for ``parametrize``; those that are not in ``fast`` are of the slow tier."""
    return [value if value in fast else slow(value) for value in values]


def by_turn(number: int, family: str) -> bool:
    """Whether the fast tier tries the ``number``-th method on a structure: on half of them.

    The next method is tried on the other half, so that the fast tier meets every structure with
    every kind of method; the slow tier tries all on all.
    """
    return (number + list(STRUCTURAL).index(family)) % 2 == 0


def paired(names: Iterable[Any], ways: Iterable[Any]) -> list[Any]:
    """All pairs; of each name the fast tier has one, with the ways in turn."""
    ways = list(ways)
    return [
        (name, way) if number % len(ways) == i else slow((name, way))
        for number, name in enumerate(names)
        for i, way in enumerate(ways)
    ]


def slow(value: Any) -> Any:
    """The value, or the values of several names, as one parameter of the slow tier."""
    several = value if isinstance(value, tuple) else (value,)
    return pytest.param(*several, marks=pytest.mark.slow)
