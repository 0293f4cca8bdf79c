"""Rows of a table from runs: one per method and stage, one for the unedited model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from easyeditor.bench.captions import captions
from easyeditor.bench.results import Record, Run
from easyeditor.evaluate.aggregate import flatten, summary
from easyeditor.evaluate.bootstrap import Estimate, bootstrap
from easyeditor.evaluate.downstream import change

UNEDITED = "unedited"
AFTER_EACH, AT_END = "after its edit", "at the end"
MEASURED = ("seconds/", "memory/")
"""Columns that no two runs have alike, to the bit."""

# key: (title, what it is multiplied by, digits)
EDITING: dict[str, tuple[str, float, int]] = {
    **{name: (name, 100, 1) for name in ("S", "ES", "PS", "NS", "NS+", "EM", "PM", "NM")},
    "NKL": ("NKL", 1, 4),
    "rewrite_acc": ("rewrite acc", 100, 1),
    "rephrase_acc": ("rephrase acc", 100, 1),
}
BEHAVIOUR: dict[str, tuple[str, float, int]] = {
    "safety/DS": ("DS", 100, 1),
    "safety/DG_onlyQ": ("DG onlyQ", 100, 1),
    "safety/DG_otherA": ("DG otherA", 100, 1),
    "safety/DG_otherQ": ("DG otherQ", 100, 1),
    "safety/DG_otherAQ": ("DG otherAQ", 100, 1),
    "safety/DG_avg": ("DG avg", 100, 1),
    "safety/fluency": ("answers' fluency", 100, 1),
    "safety/over_refusal": ("over-refusal", 100, 1),
    "opinion/ES": ("opinion ES", 100, 1),
    "opinion/DD": ("opinion DD, nats", 1, 4),
    "opinion/trait_acc": ("trait", 100, 1),
    "opinion/tpei": ("TPEI, nats", 1, 3),
    "opinion/coherent": ("coherent", 100, 1),
    "instance/yes": ("instances: yes", 100, 1),
    "instance/change": ("instance change", 100, 1),
    "instance/unparsed": ("instances: unparsed", 100, 1),
    "concept/consistency": ("concept consistency", 100, 1),
    "sanitation/withheld": ("withheld", 100, 1),
    "sanitation/replaced": ("replaced", 100, 1),
    "sanitation/retained": ("retained", 100, 1),
}
TEXT: dict[str, tuple[str, float, int]] = {
    "fluency": ("fluency", 100, 1),
    "consistency": ("consistency", 100, 1),
    "perplexity": ("perplexity", 1, 2),
}
COST: dict[str, tuple[str, float, int]] = {
    "change/relative": ("‖ΔW‖/‖W‖", 1, 4),
    "seconds/edit": ("seconds per edit", 1, 2),
    "seconds/evaluate": ("seconds to evaluate", 1, 2),
    "memory/peak_mb": ("peak memory, MB", 1, 0),
    "memory/extra_mb": ("extra memory, MB", 1, 0),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One number and how it is printed."""

    key: str
    title: str
    group: str
    scale: float = 100
    digits: int = 1


@dataclass(frozen=True, slots=True)
class Row:
    """The numbers of one method, or of the unedited model.

    Attributes:
        run: name of the run; empty where there is only one.
        method: its label.
        scored: in a sequence, after each case's own edit or at the end; else empty.
        cases: how many.
        numbers: by key, unscaled; more than the columns show.
        before: the same of the unedited model on the same cases.
    """

    run: str
    method: str
    scored: str
    cases: int
    numbers: Mapping[str, Estimate]
    before: Mapping[str, Estimate]

    @property
    def title(self) -> str:
        """A label for pictures that no other row has."""
        unbroken = self.scored.replace(" ", "\u00a0")
        return " · ".join(part for part in (self.run, self.method, unbroken) if part)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows, the columns that exist, and a caption with the settings of the measurement."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def caption(self) -> str:
        """All notes as one text."""
        return " ".join(self.notes)


def table(runs: Sequence[Run], *, measured: bool = True) -> Table:
    """One row per run × method (a sequence: two, see :attr:`Row.scored`) and per unedited model.

    Equal records give an equal table, in any order in the files.

    Args:
        runs: from :func:`~easyeditor.bench.results.read_runs`.
        measured: with seconds and memory, which differ between two equal runs.
    """
    rows = tuple(row for run in runs for row in _rows(run, run.name if runs[1:] else "", measured))
    notes = captions(runs)
    if any("safety/DS" in row.numbers for row in rows):
        notes += (safety_note([run.info["measures"].get("judge") for run in runs]),)
    return Table(tuple(_columns(rows)), rows, notes)


def safety_note(judges: Sequence[str | None]) -> str:
    """Who said what is safe, of every run; None is the rule of wordings."""
    names = sorted({judge or "a list of usual refusals" for judge in judges})
    return f"Safe is what {', '.join(names)} takes for safe."


def _rows(run: Run, name: str, measured: bool) -> Iterator[Row]:
    known = run.unedited()
    before = summary([record["pre"] for record in known])
    tasks_before: Mapping[str, Any] = next(
        (tasks["before"] for tasks in run.downstream.values() if tasks.get("before")), {}
    )
    yield Row(name, UNEDITED, "", len(known), before | _downstream(tasks_before), before)
    yield from _with_conditions(name, UNEDITED, "", len(known), before, before)
    sequential = run.info.get("protocol") == "sequential"
    for label, stages in run.records.items():
        tasks_after = run.downstream.get(label, {}).get("after") or {}
        after = _downstream(tasks_after) | _changes(tasks_before, tasks_after)
        for stage, scored in (("post", AFTER_EACH), ("final", AT_END)):
            records = stages.get(stage, ())
            if not records:
                continue
            numbers = summary([record["post"] for record in records])
            numbers |= _costs(records, measured)
            if stage == "final" or not sequential:
                numbers |= after
            pre = summary([record["pre"] for record in records])
            when = scored if sequential else ""
            yield Row(name, label, when, len(records), numbers, pre)
            yield from _with_conditions(name, label, when, len(records), numbers, pre)


def _with_conditions(
    name: str,
    method: str,
    scored: str,
    cases: int,
    numbers: Mapping[str, Estimate],
    before: Mapping[str, Estimate],
) -> Iterator[Row]:
    """A row for every condition that prompts are tried with: numbers called ``…@condition``.

    They stand under the plain names, so that a condition is read against the row without it.
    """
    for condition in dict.fromkeys(key.partition("@")[2] for key in numbers if "@" in key):
        end = f"@{condition}"
        chosen, earlier = (
            {key.removesuffix(end): value for key, value in some.items() if key.endswith(end)}
            for some in (numbers, before)
        )
        yield Row(name, f"{method}, with {condition}", scored, cases, chosen, earlier)


def _costs(records: Sequence[Record], measured: bool) -> dict[str, Estimate]:
    """Means over the cases, except memory: what has to be there is the greatest need."""
    columns: dict[str, list[float | None]] = {"change/relative": [_largest(r) for r in records]}
    if not measured:
        return bootstrap(columns)
    phases = dict.fromkeys(phase for record in records for phase in record["seconds"])
    if all(record["stage"] == "final" for record in records):
        phases.pop("edit", None)  # nothing is edited any more
    for phase in phases:
        columns[f"seconds/{phase}"] = [record["seconds"].get(phase) for record in records]
    out = bootstrap(columns)
    for key in ("peak", "extra"):
        amounts = [r[f"{key}_memory_mb"] for r in records if r.get(f"{key}_memory_mb") is not None]
        if amounts:
            out[f"memory/{key}_mb"] = Estimate.plain(max(amounts), len(amounts))
    return out


def _largest(record: Record) -> float | None:
    change = record.get("change") or {}
    return max((size["relative"] for size in change.values()), default=None)


def _downstream(tasks: Mapping[str, Any]) -> dict[str, Estimate]:
    """``downstream/<task>/<metric>``; the interval is the harness's: ± 1.96 standard errors."""
    out = {}
    for task, scores in tasks.items():
        numbers = {name: value for name, value in scores.items() if name != "items"}
        for key, value in flatten(numbers).items():
            metric, *rest = key.split(",")
            if key not in {"n", "version"} and not metric.endswith("_stderr"):
                error = scores.get(",".join([f"{metric}_stderr", *rest]))
                reach = math.nan if error is None else 1.96 * float(error)
                n = int(scores.get("n") or 0)
                estimate = Estimate(value, value - reach, value + reach, n)
                out[f"downstream/{task}/{key}"] = estimate
    return out


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Estimate]:
    """``downstream/<task>/<metric>_change``: after − before, each with its interval."""
    out = {}
    for task, scores in after.items():
        for key in _downstream({task: scores}):
            metric = key.removeprefix(f"downstream/{task}/")
            difference = change(before.get(task, {}), scores, metric)
            if difference is not None:
                out[f"{key}_change"] = difference
    return out


def _columns(rows: Sequence[Row]) -> Iterator[Column]:
    keys = list(dict.fromkeys(key for row in rows for key in row.numbers))
    yield from _fixed("Editing", EDITING, keys)
    yield from _fixed("Behaviour", BEHAVIOUR, keys)
    kinds = [key for key in keys if key.startswith(("locality/", "portability/"))]
    rivals = [key for key in kinds if key.endswith("_success")]
    for key in sorted(kinds, key=lambda key: (key.split("/")[0], not key.endswith("_acc"))):
        group, _, name = key.partition("/")
        if key.endswith("_acc"):
            yield Column(key, f"{group}: {name.removesuffix('_acc')}", "What else changed")
        elif key.endswith("_kl") and len([k for k in kinds if k.endswith("_kl")]) > 1:
            yield Column(key, f"{name.removesuffix('_kl')} KL", "What else changed", 1, 4)
        elif key in rivals and len(rivals) > 1:  # a single one is NS itself
            yield Column(key, f"{name.removesuffix('_success')} success", "What else changed")
    for key in keys:
        if key.startswith("generation/"):
            name, _, how = key.removeprefix("generation/").rpartition("_")
            word = {"acc": "contains", "exact": "equals"}.get(how, how)
            scale, digits = (1, 0) if how == "tokens" else (100, 1)
            yield Column(key, f"{name} {word}", "Free text", scale, digits)
    for key in keys:
        if key.startswith("conditional/"):
            name, _, how = key.removeprefix("conditional/").rpartition("_")
            word = {"acc": "of those that count", "counted": "counting"}.get(how, how)
            yield Column(key, f"{name} {word}", "Free text")
    yield from _fixed("Free text", TEXT, keys)
    yield from _fixed("Size and cost", COST, keys)
    for key in keys:
        if key.startswith("downstream/"):
            title = key.removeprefix("downstream/").replace("/", " ").replace("_change", " change")
            yield Column(key, title, "Downstream tasks", 1, 4)


def _fixed(
    group: str, known: Mapping[str, tuple[str, float, int]], keys: Sequence[str]
) -> Iterator[Column]:
    for key, (title, scale, digits) in known.items():
        if key in keys:
            yield Column(key, title, group, scale, digits)
