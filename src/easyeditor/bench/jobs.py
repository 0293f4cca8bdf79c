"""What depends on what in a run: lines of tasks, each task of a line after the one before it.

Lines are independent, so any number of workers may take them. A line writes what its tasks
brought before it hands out the next, and starts behind what was finished by an earlier process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from easyeditor.bench.config import BenchmarkConfig, CaseRange
from easyeditor.bench.run_dir import EventLog, RunDirectory, finished
from easyeditor.bench.worker import Result, Task
from easyeditor.errors import BenchError, PatchFormatError
from easyeditor.patches.files import load_patch, save_patch
from easyeditor.patches.patch import Patch

CHUNK = 50
"""Cases the unedited model is asked about at a time; fixed, so that a resumed run asks alike."""


class JobChain(Protocol):
    """Tasks that must follow each other."""

    weight: int

    def next(self) -> Task | None:
        """The next task, or None once all are done."""
        ...

    def done(self, task: Task, result: Result) -> None:
        """Keep what a task brought."""
        ...


class BaselineJob:
    """One chunk of what the unedited model says."""

    def __init__(self, event_log: EventLog, unit: CaseRange) -> None:
        self._journal, self._unit = event_log, unit
        self.weight = unit.stop - unit.start

    def next(self) -> Task | None:
        """See :class:`JobChain`."""
        known = any(line["chunk"] == self._unit.number for line in self._journal.lines)
        return None if known else Task("before", self._unit)

    def done(self, _task: Task, result: Result) -> None:
        """See :class:`JobChain`."""
        self._journal.append(result.records)


class IndependentJob:
    """One unit that is edited from the unedited model."""

    def __init__(
        self, event_log: EventLog, unit: CaseRange, done: bool, keep: Path | None = None
    ) -> None:
        self._journal, self._unit, self._keep = event_log, unit, keep
        self._open = not done
        self.weight = unit.stop - unit.start

    def next(self) -> Task | None:
        """See :class:`JobChain`."""
        return Task("edit", self._unit) if self._open else None

    def done(self, _task: Task, result: Result) -> None:
        """See :class:`JobChain`."""
        if self._keep is not None and result.total is not None:
            _keep(result.total, self._keep)
        self._journal.append(result.records)
        self._open = False


class SequentialJob:
    """A sequence: every unit on top of those before it, then everything is measured again.

    The change so far is saved before the records of its last step, so whatever is recorded can be
    gone on from.

    Raises:
        BenchError: records or the change so far were taken away.
    """

    def __init__(
        self, folder: RunDirectory, event_log: EventLog, label: str, plan: BenchmarkConfig
    ) -> None:
        self._folder, self._journal, self._label = folder, event_log, label
        self._units = plan.units(label)
        self._whole = CaseRange(label, 0, 0, len(plan.cases))
        done = finished(event_log.lines)
        steps = sorted(unit for stage, unit in done if stage == "post")
        self._step = len(steps)
        self._measured = ("final", 0) in done
        if steps != list(range(self._step)) or self._measured > (self._step == len(self._units)):
            raise self._broken(f"{event_log.path} lacks records from its middle")
        self._total: Patch | None = None
        failed = [line for line in event_log.lines if line.get("error")]
        if self._step and not self._measured and len(failed) < len(event_log.lines):
            try:
                self._total = load_patch(self._file(self._step))
            except PatchFormatError as error:
                raise self._broken(str(error).removesuffix(".")) from None
        for left in (*event_log.path.parent.glob("*.part"), self._file(self._step - 1)):
            left.unlink(missing_ok=True)  # of a process that died
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
            return Task("edit", self._units[self._step], self._total)
        return None if self._measured else Task("final", self._whole, self._total)

    def done(self, task: Task, result: Result) -> None:
        """See :class:`JobChain`."""
        if task.kind == "final":
            self._journal.append(result.records)
            self._measured = True
            return
        self._total = result.total
        if result.total is not None:
            _keep(result.total, self._file(self._step + 1))
        self._journal.append(result.records)
        self._file(self._step).unlink(missing_ok=True)
        self._step += 1


class Downstream:
    """Tasks of lm-evaluation-harness; of the unedited model for an empty label."""

    weight = 1

    def __init__(self, event_log: EventLog, label: str, patch: Path | None) -> None:
        self._journal, self._patch = event_log, patch
        self._unit = CaseRange(label, 0, 0, 0)

    def next(self) -> Task | None:
        """See :class:`JobChain`."""
        if any(line["label"] == self._unit.label for line in self._journal.lines):
            return None
        if self._patch is None or not self._patch.is_file():  # unedited, or every edit failed
            return Task("downstream", self._unit)
        return Task("downstream", self._unit, load_patch(self._patch))

    def done(self, _task: Task, result: Result) -> None:
        """See :class:`JobChain`."""
        self._journal.append([{"label": self._unit.label, "tasks": result.records[0]}])


def _keep(patch: Patch, file: Path) -> None:
    try:
        save_patch(patch, file)
    except OSError as error:
        raise BenchError(
            f"What was changed cannot be kept: {error}. What was finished is; make room and start "
            "the same command again."
        ) from None


def chunks(plan: BenchmarkConfig) -> list[CaseRange]:
    """The unedited model's share of the work."""
    n = len(plan.cases)
    return [
        CaseRange("", number, start, min(n, start + CHUNK))
        for number, start in enumerate(range(0, n, CHUNK))
    ]
