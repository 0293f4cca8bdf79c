"""Numbers over cases: means, means with intervals, what is left of an edit with age."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from easyeditor.errors import BenchError
from easyeditor.evaluate.bootstrap import Estimate, bootstrap

DISTRACTING = "locality/distracting"
"""Neighbourhood prompts with the edited fact before them: NS+, never part of NS."""
PAPER = {
    "ES": "rewrite_success",
    "PS": "rephrase_success",
    "EM": "rewrite_diff",
    "PM": "rephrase_diff",
    "NS+": f"{DISTRACTING}_success",
    "NKL": f"{DISTRACTING}_kl",
}
"""The papers' names of metrics; NS and NM are found by :func:`_neighbourhood`."""
BUCKETS = 10


def averages(metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean of every number that occurs, over the cases in which it occurs."""
    out: dict[str, Any] = {}
    for key in dict.fromkeys(key for item in metrics for key in item):
        values = [item[key] for item in metrics if item.get(key) is not None]
        if values and all(isinstance(value, dict) for value in values):
            out[key] = averages(values)
        elif values and all(isinstance(value, (int, float)) for value in values):
            out[key] = sum(values) / len(values)
    return out


def flatten(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a nested dict by its path: ``{"locality/neighborhood_acc": 0.9, …}``.

    What is no number (texts, lists, ``None``, NaN) is left out.
    """
    out: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            out |= {f"{name}/{inner}": number for inner, number in flatten(value).items()}
        elif isinstance(value, (int, float)) and not math.isnan(value):
            out[name] = float(value)
    return out


def summary(
    metrics: Sequence[Mapping[str, Any]], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Mean and interval of every number in the ``post`` (or ``pre``) dicts of some cases.

    Besides the metrics' own (flattened) names, those of the papers: ES, PS, NS (efficacy,
    paraphrase, neighbourhood score), EM, PM, NM (the differences), all between 0 and 1 as
    measured, S, the harmonic mean of ES, PS and NS, and of CounterFact+ NS+ and NKL (in nats). NS
    is read from the locality probes named ``neighborhood``; where no case has such, from all
    locality probes but the distracting ones, each name weighing the same.
    """
    rows = [flatten(item) for item in metrics]
    for row, near in zip(rows, _neighbourhood(rows), strict=True):
        row |= {name: row[ours] for name, ours in PAPER.items() if ours in row} | near
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    scores = {"S": ("ES", "PS", "NS")}
    return bootstrap(columns, harmonic=scores, resamples=resamples, seed=seed)


def _neighbourhood(rows: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    out: list[dict[str, float]] = [{} for _ in rows]
    for name, ending in (("NS", "_success"), ("NM", "_diff")):
        usual = f"locality/neighborhood{ending}"
        only = any(usual in row for row in rows)
        for row, result in zip(rows, out, strict=True):
            near = [
                value
                for key, value in row.items()
                if (
                    key == usual
                    if only
                    else key.startswith("locality/")
                    and key.endswith(ending)
                    and key != f"{DISTRACTING}{ending}"
                )
            ]
            if near:
                result[name] = sum(near) / len(near)
    return out


def retention(
    metrics: Sequence[Mapping[str, Any]],
    *,
    bucket: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """How much of an edit is left once later edits were made, the youngest edits first.

    An edit's age is the number of edits made after it. Edits of similar age are read together:
    ``{"age": youngest, "oldest": oldest, "n": edits, "after_edit": {…}, "at_end": {…}}``, with a
    :func:`summary` each of what was measured right after the edit (``post``) and at the end of the
    sequence (``final``). The trap: old and young edits are different facts; only ``at_end`` against
    ``after_edit`` of the same bucket is forgetting.

    Args:
        metrics: what an editor returned with ``evaluate_when="both"``, in the order of editing.
        bucket: edits per bucket; by default at most ten buckets of (nearly) equal size.
        resamples: as in :func:`summary`.
        seed: as in :func:`summary`.

    Raises:
        BenchError: an edit was not measured at both times, or the bucket is smaller than 1.
    """
    if bucket is not None and bucket < 1:
        raise BenchError(f"A bucket holds at least one edit; got bucket={bucket}.")
    lacking = next((i for i, m in enumerate(metrics) if not {"post", "final"} <= m.keys()), None)
    if lacking is not None:
        raise BenchError(
            f"Edit {lacking} was not measured both right after it and at the end: edit one after "
            "the other (keep_original_weight=False) with evaluate_when='both'."
        )
    n = len(metrics)
    if bucket is None:
        count = min(BUCKETS, n)
        edges = [i * n // count for i in range(count + 1)] if n else []
    else:
        edges = [*range(0, n, bucket), n]
    youngest_first = metrics[::-1]
    return [
        {
            "age": start,
            "oldest": end - 1,
            "n": end - start,
            "after_edit": _half(youngest_first[start:end], "post", resamples, seed),
            "at_end": _half(youngest_first[start:end], "final", resamples, seed),
        }
        for start, end in pairwise(edges)
    ]


def _half(
    metrics: Sequence[Mapping[str, Any]], key: str, resamples: int, seed: int
) -> dict[str, Estimate]:
    return summary([item[key] for item in metrics], resamples=resamples, seed=seed)
