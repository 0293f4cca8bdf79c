"""Run a plan to its end in a folder, going on from whatever an earlier process finished."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from easyeditor.bench.config import BenchmarkConfig
from easyeditor.bench.jobs import (
    BaselineJob,
    Downstream,
    IndependentJob,
    JobChain,
    SequentialJob,
    chunks,
)
from easyeditor.bench.observations import joined
from easyeditor.bench.run_dir import EventLog, RunDirectory, finished, write_whole
from easyeditor.bench.worker import Worker, check
from easyeditor.evaluate.query import Replies
from easyeditor.lm.model import LM
from easyeditor.progress import bar


class Executor(Protocol):
    """Whoever carries out lines of tasks."""

    def set_baseline(self, before: Replies) -> None:
        """Tell every worker what the unedited model said."""
        ...

    def run(self, lines: Sequence[JobChain], what: str) -> None:
        """Carry out every task of every line."""
        ...


class SerialExecutor:
    """The tasks one after the other, on one model."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def set_baseline(self, before: Replies) -> None:
        """See :class:`Executor`."""
        self._worker.set_baseline(before)

    def run(self, lines: Sequence[JobChain], what: str) -> None:
        """See :class:`Executor`."""
        with bar(sum(line.weight for line in lines), what, "case") as progress:
            for line in lines:
                while (task := line.next()) is not None:
                    line.done(task, self._worker.run_task(task))
                progress.update(line.weight)


def run(lm: LM, plan: BenchmarkConfig, out: str | Path, crew: Executor | None = None) -> Path:
    """Carry out ``plan``; a folder that holds the same run goes on where it stopped.

    Args:
        lm: the unedited model. It is bit-identical afterwards.
        plan: what to do.
        out: the run's folder.
        crew: who works; this process alone by default.

    Raises:
        RunMismatchError: the folder holds a run with other settings.
        RunBusyError: another process works in it.
        BenchError: it cannot be written; what was finished is kept.
        EditError: a case that a method cannot carry out, before any work.
        HyperParamsError: settings that do not fit this model, before any work.
        MissingExtraError: a measure needs a package that is not installed, before any work.
    """
    check(lm, plan)
    working = crew or SerialExecutor(Worker(lm, plan))
    with RunDirectory(out, plan.describe(lm)) as folder:
        asked = [BaselineJob(folder.before, unit) for unit in chunks(plan)]
        working.run(asked, "unedited model")
        working.set_baseline(joined(sorted(folder.before.lines, key=lambda line: line["chunk"])))
        for label in plan.methods:
            event_log = folder.event_log(label)
            if plan.sequential:
                lines: list[JobChain] = [SequentialJob(folder, event_log, label, plan)]
            else:
                kept = folder.total(label, 1) if plan.downstream else None
                done = finished(event_log.lines)
                lines = [
                    IndependentJob(event_log, unit, ("post", unit.number) in done, kept)
                    for unit in plan.units(label)
                ]
            working.run(lines, label)
        if plan.downstream:
            _downstream(folder, plan, working)
        return folder.path


def _downstream(folder: RunDirectory, plan: BenchmarkConfig, working: Executor) -> None:
    event_log = EventLog(folder.path / "downstream.jsonl")
    last = {label: len(plan.units(label)) for label in plan.methods}
    lines = [Downstream(event_log, "", None)]
    lines += [Downstream(event_log, label, folder.total(label, n)) for label, n in last.items()]
    working.run(lines, "downstream tasks")
    found = {line["label"]: line["tasks"] for line in event_log.lines}
    told = {label: {"before": found[""], "after": found[label]} for label in plan.methods}
    write_whole(folder.path / "downstream.json", json.dumps(told, indent=1) + "\n")
