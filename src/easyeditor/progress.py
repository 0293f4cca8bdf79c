"""Progress of work that takes longer than two seconds: a bar in a terminal, log lines elsewhere.

In a terminal it is tqdm's bar on stderr, with the remaining time. Elsewhere (a pipe, a file) the
logger of this module gets a line at level INFO after two seconds and then every five minutes; the
command line shows it on stderr. Work inside other work writes its first line after thirty seconds,
so that a run of a thousand short edits does not write thousands of lines.

Inside :func:`watched` neither is shown: a function of the caller's is called at every step instead,
and stops the work by raising.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)

DELAY_SECONDS = 2.0
"""How long work has to take before anything is shown."""
NESTED_DELAY_SECONDS = 30.0
"""The same for work inside other work."""
REPEAT_SECONDS = 300.0
"""Between two log lines of one piece of work."""

Watcher = Callable[[str, int, int, str], object]
"""Called with what is done, how many units are done, of how many, and the name of a unit."""

_watcher: ContextVar[Watcher | None] = ContextVar("easyeditor_progress_watcher", default=None)
_depth: ContextVar[int] = ContextVar("easyeditor_progress_depth", default=0)


def bar(total: int, what: str, unit: str = "step", *, done: int = 0, at_once: bool = False) -> Any:
    """A bar over ``total`` units; use it as a context and call ``update(n)``.

    Args:
        total: number of units.
        what: names the work.
        unit: names one unit, in the singular.
        done: units that an earlier, interrupted run has done.
        at_once: show it as the work begins, because one unit may take long.
    """
    watcher = _watcher.get()
    if watcher is not None:
        return WatchedProgress(watcher, total, what, unit, done)
    if sys.stderr is not None and sys.stderr.isatty():
        delay = 0.0 if at_once else DELAY_SECONDS
        return tqdm(total=total, desc=what, unit=unit, initial=done, delay=delay, leave=False)
    return LoggedProgress(total, what, unit, done, at_once=at_once)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Let ``watcher`` be called at every step of the work inside, of this thread.

    An exception that it raises ends the work, which leaves the model as it was
    (:class:`~easyeditor.errors.EditCancelled` says that the user wanted it).
    """
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


class _Progress:
    """The part of tqdm's interface that the package uses.

    Attributes:
        n: units done so far, those of an earlier run included.
        total: number of units.
    """

    def __init__(self, total: int, done: int) -> None:
        self.total, self.n = total, done

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        """``n`` more units are done."""
        self.n += n

    def close(self) -> None:
        """The work is over."""


class WatchedProgress(_Progress):
    """Progress as calls of a function."""

    def __init__(self, watcher: Watcher, total: int, what: str, unit: str, done: int = 0) -> None:
        super().__init__(total, done)
        self._watcher, self._what, self._unit = watcher, what, unit
        watcher(what, done, total, unit)

    def update(self, n: int = 1) -> None:
        """``n`` more units are done."""
        super().update(n)
        self._watcher(self._what, self.n, self.total, self._unit)


class LoggedProgress(_Progress):
    """Progress as log lines."""

    def __init__(
        self, total: int, what: str, unit: str = "step", done: int = 0, *, at_once: bool = False
    ) -> None:
        super().__init__(total, done)
        self._what, self._unit, self._initial = what, unit, done
        self._started = time.monotonic()
        delay = NESTED_DELAY_SECONDS if _depth.get() else DELAY_SECONDS
        self._due = self._started + delay
        self._token: Token[int] | None = None
        if at_once and not _depth.get():
            self._write(self._started)

    def __enter__(self) -> Self:
        # One unit of work, such as a single edit, is described by its parts.
        self._token = _depth.set(_depth.get() + (self.total > 1))
        return self

    def update(self, n: int = 1) -> None:
        """``n`` more units are done."""
        super().update(n)
        now = time.monotonic()
        if now >= self._due:
            self._write(now)

    def close(self) -> None:
        """The work is over."""
        if self._token is not None:
            _depth.reset(self._token)
            self._token = None

    def _write(self, now: float) -> None:
        self._due = now + REPEAT_SECONDS
        done, elapsed = self.n - self._initial, now - self._started
        units = self._unit if self.total == 1 else f"{self._unit}s"
        if done > 0 and self.n < self.total:
            rest = f", about {duration(elapsed / done * (self.total - self.n))} left"
        else:
            rest = ""
        log.info("%s: %d of %d %s%s", self._what, self.n, self.total, units, rest)


def duration(seconds: float) -> str:
    """A rough length of time in words: ``45 s``, ``18 min``, ``2.5 h``."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
