"""Every method works on every family: the cells of docs/matrix.md, measured anew.

The slow tier measures every cell of the page on all cases, and of each row that is not on it yet
two families on few. The fast tier measures every row of the page on a quarter of the cases, half of
them on one family and half on another. Families are drawn by a hash of the commit; bars allow for
fewer cases. Rows that are trained, which takes half a minute each, are of the slow tier.
With ``EASYEDITOR_MATRIX=folder`` each whole cell is written there, for ``make matrix``.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from matrix import images
from matrix.cell import chosen, few, measure, of_one_token
from matrix.page import PAGE, RESULTS, ROOT, lowest, page
from matrix.settings import BY_ROW, CELLS
from support import Snapshot
from tiers import tiered
from zoo import FAMILIES, load, world

ON_THE_PAGE = {cell["row"] for cell in json.loads(RESULTS.read_text(encoding="utf-8"))}
"""Rows whose cells the slow tier measures on all cases, as ``make matrix`` does; others on few."""
QUICK = 2
"""Families that the fast tier draws for a row."""
DOUBT = 0.005
"""How often a method that just meets its bar may fall below the widened one by chance."""


def fewest(bar: float, n: int) -> float:
    """The share of ``n`` trials of probability ``bar`` that chance alone seldom falls short of."""
    below = 0.0
    for hits in range(n + 1):
        below += math.comb(n, hits) * bar**hits * (1 - bar) ** (n - hits)
        if below > DOUBT:
            return hits / n
    return 1.0


@cache
def commit() -> str:
    """The commit that is tested; the same text for all workers."""
    words = ["git", "rev-parse", "HEAD"]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stdout.strip()


def drawn(row: str) -> list[str]:
    """The families in an order of its own for every commit and row."""

    def place(family: str) -> bytes:
        return hashlib.sha256(f"{commit()} {row} {family}".encode()).digest()

    return sorted(FAMILIES, key=place)


def slow_cells() -> list[tuple[str, str]]:
    """All for ``make matrix``; else those of the page, and of other rows one that is drawn."""
    if "EASYEDITOR_MATRIX" in os.environ:
        return CELLS
    return [
        (row, family) for row, family in CELLS if row in ON_THE_PAGE or family == drawn(row)[QUICK]
    ]


UNTRAINED = [name for name, row in BY_ROW.items() if row.training is None]


@pytest.mark.parametrize("row", tiered(UNTRAINED, ON_THE_PAGE))
def test_quick_row(row: str, tmp_path: Path) -> None:
    families, cells, cases = drawn(row)[:QUICK], [], few(BY_ROW[row].every)
    for i, family in enumerate(families):
        model, before = load(family).model, Snapshot(load(family).model)
        part = cases[i :: len(families)]
        cells.append(measure(row, family, tmp_path, part, retrain=False))
        assert before.differences(model) == []
    bars = {name: fewest(bar, len(cases)) for name, bar in BY_ROW[row].bars.items()}
    mean = {name: pooled(cells, name) for name in bars}
    assert [name for name, bar in bars.items() if mean[name] < bar] == [], (cells, bars)


def pooled(cells: list[dict[str, Any]], name: str) -> float:
    """The mean of one score over the cases of several cells."""
    counts = [len(cell["ids"]) for cell in cells]
    scores = [cell["after"][name] for cell in cells]
    return sum(map(operator.mul, counts, scores)) / sum(counts)


@pytest.mark.slow
@pytest.mark.parametrize(("row", "family"), slow_cells())
def test_cell(row: str, family: str, tmp_path: Path) -> None:
    model = load(family).model
    before = Snapshot(model)
    folder = os.environ.get("EASYEDITOR_MATRIX")
    cases = chosen() if folder or row in ON_THE_PAGE else few(BY_ROW[row].every)
    cell = measure(row, family, tmp_path, cases)
    assert before.differences(model) == []
    if folder:
        file = Path(folder) / f"{row}-{family}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(cell), encoding="utf-8")
    bars = BY_ROW[row].bars
    if cases != chosen():
        bars = {name: fewest(bar, len(cases)) for name, bar in bars.items()}
    assert [name for name, bar in bars.items() if cell["after"][name] < bar] == [], cell


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_ft_l_learns_an_answer_of_one_token_whole(family: str, tmp_path: Path) -> None:
    """All that its objective determines: of a longer answer it learns a bag."""
    cell = measure("FT-L", family, tmp_path, of_one_token(family))
    assert len(cell["ids"]) >= 6
    assert cell["after"]["rewrite"] >= 0.99


def test_bars_allow_for_few_cases() -> None:
    assert (
        fewest(0.99, 13) == 11 / 13
    )  # one case in a hundred fails: two of 13 are rare, three rarer
    assert fewest(0.75, 13) < 0.75
    assert fewest(1.0, 13) == 1
    assert 0.95 < fewest(0.99, 1000) < 0.99


def test_the_cases_are_of_every_relation_and_never_trained_on() -> None:
    relations = {case.id.partition("/")[0] for case in world.cases("eval")}
    trained = {case.edit.subject for case in world.cases("train")}
    assert len(chosen()) == 50
    assert {case.id.partition("/")[0] for case in chosen()} == relations
    assert not trained & {case.edit.subject for case in chosen()}
    assert set(few()) < set(chosen())
    assert len(few()) >= 12


def test_the_page_and_the_figures_are_of_these_settings_and_every_family() -> None:
    cells = json.loads(RESULTS.read_text(encoding="utf-8"))
    places = {(cell["row"], cell["family"]) for cell in cells}
    assert places <= set(CELLS)
    assert places == {(cell["row"], family) for cell in cells for family in FAMILIES}
    assert [cell["family"] for cell in cells[: len(FAMILIES)]] == list(FAMILIES)
    for cell in cells:
        row = BY_ROW[cell["row"]]
        assert cell["settings"] == json.loads(json.dumps(row.given(cell["family"])))
        assert cell["training"] == row.training
        assert cell["ids"] == [case.id for case in chosen()]
    assert PAGE.read_text(encoding="utf-8") == page(cells)
    assert lowest(cells) in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def test_what_each_method_does_to_a_model_that_sees_is_above_its_bars() -> None:
    rows = images.measured()
    assert rows
    for name, result in rows.items():
        assert images.below(name, result) == [], (name, result)
    for row in images.ROWS:
        assert row.bars.keys() <= images.COLUMNS.keys()
        assert row.bars["rewrite"] >= 0.7


def test_a_score_below_its_bar_and_figures_of_other_settings_are_noticed(monkeypatch) -> None:
    name, result = next(iter(images.measured().items()))
    assert images.below(name, {**result, "rewrite_acc": 0.1}) == ["rewrite"]
    assert images.below(name, {**result, "rewrite_acc": None}) == ["rewrite"]
    method, _, kept, views = images.settings()[name]
    changed = {**images.settings(), name: (method, {"lr": 7.0}, kept, views)}
    monkeypatch.setattr(images, "settings", lambda: changed)
    assert name not in images.measured()
    assert f"*{name}*" in images.section().partition("Not measured")[2]
