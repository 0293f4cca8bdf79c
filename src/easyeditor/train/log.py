"""The log of a training as JSONL, and its learning curve as a picture."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easyeditor.files import written_whole

log = logging.getLogger(__name__)

LOG, CURVE = "train_log.jsonl", "learning_curve.png"


def write_log(folder: Path, history: Sequence[Mapping[str, Any]]) -> Path:
    """``train_log.jsonl``: one JSON object per record, oldest first; written whole."""
    file = folder / LOG
    with written_whole(file) as part:
        part.write_text("".join(json.dumps(record) + "\n" for record in history), "utf-8")
    return file


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The records of a ``train_log.jsonl``; none where there is no file."""
    file = folder / LOG
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def draw_curve(folder: Path, history: Sequence[Mapping[str, Any]]) -> Path | None:
    """The losses and the held-out accuracies over the steps; None without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        log.info('No learning curve: pip install "easyedit-lm[bench]" brings matplotlib.')
        return None
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    losses, shares = figure.subplots(1, 2)
    for key, label in (("loss", "training"), ("eval_edit_loss", "held out")):
        steps, values = _series(history, key)
        losses.plot(steps, values, label=label)
    losses.set(xlabel="step", ylabel="loss", yscale="log")
    for key in ("rewrite", "rephrase", "locality"):
        steps, values = _series(history, f"eval_{key}")
        if steps:
            shares.plot(steps, values, label=key)
    shares.set(xlabel="step", ylabel="held out: share of tokens", ylim=(0, 1.02))
    for axes in (losses, shares):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    file = folder / CURVE
    with written_whole(file) as part:
        figure.savefig(part, format="png", dpi=120)
    return file


def _series(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    points = [(record["step"], record[key]) for record in history if key in record]
    return [step for step, _ in points], [value for _, value in points]
