"""Means over cases, keeping the shape of the per-case dicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


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
