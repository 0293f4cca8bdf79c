"""Where the time of an edit goes: per phase seconds, operations, bytes, share of the machine.

The embedded model, ROME on one fact and MEMIT on some, from nothing (contexts are sampled, moments
collected) to the scores before and after: 13 probes per edit. The share is the time that
the kernels would need at the machine's measured matrix rate or copy rate, for each whichever takes
longer, over the seconds taken; the columns before it say which of the two it was.

    python benchmarks/profile_edit.py [--edits 20]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import nullcontext
from typing import Any

import common
from easyeditor import BaseEditor
from easyeditor.associative import value_optimization as values
from easyeditor.editors import base as editing
from easyeditor.editors import metric_recorder as sheet
from easyeditor.edits import Case, Probe, Prompt
from easyeditor.lm.loading import load
from easyeditor.methods import METHODS, locate, rome, spread, value_search
from easyeditor.patches import stack
from easyeditor.second_moments import metric
from meter import Counting, Meter, copy_rate, matrix_rate

SEAMS: list[tuple[Any, str, str]] = [
    (value_search, "context_prefixes", "contexts"),
    (locate, "moments", "moments"),
    (metric.InverseOfMoment, "prepare", "factor"),
    (metric.InverseOfMoment, "compute", "factor"),
    (value_search, "optimize_values", "value steps"),
    (values, "micro_batches", "prefix"),
    (rome, "keys_at", "keys"),
    (spread, "keys_at", "keys"),
    (spread, "values_at", "keys"),
    (rome, "solve_rank_one", "solve"),
    (spread, "solve_directions", "solve"),
    (stack, "push", "apply"),
    (editing, "edited_copy", "apply"),
    (sheet, "observe", "evaluate"),
]
ORDER = ["contexts", "moments", "factor", "prefix", "value steps", "keys", "solve", "apply",
         "evaluate", "other"]  # fmt: skip


def cases(n: int) -> list[Case]:
    """Edits of made-up people with 13 probes each: 2 rephrases, 10 neighbours, 1 consequence."""
    edits = common.made_up_edits(100)
    made = []
    for i, edit in enumerate(edits[:n]):
        others = [other for other in edits if other.subject != edit.subject][i : i + 10]
        asked: list[tuple[Prompt | str, str, str]] = [
            (f"It is known that {edit.prompt}", edit.target, "rephrase"),
            (f"In short, {edit.prompt}", edit.target, "rephrase"),
            *((other.prompt, other.target, "locality/neighborhood") for other in others),
            (f"A well-known colleague of {edit.subject} is", "one", "portability/one_hop"),
        ]
        probes = tuple(Probe(prompt, (answer,), kind) for prompt, answer, kind in asked)
        made.append(Case(str(i), edit, probes))
    return made


def profiled(method: str, own: list[Case], rates: tuple[float, float]) -> dict[str, Any]:
    """From nothing to scores, once for time and once more for counts."""
    told = {}
    for counting in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            lm = load("smollm2-135m", device="cpu")
            common.touch(lm.model)
            kind = METHODS.get(method).hyperparams_class
            editor = BaseEditor(lm, kind.preset("smollm2-135m", stats_dir=folder))
            meter = Meter(rates)
            with Counting(meter) if counting else nullcontext(), meter.watching(SEAMS):
                editor.edit_cases(own, keep_original_weight=True, verbose=False, batch=len(own) > 1)
        told[counting] = meter
    rows = {}
    for phase in ORDER:
        seconds = told[False].seconds[phase]
        counts = told[True]
        flops, computing, moving = (
            each[phase] for each in (counts.flops, counts.computing, counts.moving)
        )
        rows[phase] = {
            "seconds": round(seconds, 3),
            "gflop": round(flops / 1e9, 1),
            "gigabytes": round(counts.bytes[phase] / 1e9, 2),
            "gflop_per_s": round(flops / seconds / 1e9, 1) if seconds else None,
            "bound_by_arithmetic": round(computing / max(computing + moving, 1e-12), 2),
            "share_of_limit": round((computing + moving) / seconds, 2) if seconds else None,
        }
    return rows


def whole_edit(own: list[Case]) -> dict[str, Any]:
    """Seconds of ``editor.edit`` with its 13 probes, contexts and moments at hand; five facts."""
    lm = load("smollm2-135m", device="cpu")
    common.touch(lm.model)
    told: dict[str, Any] = {}
    for method in ("ROME", "MEMIT", "FT"):
        settings = METHODS.get(method).hyperparams_class.preset("smollm2-135m")
        editor = BaseEditor(lm, settings)
        editor.edit_cases(own[:1], keep_original_weight=True, verbose=False)  # warm
        seconds = []
        for case in own[1:6]:
            began = time.perf_counter()
            editor.edit_cases([case], keep_original_weight=True, verbose=False)
            seconds.append(time.perf_counter() - began)
        told[method] = {
            "median_seconds": round(statistics.median(seconds), 2),
            "seconds": [round(s, 2) for s in seconds],
        }
        print(method, told[method], flush=True)
    return told


def table(rows: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "| phase | s | GFLOP | GB | GFLOP/s | limit: arithmetic / memory | share of limit |",
        "| :-- | --: | --: | --: | --: | :-: | --: |",
    ]
    for phase, row in rows.items():
        cells = [phase, *(row[key] for key in ("seconds", "gflop", "gigabytes", "gflop_per_s"))]
        part = row["bound_by_arithmetic"]
        share = f"{row['share_of_limit']:.0%}" if row["share_of_limit"] is not None else "–"
        cells += [f"{part:.0%} / {1 - part:.0%}", share]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--edits", type=int, default=20, help="of MEMIT's batch")
    args = parser.parse_args()
    rates = matrix_rate(), copy_rate()
    told: dict[str, object] = {
        "matrix_gflop_per_s": round(rates[0] / 1e9, 1),
        "copy_gigabytes_per_s": round(rates[1] / 1e9, 1),
        "whole_edit_13_probes": whole_edit(cases(6)),
    }
    for method, n in (("ROME", 1), ("MEMIT", args.edits)):
        rows = profiled(method, cases(n), rates)
        told[f"{method} {n}"] = rows
        print(f"\n{method}, {n}\n\n{table(rows)}\n", flush=True)
    common.write("profile_edit", told)


if __name__ == "__main__":
    main()
