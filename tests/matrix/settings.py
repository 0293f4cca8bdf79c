"""The rows of the matrix, from the table of methods, and the settings of one cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cases import CASES, MatrixRow
from easyeditor.hyperparams import HyperParams
from easyeditor.methods import METHODS
from zoo import FAMILIES, corpus_file

ROWS = tuple(row for case in CASES for row in case.matrix)
BY_ROW = {row.row: row for row in ROWS}
METHOD_OF = {row.row: case.name for case in CASES for row in case.matrix}
CELLS = [  # what is trained takes longest, so it comes first
    (row.row, family)
    for row in sorted(ROWS, key=lambda row: row.training is None)
    for family in FAMILIES
]


def hyperparams(row: MatrixRow, family: str, folder: Path, archive: Path | None) -> HyperParams:
    """The settings of one cell; the world's text and statistics go to ``folder``."""
    kind = METHODS.get(METHOD_OF[row.row]).hyperparams_class
    paths: dict[str, Any] = {}
    if "mom2_dataset" in kind.model_fields:
        paths = {"mom2_dataset": str(corpus_file(folder)), "stats_dir": str(folder)}
    if archive is not None:
        paths["archive"] = str(archive)
    return kind(**row.given(family), **paths)
