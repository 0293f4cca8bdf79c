"""The table of the model that sees in ``docs/matrix.md``, from ``benchmarks/results/images.json``.

``benchmarks/images.py`` measures it, row by row; the bars are those of ``tests/image_cases.py``.
Only rows that were measured with the settings the benchmark has now are shown.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from image_cases import ROWS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "images.json"
BY_ROW = {row.row: row for row in ROWS}
COLUMNS = {
    "rewrite": "rewrite",
    "rephrase": "other words",
    "image_rephrase": "other picture",
    "portability/capital": "capital follows",
    "locality/text": "text",
    "locality/image": "other question, other picture",
    "locality/same_question": "same question, other flags",
    "locality/no_image": "same question, no picture",
}
"""The scores, named as in the results without ``_acc``, and their heads."""

HEAD = """## A model that sees: flags-135m

Measured by `benchmarks/images.py measure` on [`flags-135m`](images.md#the-model-flags-135m), the
embedded language model behind a small vision tower: a glued test model that sees drawn flags, so
this compares methods with each other and says nothing about photographs or about LLaVA. A case
calls one country's flag another's; each edit is made alone on the unedited model.

Shares of answer tokens in percent, under teacher forcing. **rewrite**, **other words** (text
generality), **other picture** of the flag (image generality) and **capital follows** want the new
answer. The last four are localities and want the answer that the unedited model gives: **text**
without a picture, **another question about another picture**, and, which random questions hide,
**the edit's question about other flags and about no picture**. *Kept*: so many other flags whose
answers the edit holds; none of them is measured. *Views*: distorted copies of its own picture that
the edit is made with. The bars of the rows are in `tests/image_cases.py`, and a test holds these
figures to them.
"""


@cache
def settings() -> dict[str, tuple[str, dict[str, Any], int, int]]:
    """For each row of the benchmark: method, settings, prompts kept, views."""
    spec = importlib.util.spec_from_file_location(
        "benchmark_of_images", ROOT / "benchmarks" / "images.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows: dict[str, tuple[str, dict[str, Any], int, int]] = module.SETTINGS
    return rows


def measured() -> dict[str, dict[str, Any]]:
    """The committed results of today's settings, in the order of the table of cases."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    return {row.row: results[row.row] for row in ROWS if _is_current(row.row, results)}


def _is_current(name: str, results: Mapping[str, Mapping[str, Any]]) -> bool:
    if name not in results or name not in settings():
        return False
    result, (_, changes, kept, views) = results[name], settings()[name]
    recorded = (result["settings"], result.get("kept", 0), result.get("views", 0))
    return recorded == (json.loads(json.dumps(changes)), kept, views)


def score(result: Mapping[str, Any], name: str) -> float | None:
    """One score of a row's results; None where no case has it."""
    value: float | None = result[f"{name}_acc"]
    return value


def below(name: str, result: Mapping[str, Any]) -> list[str]:
    """The scores of a row that are below its bars."""
    bars = BY_ROW[name].bars
    return [column for column, bar in bars.items() if (score(result, column) or 0.0) < bar]


def section() -> str:
    """The section of the page."""
    results = measured()
    lines = [HEAD, "| method | " + " | ".join(COLUMNS.values()) + " | CPU s an edit |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    for name, result in results.items():
        cells = [_percent(score(result, column)) for column in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {result['cpu_seconds']:.1f} |")
    missing = [row.row for row in ROWS if row.row in settings() and row.row not in results]
    if missing:
        named = "; ".join(f"*{name}*" for name in missing)
        lines += ["", f"Not measured with today's settings: {named}."]
    readings = [(name, BY_ROW[name].reading) for name in results if BY_ROW[name].reading]
    lines += ["", *(line for pair in readings for line in (f"**{pair[0]}** {pair[1]}", ""))]
    lines += ["| method | settings beside the preset | kept | views | cases |", "|---" * 5 + "|"]
    for name, result in results.items():
        _, changes, kept, views = settings()[name]
        named = ", ".join(f"`{key}={json.dumps(value)}`" for key, value in changes.items())
        lines.append(f"| {name} | {named} | {kept} | {views} | {len(result['cases'])} |")
    return "\n".join([*lines, "", *_cases(results)])


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}"


def _cases(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The ids of the cases, once where the rows' lists begin alike."""
    lists = [result["cases"] for result in results.values()]
    longest = max(lists, key=len, default=[])
    assert all(ids == longest[: len(ids)] for ids in lists), "rows of different cases"
    first = " (a row of fewer has the first ones)" if len(set(map(len, lists))) > 1 else ""
    return [f"Cases{first}: {', '.join(longest)}."] if longest else []
