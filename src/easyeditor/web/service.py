"""``Service``: the models that the page offers, and one workspace per browser window."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from easyeditor.bench.run_dir import RUN
from easyeditor.errors import BenchError, ModelLoadError, ServerBusyError
from easyeditor.lm.model import LM
from easyeditor.web.workspace import Workspace

MAX_WINDOWS = 64
"""Browser windows that have edits at once."""


class Service:
    """What all windows share.

    Attributes:
        names: the models that a window may choose from; the first is chosen at the start.
        method: the method that is chosen at the start.
        runs: the folder whose run folders are shown; None: none are.

    Args:
        load: gives the model of a name.
    """

    def __init__(
        self,
        names: Sequence[str],
        load: Callable[[str], LM],
        *,
        method: str,
        runs: Path | None = None,
    ) -> None:
        self.names, self.method, self.runs = tuple(names), method, runs
        self._load = load
        self._models: dict[str, LM] = {}
        self._windows: dict[str, Workspace] = {}
        self._lock = threading.Lock()

    def model(self, name: str) -> LM:
        """The model of that name, loaded once.

        Raises:
            ModelLoadError: the page does not offer it.
        """
        if name not in self.names:
            raise ModelLoadError(
                f"This page does not offer the model {name!r:.80}; it offers "
                f"{', '.join(self.names)}. Start it with --model to offer others."
            )
        with self._lock:
            if name not in self._models:
                self._models[name] = self._load(name)
            return self._models[name]

    def window(self, key: str) -> Workspace:
        """The workspace of a window, made on its first use with the first model."""
        workspace = self._windows.get(key)
        return self.choose(key, self.names[0]) if workspace is None else workspace

    def choose(self, key: str, name: str) -> Workspace:
        """A new workspace for a window; the edits of its former one are gone.

        Raises:
            ModelLoadError: the page does not offer the model.
            ServerBusyError: too many windows are open, or this one is at work.
        """
        lm = self.model(name)
        former = self._windows.get(key)
        if former is None and len(self._windows) >= MAX_WINDOWS:
            raise ServerBusyError(f"{MAX_WINDOWS} windows are open; close one, or try again later.")
        if former is not None:
            with former.working():
                former.close()
        workspace = self._windows[key] = Workspace(lm, name)
        return workspace

    def present(self, key: str) -> Workspace | None:
        """The workspace of a window, if it has one."""
        return self._windows.get(key)

    def forget(self, key: str) -> None:
        """The window was closed."""
        workspace = self._windows.pop(key, None)
        if workspace is not None:
            workspace.close()

    def close(self) -> None:
        """Forget all windows."""
        for key in list(self._windows):
            self.forget(key)

    def run_names(self) -> list[str]:
        """The run folders that are shown, by name."""
        if self.runs is None or not self.runs.is_dir():
            return []
        return sorted(folder.name for folder in self.runs.iterdir() if (folder / RUN).is_file())

    def run_folder(self, name: str) -> Path:
        """The folder of a run.

        Raises:
            BenchError: there is none of that name.
        """
        names = self.run_names()
        if self.runs is None or name not in names:
            raise BenchError(
                f"There is no run {name!r:.80} here; there are {', '.join(names) or 'none'}."
            )
        return self.runs / name
