"""Names to things, imported only when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from typing import Generic, TypeVar, cast

from easyeditor.errors import EasyEditError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """A table ``name -> "module:attribute"``; looking a name up imports that module, no other.

    ``T`` is the type of the entries (``Registry[type[Method[Any]]]``). Names are matched without
    regard to case. An unknown name raises ``error`` with the known ones and the nearest. Installed
    packages add entries by an entry point of ``group`` in their ``pyproject.toml``, other code by
    :meth:`add`.
    """

    def __init__(
        self,
        what: str,
        error: type[EasyEditError],
        entries: dict[str, str],
        group: str | None = None,
    ) -> None:
        self.what = what
        self._error = error
        self._entries = entries
        self._group = group

    def __iter__(self) -> Iterator[str]:
        self._read_entry_points()
        return iter(self._entries)

    @property
    def built_in(self) -> tuple[str, ...]:
        """The names that are known without asking other installed packages."""
        return tuple(self._entries)

    def _read_entry_points(self) -> None:
        group, self._group = self._group, None
        for point in entry_points(group=group) if group else ():
            self._entries.setdefault(point.name, point.value)

    def add(self, name: str, entry: str) -> None:
        """Register ``"module:attribute"`` under ``name``, for code outside this package.

        Raises:
            EasyEditError: of the registry's class: another entry has this name, or ``entry`` is
                not of the form ``module:attribute``.
        """
        known = {key.lower(): key for key in self._entries}.get(name.lower())
        if known is not None and self._entries[known] != entry:
            raise self._error(
                f"The {self.what} {known!r} is registered already, as {self._entries[known]}. "
                "Choose another name."
            )
        if not all(entry.partition(":")):
            raise self._error(
                f"The {self.what} {name!r} is registered as {entry!r}; write it as "
                "'package.module:ClassName'."
            )
        self._entries[known or name] = entry

    def canonical(self, name: str) -> str:
        """The registered spelling of ``name``; imports nothing."""
        for known in self:
            if known.lower() == str(name).lower():
                return known
        raise self._error(
            f"Unknown {self.what} {name!r}.{did_you_mean(str(name), self._entries)} "
            f"Known: {', '.join(self._entries)}."
        )

    def get(self, name: str) -> T:
        """Import and return what ``name`` stands for."""
        module, _, attribute = self._entries[self.canonical(name)].partition(":")
        return cast(T, getattr(import_module(module), attribute))
