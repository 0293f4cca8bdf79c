"""``Task``: work in a thread of its own that says how far it is and can be cancelled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from easyeditor.errors import EditCancelled
from easyeditor.progress import watched

T = TypeVar("T")
STEP_SECONDS = 0.25
"""Between two looks at how far the work is."""


class Task(Generic[T]):
    """One piece of work, started at once.

    It is cancelled at the next step of any progress bar inside it, by an :class:`EditCancelled`
    that is raised there; what it had changed of a model is put back as after any error.

    Args:
        work: what is done; its result, or its error, is what :meth:`result` gives.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._result: T | None = None
        self._error: BaseException | None = None
        self._cancelled = threading.Event()
        self._done = threading.Event()
        self._progress = ""
        self._thread = threading.Thread(target=self._run, name="easyedit-task", daemon=True)
        self._thread.start()

    @property
    def progress(self) -> str:
        """What is done now, as ``"optimising values: 12 of 20 steps"``; empty at first."""
        return self._progress

    def cancel(self) -> None:
        """Stop the work at its next step; nothing happens if it is done."""
        self._cancelled.set()

    def wait(self) -> None:
        """Until the work is done, or has stopped."""
        self._done.wait()

    def updates(self) -> Iterator[str]:
        """:attr:`progress` several times a second, until the work is done."""
        while not self._done.wait(STEP_SECONDS):
            yield self._progress

    def result(self) -> T:
        """What the work gave; waits for it.

        Raises:
            EditCancelled: it was cancelled before its end.
        """
        self._done.wait()
        if self._error is not None:
            raise self._error
        result: T = self._result  # type: ignore[assignment]
        return result

    def _run(self) -> None:
        try:
            with watched(self._step):
                self._result = self._work()
        except BaseException as error:  # of any type: the caller's thread raises it
            self._error = error
        finally:
            self._done.set()

    def _step(self, what: str, n: int, total: int, unit: str) -> None:
        if self._cancelled.is_set():
            raise EditCancelled("Cancelled. The model is as it was.")
        if total > 1 or not self._progress:
            units = unit if total == 1 else f"{unit}s"
            self._progress = f"{what}: {min(n, total)} of {total} {units}"
