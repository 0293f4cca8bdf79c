"""``docs/matrix.md`` from the cells of one run: ``python tests/matrix/page.py FOLDER``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from matrix.settings import BY_ROW, ENTRANTS
from zoo import FAMILIES
from zoo.models import FOLDER

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "matrix.md"
RESULTS = ROOT / "benchmarks" / "results" / "matrix.json"
GROUPS = ("rewrite", "rephrase", "locality", "portability")
BEFORE = "*no edit*"

Cells = Sequence[Mapping[str, Any]]

HEAD = """# The matrix: every method on every family

Written by `make matrix`. `tests/test_matrix.py` measures every cell anew and holds it to the least
that `tests/matrix/settings.py` asks of it.

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

READINGS = {
    "FT-L": "asks for all target tokens where the prompt ends, as the classic baseline does. An "
    "answer of several tokens is learnt as a bag, so rewrite cannot be whole: answers here have "
    "one to eight. Answers of one token it learns whole, in every family. On T5 it is FT-M, as the "
    "decoder has no such place.",
    "FT-M": "learns every token where it belongs. Nothing but the short training keeps the rest.",
    "SERAC": "changes no weight: a small model answers what a classifier takes for the edit's "
    "business, and everything else goes to the model as it was.",
    "IKE": "tells the model, and rests on how well that reads: without demonstrations these give "
    "the whole new answer in {least} % ({worst}) to {most} % ({best}) of unseen cases "
    "(`tests/zoo/report.json`), and at times to a neighbour, too.",
    "MEND": "is one forward and one backward pass, and what its network learnt to make of the "
    "gradient.",
    "KN": "makes a few neurons that fire for the old answer write the new one. Nothing in it makes "
    "sure of the target, so rewrite is not whole, and neighbours that use the same neurons pay.",
    "ROME": "stores the new answer under the subject, in one layer, with one rank.",
    "MEMIT": "is the same search with the change spread over layers and a ridge for a constraint.",
}


def page(cells: Cells) -> str:
    """The whole page."""
    found = {(cell["row"], cell["family"]): cell for cell in cells}
    ids = cells[0]["ids"]
    assert all(cell["ids"] == ids for cell in cells)
    lines = [
        HEAD.format(n=len(ids)),
        "| method | " + " | ".join(FAMILIES) + " |",
        "|---" * (len(FAMILIES) + 1) + "|",
        _line(BEFORE, [_before(cells, family) for family in FAMILIES]),
    ]
    for entrant in ENTRANTS:
        own = [found.get((entrant.row, family)) for family in FAMILIES]
        lines.append(_line(entrant.row, [_cell(cell["after"]) if cell else "–" for cell in own]))
    lines += ["", "## Reading the rows", ""]
    for entrant in ENTRANTS:
        reading = READINGS[entrant.row]
        if entrant.method == "IKE":
            reading = reading.format(**_reading_skill())
        lines += [f"**{entrant.row}** {reading}{_took(found, entrant.row)}", ""]
    lines += [
        "## Settings",
        "",
        "What differs from the defaults; why is in `tests/matrix/settings.py`.",
        "",
    ]
    lines += ["| method | family | settings | training |", "|---|---|---|---|"]
    lines += [line for entrant in ENTRANTS for line in _settings(found, entrant.row)]
    lines += ["", f"Cases: {', '.join(ids)}.", ""]
    return "\n".join(lines)


def lowest(cells: Cells) -> str:
    """The table of the README: each row's lowest family."""
    rows = [entrant.row for entrant in ENTRANTS]
    lines = [_line("", rows).replace("|  |", "| |"), "|---" * (len(rows) + 1) + "|"]
    for group in GROUPS[:3]:
        found = [min(c["after"][group] for c in cells if c["row"] == row) for row in rows]
        lines.append(_line(group, [f"{100 * value:.0f}" for value in found]))
    return "\n".join(lines)


def _reading_skill() -> dict[str, object]:
    """Which of the zoo follows what it is told least and most often, in percent."""
    told = json.loads((FOLDER / "report.json").read_text(encoding="utf-8"))
    followed = {family: f"{100 * told[family]['context_followed']:.1f}" for family in FAMILIES}
    ordered = sorted(FAMILIES, key=lambda family: told[family]["context_followed"])
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


def _took(found: Mapping[tuple[str, str], Mapping[str, Any]], row: str) -> str:
    own = [cell["seconds"] for (name, _), cell in found.items() if name == row]
    if not own:
        return ""
    trained = sum(each["train"] for each in own) / len(own)
    edit = sum(each["edit"] for each in own) / len(own)
    before = f"{trained:.0f} s of training and " if BY_ROW[row].training is not None else ""
    return f" ({before}{edit:.0f} s a cell.)"


def _settings(found: Mapping[tuple[str, str], Mapping[str, Any]], row: str) -> list[str]:
    """One line per different settings, with the families that have them."""
    grouped: dict[str, list[str]] = {}
    for family in FAMILIES:
        cell = found.get((row, family))
        if cell is not None:
            texts = [_text(cell["settings"]), _text(cell["training"] or {})]
            grouped.setdefault(" | ".join(texts), []).append(family)
    return [
        f"| {row} | {'all' if len(families) == len(FAMILIES) else ', '.join(families)} | {text} |"
        for text, families in grouped.items()
    ]


def _text(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={json.dumps(value)}`" for name, value in settings.items())


def main(folder: Path) -> None:
    """Put the cells together, write them and the page."""
    cells = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")]
    order = {entrant.row: i for i, entrant in enumerate(ENTRANTS)}
    cells.sort(key=lambda cell: (order[cell["row"]], FAMILIES.index(cell["family"])))
    RESULTS.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(cells), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
