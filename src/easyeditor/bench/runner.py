"""Run a plan to its end in a folder, going on from whatever an earlier process finished."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from easyeditor.bench.run_dir import Journal, RunFolder, finished, write_whole
from easyeditor.bench.jobs import Alone, Before, Chain, Downstream, Line, chunks
from easyeditor.bench.observations import joined
from easyeditor.bench.config import Plan
from easyeditor.bench.worker import Worker, check
from easyeditor.evaluate.query import Observation
from easyeditor.lm.model import LM
from easyeditor.progress import bar


class Crew(Protocol):
    """Whoever carries out lines of tasks."""

    def know(self, before: Observation) -> None:
        """Tell every worker what the unedited model said."""
        ...

    def run(self, lines: Sequence[Line], what: str) -> None:
        """Carry out every task of every line."""
        ...


class OneWorker:
    """The tasks one after the other, on one model."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def know(self, before: Observation) -> None:
        """See :class:`Crew`."""
        self._worker.know(before)

    def run(self, lines: Sequence[Line], what: str) -> None:
        """See :class:`Crew`."""
        with bar(sum(line.weight for line in lines), what, "case") as progress:
            for line in lines:
                while (task := line.next()) is not None:
                    line.done(task, self._worker.do(task))
                progress.update(line.weight)


def run(lm: LM, plan: Plan, out: str | Path, crew: Crew | None = None) -> Path:
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
    working = crew or OneWorker(Worker(lm, plan))
    with RunFolder(out, plan.describe(lm)) as folder:
        asked = [Before(folder.before, unit) for unit in chunks(plan)]
        working.run(asked, "unedited model")
        working.know(joined(sorted(folder.before.lines, key=lambda line: line["chunk"])))
        for label in plan.methods:
            journal = folder.journal(label)
            if plan.sequential:
                lines: list[Line] = [Chain(folder, journal, label, plan)]
            else:
                kept = folder.total(label, 1) if plan.downstream else None
                done = finished(journal.lines)
                lines = [
                    Alone(journal, unit, ("post", unit.number) in done, kept)
                    for unit in plan.units(label)
                ]
            working.run(lines, label)
        if plan.downstream:
            _downstream(folder, plan, working)
        return folder.path


def _downstream(folder: RunFolder, plan: Plan, working: Crew) -> None:
    journal = Journal(folder.path / "downstream.jsonl")
    last = {label: len(plan.units(label)) for label in plan.methods}
    lines = [Downstream(journal, "", None)]
    lines += [Downstream(journal, label, folder.total(label, n)) for label, n in last.items()]
    working.run(lines, "downstream tasks")
    found = {line["label"]: line["tasks"] for line in journal.lines}
    told = {label: {"before": found[""], "after": found[label]} for label in plan.methods}
    write_whole(folder.path / "downstream.json", json.dumps(told, indent=1) + "\n")
