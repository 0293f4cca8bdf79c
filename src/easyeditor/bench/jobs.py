"""Task chains of a run: the tasks of one chain run in order, chains are independent.

A chain writes the result of a task before it returns the next one, and starts after the tasks that
an earlier process finished.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from easyeditor.bench.config import BenchmarkConfig, CaseRange
from easyeditor.bench.run_dir import EventLog, RunDirectory, finished
from easyeditor.bench.worker import Result, Task
from easyeditor.editors.state_file import load_state, save_state, state_file
from easyeditor.errors import BenchError, PatchFormatError
from easyeditor.methods import METHODS
from easyeditor.methods.base import State
from easyeditor.patches.files import load_patch, save_patch
from easyeditor.patches.patch import Patch

CHUNK = 50
"""Cases the unedited model is asked about at a time; fixed, so that a resumed run asks alike."""


class JobChain(Protocol):
    """Tasks that must run in order."""

    weight: int

    def next(self) -> Task | None:
        """The next task, or None once all are done."""
        ...

    def done(self, task: Task, result: Result) -> None:
        """Record the result of a task."""
        ...


class BaselineJob:
    """Replies of the unedited model to the queries of some cases."""

    def __init__(self, event_log: EventLog, unit: CaseRange) -> None:
        self._event_log, self._unit = event_log, unit
        self.weight = unit.stop - unit.start

    def next(self) -> Task | None:
        """See :class:`JobChain`."""
        known = any(record["chunk"] == self._unit.number for record in self._event_log.records)
        return None if known else Task("before", self._unit)

    def done(self, _task: Task, result: Result) -> None:
        """See :class:`JobChain`."""
        self._event_log.append(result.records)


class IndependentJob:
    """One case range, edited from the unedited model."""

    def __init__(
        self, event_log: EventLog, unit: CaseRange, done: bool, keep: Path | None = None
    ) -> None:
        self._event_log, self._unit, self._keep = event_log, unit, keep
        self._open = not done
        self.weight = unit.stop - unit.start

    def next(self) -> Task | None:
        """See :class:`JobChain`."""
        return Task("edit", self._unit) if self._open else None

    def done(self, _task: Task, result: Result) -> None:
        """See :class:`JobChain`."""
        if self._keep is not None and result.total is not None:
            _keep(result.total, self._keep)
        self._event_log.append(result.records)
        self._open = False


class SequentialJob:
    """A sequence of edits: each range is edited on top of the earlier ones; then all are measured.

    The patch and the method's state are saved before the records of each step, so an interrupted
    run resumes after the last record.

    Raises:
        BenchError: records or the change so far were taken away.
    """

    def __init__(
        self, folder: RunDirectory, event_log: EventLog, label: str, plan: BenchmarkConfig
    ) -> None:
        self._folder, self._event_log, self._label = folder, event_log, label
        self._units = plan.units(label)
        self._whole = CaseRange(label, 0, 0, len(plan.cases))
        done = finished(event_log.records)
        steps = sorted(unit for stage, unit in done if stage == "post")
        self._step = len(steps)
        self._measured = ("final", 0) in done
        if steps != list(range(self._step)) or self._measured > (self._step == len(self._units)):
            raise self._broken(f"{event_log.path} lacks records from its middle")
        self._total: Patch | None = None
        self._state: State | None = None
        failed = [record for record in event_log.records if record.get("error")]
        if self._step and not self._measured and len(failed) < len(event_log.records):
            file = self._file(self._step)
            try:
                self._total = load_patch(file)
                state_class = METHODS.get(plan.methods[label].alg_name).state_class
                self._state = load_state(state_class, self._total, file)
            except PatchFormatError as error:
                raise self._broken(str(error).removesuffix(".")) from None
        for part in event_log.path.parent.glob("*.part"):  # of a process that died
            part.unlink(missing_ok=True)
        _remove(self._file(self._step - 1))
        self.weight = len(plan.cases)

    def _broken(self, why: str) -> BenchError:
        return BenchError(
            f"{why}. A sequence cannot go on without it: delete the folder {self._label} in "
            f"{self._folder.path} to compute this sequence again."
        )

    def _file(self, step: int) -> Path:
        return self._folder.total(self._label, step)

    def next(self) -> Task | None:
        """See :class:`JobChain`."""
        if self._step < len(self._units):
            return Task("edit", self._units[self._step], self._total, self._state)
        return None if self._measured else Task("final", self._whole, self._total, self._state)

    def done(self, task: Task, result: Result) -> None:
        """See :class:`JobChain`."""
        if task.kind == "final":
            self._event_log.append(result.records)
            self._measured = True
            return
        self._total, self._state = result.total, result.state
        if result.total is not None:
            _keep(result.total, self._file(self._step + 1), result.state)
        self._event_log.append(result.records)
        _remove(self._file(self._step))
        self._step += 1


class Downstream:
    """Tasks of lm-evaluation-harness; of the unedited model for an empty label."""

    weight = 1

    def __init__(self, event_log: EventLog, label: str, patch: Path | None) -> None:
        self._event_log, self._patch = event_log, patch
        self._unit = CaseRange(label, 0, 0, 0)

    def next(self) -> Task | None:
        """See :class:`JobChain`."""
        if any(record["label"] == self._unit.label for record in self._event_log.records):
            return None
        if self._patch is None or not self._patch.is_file():  # unedited, or every edit failed
            return Task("downstream", self._unit)
        return Task("downstream", self._unit, load_patch(self._patch))

    def done(self, _task: Task, result: Result) -> None:
        """See :class:`JobChain`."""
        self._event_log.append([{"label": self._unit.label, "tasks": result.records[0]}])


def _remove(file: Path) -> None:
    file.unlink(missing_ok=True)
    state_file(file).unlink(missing_ok=True)


def _keep(patch: Patch, file: Path, state: State | None = None) -> None:
    try:
        save_state(state, patch, file)  # first: a change in its place has its state
        save_patch(patch, file)
    except OSError as error:
        raise BenchError(
            f"The change cannot be written: {error}. Finished cases stay recorded; make room and "
            "start the same command again."
        ) from None


def chunks(plan: BenchmarkConfig) -> list[CaseRange]:
    """Ranges of cases whose queries the unedited model answers together."""
    n = len(plan.cases)
    return [
        CaseRange("", number, start, min(n, start + CHUNK))
        for number, start in enumerate(range(0, n, CHUNK))
    ]
