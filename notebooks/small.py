"""The small models that the notebooks run on where the real checkpoint is not at hand."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from zoo import corpus_file, load, world

from easyeditor import Case


def small_model(family: str) -> Any:
    """A small model of the real class (``tests/zoo``) that knows a made-up world."""
    return load(family)


def facts(n: int, split: str = "eval") -> list[Case]:
    """``n`` counterfactual edits of that world, with rewordings, neighbours and consequences."""
    cases = world.cases("train" if split == "train" else "eval")
    return list(cases[:: len(cases) // n][:n])


def statistics() -> dict[str, str]:
    """Where the world's own text lies, for second moments."""
    folder = Path(tempfile.mkdtemp(prefix="easyedit-notebook-"))
    return {"mom2_dataset": str(corpus_file(folder)), "stats_dir": str(folder)}


def settings(row: str, family: str) -> dict[str, Any]:
    """What a method of the matrix (docs/matrix.md) is used with on a small model."""
    from matrix.settings import BY_ROW

    return dict(BY_ROW[row].given(family))
