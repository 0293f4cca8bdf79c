"""``docs/matrix.md`` from the cells of one run: ``python tests/matrix/page.py [FOLDER]``.

Without a folder the page is written again from the committed results, those of
``benchmarks/images.py`` too, and nothing is measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from matrix.images import section
from matrix.settings import BY_ROW, ROWS
from zoo import FAMILIES
from zoo.models import FOLDER

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "matrix.md"
RESULTS = ROOT / "benchmarks" / "results" / "matrix.json"
GROUPS = ("rewrite", "rephrase", "locality", "portability")
BEFORE = "*no edit*"

Cells = Sequence[Mapping[str, Any]]

HEAD = """# The matrix: every method on every family

Written by `make matrix`, which measures every cell anew and holds it to the bars of
`tests/cases.py`. So does `make test-full`; `make test` measures every row where nothing is trained
on some cases of two families, which change with the commit. The figures are those of the last
`make matrix`: between two of them only the bars hold.

Each cell: **rewrite / rephrase / locality / portability**, in percent of answer tokens.

- **rewrite**: the new answer's tokens that are the most probable ones after the edited prompt.
- **rephrase**: the same after two other wordings of it.
- **locality**: predicted tokens that the edit left as they were, on two neighbours (the same
  question about others) and up to two other facts about the subject; the mean of both kinds.
- **portability**: as rewrite, on what follows from the edit by a second fact, where something does.
- *no edit*: the unedited model, asked for the new answer. Later tokens of a name follow from its
  first ones under teacher forcing, so this does not start at zero; read the others against it.

The models are the test suite's own (`tests/zoo`): about 0.9 million parameters each, of the real
classes, that know a made-up world. They tell whether a method *works* on an architecture. They are
not T5, GPT-2, GPT-J, GPT-Neo, LLaMA or LLaMA-2: nothing here is a result for those checkpoints.

Protocol: single edits. Each of the {n} cases is edited and scored alone, from the unedited model,
by `BaseEditor.from_pretrained(…).edit_cases(cases, keep_original_weight=True)`, teacher forced,
float32, on a CPU. All cells have the same cases, every second of the zoo's eval split, whose
subjects occur in no training case. Settings were chosen on the train split, which is the easier
one to edit: the models were told other facts about its subjects while they learnt to read. So
ROME's and MEMIT's number of steps, MEMIT's key and its step and ball, and MEND's number of steps
were chosen after cells of this table had missed an answer. On the other half of the eval split, on
which nothing was tuned, ROME, MEMIT and MEND have a rewrite of .991 or more in every family, but
for MEND on LLaMA (.985). What is trained is trained on the train split, and demonstrations come
from it. Second moments are those of the world's own text.
"""


def page(cells: Cells) -> str:
    """The whole page."""
    by_place = {(cell["row"], cell["family"]): cell for cell in cells}
    rows = measured(cells)
    ids = cells[0]["ids"]
    assert all(cell["ids"] == ids for cell in cells)
    lines = [
        HEAD.format(n=len(ids)),
        "| method | " + " | ".join(FAMILIES) + " |",
        "|---" * (len(FAMILIES) + 1) + "|",
        _line(BEFORE, [_before(cells, family) for family in FAMILIES]),
    ]
    for row in rows:
        in_row = [by_place.get((row, family)) for family in FAMILIES]
        lines.append(_line(row, [_cell(cell["after"]) if cell else "–" for cell in in_row]))
    lines += ["", "## Reading the rows", ""]
    for row in rows:
        reading = BY_ROW[row].reading
        if "{" in reading:
            reading = reading.format(**_reading_skill())
        lines += [" ".join(filter(None, (f"**{row}**", reading))) + _took(by_place, row), ""]
    lines += [
        "## Settings",
        "",
        "What differs from the defaults; why is in `tests/cases.py`.",
        "",
    ]
    lines += ["| method | family | settings | training |", "|---|---|---|---|"]
    lines += [line for row in rows for line in _settings(by_place, row)]
    lines += ["", f"Cases: {', '.join(ids)}.", "", section(), ""]
    return "\n".join(lines)


def measured(cells: Cells) -> list[str]:
    """The rows that these cells are of: a new method has none until ``make matrix``."""
    rows = {cell["row"] for cell in cells}
    return [row.row for row in ROWS if row.row in rows]


def lowest(cells: Cells) -> str:
    """The table of docs/results.md: each row's lowest family."""
    rows = measured(cells)
    lines = [_line("", rows).replace("|  |", "| |"), "|---" * (len(rows) + 1) + "|"]
    for group in GROUPS[:3]:
        least = [min(c["after"][group] for c in cells if c["row"] == row) for row in rows]
        lines.append(_line(group, [f"{100 * value:.0f}" for value in least]))
    return "\n".join(lines)


def _reading_skill() -> dict[str, object]:
    """Which of the zoo follows what it is told least and most often, in percent."""
    report = json.loads((FOLDER / "report.json").read_text(encoding="utf-8"))
    followed = {family: f"{100 * report[family]['context_followed']:.1f}" for family in FAMILIES}
    ordered = sorted(FAMILIES, key=lambda family: report[family]["context_followed"])
    least, most = followed[ordered[0]], followed[ordered[-1]]
    worst, best = (
        ", ".join(family for family in FAMILIES if followed[family] == bound)
        for bound in (least, most)
    )
    return {"worst": worst, "least": least, "best": best, "most": most}


def _line(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def _cell(scores: Mapping[str, float]) -> str:
    return " / ".join(f"{100 * scores[name]:.0f}" for name in GROUPS if name in scores)


def _before(cells: Cells, family: str) -> str:
    scores = next((cell["before"] for cell in cells if cell["family"] == family), None)
    return "–" if scores is None else _cell({"locality": 1.0, **scores})


def _took(by_place: Mapping[tuple[str, str], Mapping[str, Any]], row: str) -> str:
    seconds = [cell["seconds"] for (name, _), cell in by_place.items() if name == row]
    if not seconds:
        return ""
    training = sum(cell["train"] for cell in seconds) / len(seconds)
    edit = sum(cell["edit"] for cell in seconds) / len(seconds)
    before = f"{training:.0f} s of training and " if BY_ROW[row].training is not None else ""
    return f" ({before}{edit:.0f} s a cell.)"


def _settings(by_place: Mapping[tuple[str, str], Mapping[str, Any]], row: str) -> list[str]:
    """One line per different settings, with the families that have them."""
    grouped: dict[str, list[str]] = {}
    for family in FAMILIES:
        cell = by_place.get((row, family))
        if cell is not None:
            columns = [_text(cell["settings"]), _text(cell["training"] or {})]
            grouped.setdefault(" | ".join(columns), []).append(family)
    return [
        f"| {row} | {'all' if len(families) == len(FAMILIES) else ', '.join(families)} | {text} |"
        for text, families in grouped.items()
    ]


def _text(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={json.dumps(value)}`" for name, value in settings.items())


def main(folder: Path | None) -> None:
    """Put the cells of a run together and write the page; without a run, the page alone."""
    if folder is None:
        cells = json.loads(RESULTS.read_text(encoding="utf-8"))
    else:
        cells = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")]
        order = [row.row for row in ROWS]
        cells.sort(key=lambda c: (order.index(c["row"]), FAMILIES.index(c["family"])))
        RESULTS.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(cells), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
