"""Declared caches of what was computed once for a model: who owns each and how long it is valid.

A cache is a module-level constant of the module that fills it. Its entries hang on an ``LM``, the
encoder's and the decoder's blocks of one model apart, so they go with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from torch import nn

K = TypeVar("K")
V = TypeVar("V")


class CacheStore:
    """The entries of all declared caches for one column of blocks of a model."""

    def __init__(self) -> None:
        self._entries: dict[LMCache[Any, Any], tuple[object, dict[Any, Any]]] = {}

    def entries(self, cache: LMCache[K, V], version: object) -> dict[K, V]:
        """The entries of ``cache`` for ``version``; those of another version are dropped."""
        stored = self._entries.get(cache)
        if stored is None or stored[0] != version:
            stored = self._entries[cache] = (version, {})
        return stored[1]

    def clear(self) -> None:
        """Drop every entry of every cache."""
        self._entries.clear()


class LMCache(Generic[K, V]):
    """A dictionary per ``LM``.

    Args:
        content: what an entry is, and what its key is.
        version: of the model, the state for which entries are valid: where it has changed, they
            are dropped. None: they are valid as long as the ``LM``, because they depend on the
            architecture, or on weights that are never replaced under an ``LM``.
    """

    def __init__(self, content: str, version: Callable[[nn.Module], object] | None = None) -> None:
        self.content = content
        self._version = version

    def __call__(self, lm: Any) -> dict[K, V]:
        """The valid entries for ``lm``; put new ones into it."""
        store: CacheStore = lm.caches
        return store.entries(self, None if self._version is None else self._version(lm.model))
