"""Run folders with known numbers, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RUN = {
    "format": 1,
    "model": "tiny_llama",
    "fingerprint": "0123456789abcdef",
    "protocol": "single",
    "batch_size": 1,
    "seed": 7,
    "data": "facts_100%.json",
    "data_sha256": "fedcba9876543210",
    "measures": {},
    "versions": {"easyeditor": "0.1.0", "torch": "2.13.0"},
    "downstream": [],
}
PRE = {
    "rewrite_acc": 0.0,
    "rewrite_prob": {"target_new": 0.01, "ground_truth": 0.6},
    "rewrite_success": 0.0,
    "rewrite_diff": -0.59,
    "rephrase_acc": 0.0,
    "rephrase_success": 0.0,
    "rephrase_diff": -0.4,
    "locality": {"neighborhood_success": 1.0, "neighborhood_diff": 0.3},
    "portability": {},
    "perplexity": 20.0,
}


def half(success: float = 1.0, **changes: Any) -> dict[str, Any]:
    """What is measured after an edit that took (1) or did not (0)."""
    return {
        "rewrite_acc": success,
        "rewrite_prob": {"target_new": 0.9 * success, "ground_truth": 0.05},
        "rewrite_success": success,
        "rewrite_diff": 0.85,
        "rephrase_acc": success,
        "rephrase_success": success,
        "rephrase_diff": 0.5,
        "locality": {
            "neighborhood_acc": 0.75,
            "neighborhood_success": 0.5,
            "neighborhood_diff": 0.1,
        },
        "portability": {"one_hop_acc": 0.25},
        "perplexity": 21.0,
        **changes,
    }


def record(position: int, **changes: Any) -> dict[str, Any]:
    """One complete record of a unit of its own."""
    return {
        "stage": "post",
        "unit": position,
        "of": 1,
        "position": position,
        "case_id": str(position),
        "method": "ROME",
        "pre": PRE,
        "post": half(),
        "seconds": {"edit": 2.0 + position, "evaluate": 0.5, "values": 1.0},
        "peak_memory_mb": 100.0 + position,
        "extra_memory_mb": 10.0,
        "change": {
            "a": {"norm": 1.0, "relative": 0.01, "spectral": 1.0},
            "b": {"norm": 1.0, "relative": 0.03, "spectral": 1.0},
        },
        **changes,
    }


def lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(item) + "\n" for item in records)


def write(folder: Path, methods: dict[str, list[dict[str, Any]]], **changes: Any) -> Path:
    """A run folder with these records by label."""
    n = max((r["position"] + 1 for records in methods.values() for r in records), default=0)
    info = {**RUN, "n": n, "case_ids": [str(i) for i in range(n)]} | changes
    info["methods"] = {label: {} for label in methods}
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(info), encoding="utf-8")
    for label, records in methods.items():
        (folder / label).mkdir()
        (folder / label / "records.jsonl").write_text(lines(records), encoding="utf-8")
    return folder


def sequence(n: int) -> list[dict[str, Any]]:
    """Every edit takes; at the end the older half is forgotten."""
    after = [record(i) for i in range(n)]
    kept = [half(float(i >= n // 2)) for i in range(n)]
    at_end = [
        record(i, stage="final", unit=0, of=n, post=kept[i], seconds={"edit": 0.0, "evaluate": 1.0})
        | {"peak_memory_mb": None, "extra_memory_mb": None}
        for i in range(n)
    ]
    return after + at_end
