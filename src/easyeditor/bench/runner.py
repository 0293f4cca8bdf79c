"""Runs a benchmark in a folder and resumes after what an earlier process finished."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

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
from easyeditor.bench.worker import Result, Task, Worker, check
from easyeditor.evaluate.query import Replies
from easyeditor.lm.model import LM
from easyeditor.progress import bar


class Executor(Protocol):
    """Executes task chains."""

    def set_baseline(self, before: Replies) -> None:
        """Give every worker the replies of the unedited model."""
        ...

    def run(self, chains: Sequence[JobChain], what: str) -> None:
        """Run every task of every chain."""
        ...


class SerialExecutor:
    """Runs the tasks one after the other, on one model."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def set_baseline(self, before: Replies) -> None:
        """See :class:`Executor`."""
        self._worker.set_baseline(before)

    def run(self, chains: Sequence[JobChain], what: str) -> None:
        """See :class:`Executor`."""
        with bar(sum(chain.weight for chain in chains), what, "case") as progress:
            for chain in chains:
                while (task := chain.next()) is not None:
                    chain.done(task, self._worker.run_task(task))
                progress.update(chain.weight)


class _Counted:
    """A chain that advances the progress bar of the whole run when it is finished."""

    def __init__(self, chain: JobChain, overall: Any) -> None:
        self._chain, self._overall = chain, overall
        self.weight = chain.weight

    def next(self) -> Task | None:
        """See :class:`~easyeditor.bench.jobs.JobChain`."""
        task = self._chain.next()
        if task is None:
            self._overall.update(self.weight)
        return task

    def done(self, task: Task, result: Result) -> None:
        """See :class:`~easyeditor.bench.jobs.JobChain`."""
        self._chain.done(task, result)


def run(lm: LM, plan: BenchmarkConfig, out: str | Path, executor: Executor | None = None) -> Path:
    """Run ``plan`` in the directory ``out``; the same run in it is resumed.

    Args:
        lm: the unedited model. It is bit-identical afterwards.
        plan: what to do.
        out: the run's folder.
        executor: runs the tasks; by default this process alone.

    Raises:
        RunMismatchError: the folder holds a run with other settings.
        RunBusyError: another process works in it.
        BenchError: it cannot be written; finished cases stay recorded.
        EditError: a case that a method cannot carry out, before any work.
        HyperParamsError: settings that do not fit this model, before any work.
        MissingExtraError: a measure needs a package that is not installed, before any work.
    """
    check(lm, plan)
    work = executor or SerialExecutor(Worker(lm, plan))
    whole = len(plan.cases) * (1 + len(plan.methods))
    with RunDirectory(out, plan.describe(lm)) as folder, bar(whole, "whole run", "case") as overall:
        jobs = [BaselineJob(folder.before, unit) for unit in chunks(plan)]
        work.run([_Counted(job, overall) for job in jobs], "unedited model")
        work.set_baseline(joined(sorted(folder.before.records, key=lambda record: record["chunk"])))
        for label in plan.methods:
            event_log = folder.event_log(label)
            if plan.sequential:
                chains: list[JobChain] = [SequentialJob(folder, event_log, label, plan)]
            else:
                total = folder.total(label, 1) if plan.downstream else None
                done = finished(event_log.records)
                chains = [
                    IndependentJob(event_log, unit, ("post", unit.number) in done, total)
                    for unit in plan.units(label)
                ]
            work.run([_Counted(chain, overall) for chain in chains], label)
        if plan.downstream:
            _downstream(folder, plan, work)
        return folder.path


def _downstream(folder: RunDirectory, plan: BenchmarkConfig, work: Executor) -> None:
    event_log = EventLog(folder.path / "downstream.jsonl")
    last = {label: len(plan.units(label)) for label in plan.methods}
    chains = [Downstream(event_log, "", None)]
    chains += [Downstream(event_log, label, folder.total(label, n)) for label, n in last.items()]
    work.run(chains, "downstream tasks")
    tasks = {record["label"]: record["tasks"] for record in event_log.records}
    scores = {label: {"before": tasks[""], "after": tasks[label]} for label in plan.methods}
    write_whole(folder.path / "downstream.json", json.dumps(scores, indent=1) + "\n")
