"""``Service``: the models that the page offers, and one workspace per browser window."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from easyeditor.bench.run_dir import RUN
from easyeditor.errors import BenchError, ModelLoadError, ServerBusyError
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.model import LM
from easyeditor.web.archives import Archives, archive_of, usual_place
from easyeditor.web.settings import offered, settings_of, untrained
from easyeditor.web.workspace import Workspace

MAX_WINDOWS = 64
"""Browser windows that have edits at once."""
MAX_MODELS = 3
"""Models in memory at once."""


class Service:
    """What all windows share.

    Attributes:
        names: the models that a window may choose from; the first is chosen at the start.
        method: the method that is chosen at the start.
        runs: the folder whose run folders are shown; None: none are.
        archives: of the trained methods that are offered.

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
        archives: Archives | None = None,
    ) -> None:
        self.names, self.method, self.runs = tuple(names), method, runs
        self.archives = dict(archives or {})
        self._load = load
        self._models: dict[str, LM] = {}
        self._windows: dict[str, Workspace] = {}
        self._lock = threading.Lock()

    def model(self, name: str) -> LM:
        """The model of that name; the last :data:`MAX_MODELS` that were asked for are kept.

        Raises:
            ModelLoadError: the page does not offer it.
            ServerBusyError: it is not loaded, and windows use as many others as are kept.
        """
        if name not in self.names:
            raise ModelLoadError(
                f"This page does not offer the model {name!r:.80}; it offers "
                f"{', '.join(self.names)}. Start it with --model to offer others."
            )
        with self._lock:
            if name not in self._models:
                self._make_room(name)
                self._models[name] = self._load(name)
            lm = self._models[name] = self._models.pop(name)  # the latest is the last
            return lm

    def _make_room(self, name: str) -> None:
        """Drop the model that was not asked for the longest, of those that no window uses."""
        used = {workspace.name for workspace in list(self._windows.values())}
        free = [other for other in self._models if other not in used]
        if len(self._models) < MAX_MODELS:
            return
        if not free:
            raise ServerBusyError(
                f"{MAX_MODELS} models are in use, and no more are kept in memory; choose one of "
                f"{', '.join(self._models)}, or load {name!r:.80} when a window was closed."
            )
        del self._models[free[0]]

    def methods(self) -> list[str]:
        """The methods that are offered: those that edit at once, and those with an archive."""
        return [*offered(), *dict.fromkeys(method for method, _ in self.archives)]

    def missing(self) -> list[str]:
        """The methods that would be offered if they had been trained."""
        return [method for method in untrained() if method not in self.methods()]

    def settings(self, method: str, model: str, changes: dict[str, Any]) -> HyperParams:
        """The settings of a method for a model, with its archive where it needs one.

        Raises:
            ArchiveError: there is no archive for the model.
            HyperParamsError: an impossible value.
        """
        if method in untrained():
            changes = {**changes, "archive": str(archive_of(self.archives, method, model))}
        return settings_of(method, model, changes)

    def shown(self, method: str, model: str, changes: dict[str, Any]) -> dict[str, Any]:
        """The changes as code outside of the page writes them: with the archive's usual place."""
        if method not in untrained():
            return changes
        return {**changes, "archive": str(usual_place(method, model))}

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
