"""A table as Markdown, LaTeX, CSV and JSON.

Markdown and LaTeX are for reading: scaled, rounded, one table per group of columns. CSV and JSON
are for programs: every number as measured (shares between 0 and 1) at full precision.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from easyeditor.bench.table import Column, Row, Table
from easyeditor.evaluate.bootstrap import Estimate

NOTHING = "–"
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "‖": r"$\Vert$",
    "Δ": r"$\Delta$",
    "→": r"$\to$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "–": "--",
    "−": "$-$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}
FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
MARKDOWN = {sign: f"\\{sign}" for sign in r"\`*_|<>[]~$"}


def markdown(table: Table) -> str:
    """The caption and one table per group, for GitHub and notebooks."""
    parts = [_escaped(table.caption, MARKDOWN)]
    for group, columns in _groups(table):
        head, body = _grid(table, columns, MARKDOWN)
        rule = [":--" if left else "--:" for left in _left(table, columns)]
        lines = ["| " + " | ".join(cells) + " |" for cells in (head, rule, *body)]
        parts += [f"## {group}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def plain(table: Table) -> list[tuple[str, int, list[str], list[list[str]]]]:
    """Per group of columns: its name, how many columns say what a row is, the head, the rows."""
    labels = len(_labels(table)) + 1
    return [(group, labels, *_grid(table, columns, {})) for group, columns in _groups(table)]


def latex(table: Table) -> str:
    r"""One ``table`` per group; needs ``\usepackage{booktabs,graphicx}``.

    The first has the caption; one that is wider than the page is shrunk to it.
    """
    parts = [r"% \usepackage{booktabs,graphicx}"]
    for group, columns in _groups(table):
        head, body = _grid(table, columns, LATEX)
        align = "".join("l" if left else "r" for left in _left(table, columns))
        caption = f"{group}. {table.caption}" if len(parts) == 1 else f"{group}."
        lines = [r"\begin{table}", r"\centering", f"\\caption{{{_escaped(caption, LATEX)}}}"]
        lines += [FIT, f"\\begin{{tabular}}{{{align}}}", r"\toprule"]
        lines += [" & ".join(head) + r" \\", r"\midrule"]
        lines += [" & ".join(cells) + r" \\" for cells in body]
        lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table}"]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def as_csv(table: Table) -> str:
    """One line per row; per column its value, ``_low``, ``_high`` and ``_n``; empty: not there."""
    file = io.StringIO()
    out = csv.writer(file, lineterminator="\n")
    fields = {"value": "", "low": "_low", "high": "_high", "n": "_n"}
    keys = [column.key for column in table.columns]
    names = [f"{key}{ending}" for key in keys for ending in fields.values()]
    out.writerow(["run", "method", "scored", "cases", *names])
    for row in table.rows:
        cells: list[object] = [row.run, row.method, row.scored, row.cases]
        for key in keys:
            values = _fields(row.numbers[key]) if key in row.numbers else {}
            cells += ["" if values.get(name) is None else values[name] for name in fields]
        out.writerow(cells)
    return file.getvalue()


def as_json(table: Table) -> str:
    """:func:`document` as text."""
    return json.dumps(document(table), ensure_ascii=False, indent=1) + "\n"


def document(table: Table) -> dict[str, Any]:
    """Notes and rows, with every number of a row and of the unedited model on the same cases."""
    rows = [
        {
            "run": row.run,
            "method": row.method,
            "scored": row.scored,
            "cases": row.cases,
            "numbers": {key: _fields(estimate) for key, estimate in row.numbers.items()},
            "before": {key: _fields(estimate) for key, estimate in row.before.items()},
        }
        for row in table.rows
    ]
    return {"notes": list(table.notes), "rows": rows}


def _fields(estimate: Estimate) -> dict[str, float | int | str | None]:
    numbers: dict[str, Any] = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: _finite(x) for name, x in numbers.items()} | {"n": estimate.n}


def _finite(x: float) -> float | str | None:
    # JSON has no infinity; a broken model's perplexity does.
    return None if math.isnan(x) else x if math.isfinite(x) else str(x)


def _groups(table: Table) -> list[tuple[str, list[Column]]]:
    names = dict.fromkeys(column.group for column in table.columns)
    return [(name, [c for c in table.columns if c.group == name]) for name in names]


def _labels(table: Table) -> list[tuple[str, Callable[[Row], str]]]:
    """The columns that say what a row is, as far as they say anything."""
    labels: list[tuple[str, Callable[[Row], str]]] = [
        ("run", lambda row: row.run),
        ("method", lambda row: row.method),
        ("scored", lambda row: row.scored),
    ]
    return [(name, read) for name, read in labels if any(read(row) for row in table.rows)]


def _left(table: Table, columns: Sequence[Column]) -> list[bool]:
    return [True] * len(_labels(table)) + [False] * (1 + len(columns))


def _grid(
    table: Table, columns: Sequence[Column], signs: dict[str, str]
) -> tuple[list[str], list[list[str]]]:
    labels = _labels(table)
    head = [*(name for name, _ in labels), "n", *(column.title for column in columns)]
    body = []
    for row in table.rows:
        if any(column.key in row.numbers for column in columns):
            cells = [read(row) or NOTHING for _, read in labels]
            body.append([*cells, str(row.cases), *(_cell(row, column) for column in columns)])
    return [_escaped(x, signs) for x in head], [[_escaped(x, signs) for x in r] for r in body]


def _cell(row: Row, column: Column) -> str:
    """``87.3 (84.1–90.2)``, with n where it differs from the row's."""
    estimate = row.numbers.get(column.key)
    if estimate is None:
        return NOTHING
    text = shown(estimate.value * column.scale, column.digits)
    if not math.isnan(estimate.low):
        low, high = (shown(x * column.scale, column.digits) for x in (estimate.low, estimate.high))
        text += f" ({low} to {high})" if "−" in low + high else f" ({low}–{high})"
    return text if estimate.n in {row.cases, 0} else f"{text}, n={estimate.n}"


def shown(x: float, digits: int) -> str:
    """``x`` with so many digits after the point; no negative zero, large ones as 1.2e+06."""
    text = f"{x:.{digits}f}" if not math.isfinite(x) or abs(x) < 1e5 else f"{x:.1e}"
    return text.removeprefix("-") if not text.strip("-0.") else text.replace("-", "−")


def _escaped(text: str, signs: dict[str, str]) -> str:
    return "".join(signs.get(sign, sign) for sign in text.replace("\n", " "))
