"""Names to things, imported only when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from easyeditor.errors import EasyEditError, did_you_mean


class Registry:
    """A table ``name -> "module:attribute"``; looking a name up imports that module, no other.

    Names are matched without regard to case. An unknown name raises ``error`` with the known
    ones and the nearest.
    """

    def __init__(self, what: str, error: type[EasyEditError], entries: dict[str, str]) -> None:
        self.what = what
        self._error = error
        self._entries = entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def canonical(self, name: str) -> str:
        """The registered spelling of ``name``; imports nothing."""
        for known in self._entries:
            if known.lower() == str(name).lower():
                return known
        raise self._error(
            f"Unknown {self.what} {name!r}.{did_you_mean(str(name), self._entries)} "
            f"Known: {', '.join(self._entries)}."
        )

    def get(self, name: str) -> Any:
        """Import and return what ``name`` stands for."""
        module, _, attribute = self._entries[self.canonical(name)].partition(":")
        return getattr(import_module(module), attribute)
