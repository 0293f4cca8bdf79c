"""Small benchmark runs on tiny models, and what two of them must have in common."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import outer
import support
from easyeditor import LM, Case, Edit, Probe
from easyeditor.bench.config import BenchmarkConfig
from easyeditor.bench.report import report
from easyeditor.bench.run_dir import EventLog
from easyeditor.bench.runner import run
from easyeditor.bench.worker import Worker
from easyeditor.evaluate.query import Measures

MEASURES = Measures(4, 6, 1, heldout="Some text that no edit is about, and a bit more of it.")
MEASURED = ("seconds", "peak_memory_mb", "extra_memory_mb")
"""What two equal runs do not have alike."""


def case(i: int, prompt: str, subject: str, target: str, truth: str) -> Case:
    """A case with every kind of probe, some of them shared with the other cases."""
    return Case(
        f"case {i}",
        Edit(prompt, target, subject, truth),
        (
            Probe(f"{subject} is", (target,), "rephrase"),
            Probe("She plays the", ("piano",), "locality/neighborhood"),
            Probe(f"You can see {subject} in", (target, truth), "portability/one_hop"),
        ),
        generation=(f"{subject} is", prompt),
        references=(f"{prompt} {target}.", "The river is in Rome."),
    )


CASES = [
    case(i, *fact, truth)
    for i, (fact, truth) in enumerate(zip(outer.FACTS, ("Danish", "Paris", "Germany"), strict=True))
]


def lm() -> LM:
    """Equal in every process."""
    return support.lm("llama")


def plan(
    protocol: str = "single",
    names: tuple[str, ...] = ("FT",),
    *,
    settings: dict[str, Any] | None = None,
    **changes: Any,
) -> BenchmarkConfig:
    """Cheap methods on three cases; ``settings`` change those of every method."""
    own = {name: outer.settings(name, **(settings or {})) for name in names}
    given = {"methods": own, "cases": CASES, "measures": MEASURES, "data": "facts", **changes}
    return BenchmarkConfig(protocol=protocol, **given)  # type: ignore[arg-type]


def sequence(stats_dir: str) -> BenchmarkConfig:
    """A slow sequence in which moments and contexts must come from the unedited model."""
    located = {"stats_dir": stats_dir, "mom2_n_tokens": 300, "mom2_adjustment": True}
    own = {
        "FT": outer.settings("FT", num_steps=20),
        "MEMIT": outer.settings("MEMIT", v_num_grad_steps=10, **located),
    }
    return BenchmarkConfig(own, CASES, "sequential", measures=MEASURES, data="facts")


def lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a journal."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def records(out: Path, label: str = "FT") -> list[dict[str, Any]]:
    """What was recorded of one method."""
    return lines(out / label / "records.jsonl")


def numbers(out: Path) -> dict[str, list[str]]:
    """Every line of every journal, to the bit, less what is measured; in the order of editing."""
    found = {}
    for file in sorted(out.rglob("*.jsonl")):
        kept = [
            {name: value for name, value in line.items() if name not in MEASURED}
            for line in lines(file)
        ]
        kept.sort(key=lambda line: (line.get("stage", ""), line.get("position", line.get("chunk"))))
        found[str(file.relative_to(out))] = [json.dumps(line) for line in kept]
    return found


def tables(out: Path) -> dict[str, bytes]:
    """The report without what is measured, as bytes."""
    made = report(out, measured=False, pictures=False)
    return {file.name: file.read_bytes() for file in made.files}


def killed_after(appends: int, work: Callable[[], object]) -> bool:
    """Do ``work`` in a fork that is killed (SIGKILL) once it wrote so many pieces of a journal.

    Returns whether it was killed; else the work came to its end.
    """

    def dying() -> None:
        _die_after(appends)
        work()

    status = support.forked(dying)
    assert status in {0, -signal.SIGKILL}
    return status != 0


def _die_after(appends: int) -> None:
    append, left = EventLog.append, [appends]

    def deadly(log: EventLog, records: Any) -> None:
        append(log, records)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    EventLog.append = deadly  # type: ignore[method-assign]


def killing(monkeypatch: pytest.MonkeyPatch, job: type, executor: Any, *when: int) -> None:
    """Kill the worker that is going to work next, after these records were kept."""
    kept: list[Any] = []
    real = job.done

    def done(self: Any, task: Any, result: Any) -> None:
        real(self, task, result)
        kept.append(task)
        if len(kept) in when:
            os.kill(executor.processes()[0], signal.SIGKILL)

    monkeypatch.setattr(job, "done", done)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file with its bytes, but the lock."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "run.lock"
    }


@pytest.fixture(autouse=True, scope="module")
def two_together() -> Iterator[None]:
    """Two cases of the single protocol make a unit, so that three cases make two."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("easyeditor.bench.config.CASES_PER_FORWARD", 2)
        yield


@pytest.fixture
def nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is asked for anything while this holds."""
    monkeypatch.setattr(Worker, "run_task", lambda *_: pytest.fail("worked"))


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A finished run of ``plan()``."""
    return run(lm(), plan(), tmp_path / "run")
