"""The rows of ``benchmarks/lifelong.py``: what they hold, and where they are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyeditor.bench.config import Protocol
from easyeditor.bench.results import read_runs
from easyeditor.bench.table import table
from easyeditor.evaluate.bootstrap import Estimate
from easyeditor.hyperparams import HyperParams

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "lifelong.json"
RUNS = ROOT / "build" / "lifelong"
FILES = ("archive", "stats_dir")
"""Settings that name a file or a folder."""


@dataclass(frozen=True, slots=True)
class Part:
    """One way of editing: the protocol, how many cases, how many at once."""

    title: str
    protocol: Protocol
    cases: int
    batch_size: int = 1


PARTS = {
    "single": Part("{n} single edits, each on the unedited model", "single", 100),
    "batch": Part("One batch of {n}", "batch", 100, 100),
    "batches": Part("{n} edits in batches of 10, all kept", "sequential", 200, 10),
    "one-by-one": Part("{n} edits one by one, all kept", "sequential", 200),
}
SCORES = {
    "rewrite_acc": "reliability",
    "rephrase_acc": "generalization",
    "locality/neighborhood_acc": "locality: unchanged",
    "NS": "NS",
    "ES": "ES",
    "PS": "PS",
    "S": "S",
    "generation/rewrite_acc": "free: sentence",
    "generation/rephrase_acc": "free: rephrased",
    "generation/question_acc": "free: question",
    "generation/chat_question_acc": "free: question in the chat",
    "generation/chat_acc": "free: sentence in the chat",
    "generation/rewrite_exact": "free: sentence, then the end",
    "portability_acc": "portability",
    "perplexity": "perplexity",
}
"""Columns of the scores, by the keys of ``easyedit bench report``."""
EXTRA = {
    "kl": "KL elsewhere",
    "fires": "fires elsewhere",
    "known": "other facts known",
    "last_word": "last words",
    "wikitext": "WikiText perplexity",
    "seconds": "seconds per edit",
    "memory_mb": "memory, MB",
    "patch_mb": "patch, MB",
}
SHARES = {name for name in SCORES if name != "perplexity"} | {"fires", "known", "last_word"}


def estimates(numbers: Mapping[str, Estimate]) -> dict[str, list[float]]:
    """The values of :data:`SCORES` that are there, each with its interval."""
    there = {key: numbers[key] for key in SCORES if key in numbers}
    return {key: [number.value, number.low, number.high] for key, number in there.items()}


def scores_of(folder: Path) -> Row:
    """The scores after all edits, those of the unedited model, and what the edits cost."""
    rows = table(read_runs([folder])).rows
    at_end = rows[-1]
    return {
        "scores": estimates(at_end.numbers),
        "unedited": {key: rows[0].numbers[key].value for key in SCORES if key in rows[0].numbers},
        "n": at_end.cases,
        "seconds": rows[1].numbers["seconds/edit"].value,
        "memory_mb": rows[1].numbers["memory/extra_mb"].value,
    }


def digest_of(settings: HyperParams) -> str:
    """A digest of settings: not of their order, nor of the folders that files lie in."""
    document = settings.model_dump(mode="json")
    files = {name: Path(document[name]).name for name in FILES if document.get(name)}
    return hashlib.sha256(json.dumps(document | files, sort_keys=True).encode()).hexdigest()[:16]


def stored() -> dict[str, Row]:
    """The rows so far, by data, part, number of cases, seed and method."""
    if not RESULTS.exists():
        return {}
    rows: dict[str, Row] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return rows
