"""Every method works on every family: the cells of docs/matrix.md, measured anew.

With ``EASYEDITOR_MATRIX=folder`` each cell is written there, for ``make matrix``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from easyeditor.methods import METHODS
from matrix.cell import chosen, measure, of_one_token
from matrix.page import PAGE, RESULTS, ROOT, lowest, page
from matrix.settings import BY_ROW, CELLS, ENTRANTS
from support import Snapshot
from zoo import FAMILIES, load, world


@pytest.mark.parametrize(("row", "family"), CELLS)
def test_cell(row: str, family: str, tmp_path: Path) -> None:
    entrant, model = BY_ROW[row], load(family).model
    before = Snapshot(model)
    cell = measure(row, family, tmp_path)
    assert before.differences(model) == []
    if folder := os.environ.get("EASYEDITOR_MATRIX"):
        file = Path(folder) / f"{row}-{family}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(cell), encoding="utf-8")
    short = [name for name, least in entrant.least.items() if cell["after"][name] < least]
    assert short == [], cell


@pytest.mark.parametrize("family", FAMILIES)
def test_ft_l_learns_an_answer_of_one_token_whole(family: str, tmp_path: Path) -> None:
    """All that its objective determines: of a longer answer it learns a bag."""
    cell = measure("FT-L", family, tmp_path, of_one_token(family))
    assert len(cell["ids"]) >= 6
    assert cell["after"]["rewrite"] >= 0.99


def test_every_method_has_a_row() -> None:
    assert {entrant.method for entrant in ENTRANTS} == set(METHODS)


def test_the_cases_are_of_every_relation_and_never_trained_on() -> None:
    relations = {case.id.partition("/")[0] for case in world.cases("eval")}
    trained = {case.edit.subject for case in world.cases("train")}
    assert len(chosen()) == 50
    assert {case.id.partition("/")[0] for case in chosen()} == relations
    assert not trained & {case.edit.subject for case in chosen()}


def test_the_page_and_the_readme_are_of_all_cells_and_these_settings() -> None:
    cells = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert {(cell["row"], cell["family"]) for cell in cells} == set(CELLS)
    assert [cell["family"] for cell in cells[: len(FAMILIES)]] == list(FAMILIES)
    for cell in cells:
        entrant = BY_ROW[cell["row"]]
        assert cell["settings"] == json.loads(json.dumps(entrant.given(cell["family"])))
        assert cell["training"] == entrant.training
        assert cell["ids"] == [case.id for case in chosen()]
    assert PAGE.read_text(encoding="utf-8") == page(cells)
    assert lowest(cells) in (ROOT / "README.md").read_text(encoding="utf-8")
