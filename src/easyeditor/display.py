"""HTML of tables, bars and heat maps, for notebooks and for the page; every text is escaped.

Colours are translucent, so they are readable on a light and on a dark ground, and no style sheet or
script is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import import_module
from typing import Any

from easyeditor.errors import MissingExtraError

MOST_ROWS = 50
"""Rows of a table that are shown; a line below says how many more there are."""
MOST_CHARACTERS = 300
"""Characters of a text in a table; the rest is an ellipsis."""
CELL = "padding:3px 8px;text-align:left;vertical-align:top;border:0;border-bottom:1px solid #8884"
BAR_WIDTH = 90
"""Pixels of the probability 1."""
GOOD, BAD, PLAIN = "46,160,67", "219,109,40", "88,120,200"
"""Red, green and blue of what should be, of what should not be, and of what is neither."""


@dataclass(frozen=True, slots=True)
class Html:
    """Markup that is put into a table as it is; any other value is escaped."""

    markup: str

    def __str__(self) -> str:
        return self.markup


def escaped(value: object) -> str:
    """A value as text that is no markup, shortened; ``None`` is empty."""
    text = "" if value is None else str(value)
    if len(text) > MOST_CHARACTERS:
        text = f"{text[: MOST_CHARACTERS - 1]}…"
    return escape(text)


def table_html(
    title: str, head: Sequence[str], rows: Iterable[Sequence[object]], *, most: int = MOST_ROWS
) -> str:
    """A table of ``rows``, up to ``most`` of them; columns without any content are left out."""
    listed = [list(row) for row in rows]
    used = [i for i in range(len(head)) if any(str(row[i] or "") for row in listed)]
    used = used or list(range(len(head)))
    parts = [f"<p style='margin:4px 0'><b>{escaped(title)}</b></p>"] if title else []
    cells = "".join(f"<th style='{CELL}'>{escaped(head[i])}</th>" for i in used)
    parts.append(
        f"<table style='border-collapse:collapse;border:0'><thead><tr>{cells}</tr></thead><tbody>"
    )
    for row in listed[:most]:
        cells = "".join(f"<td style='{CELL}'>{_cell(row[i])}</td>" for i in used)
        parts.append(f"<tr>{cells}</tr>")
    parts.append("</tbody></table>")
    if len(listed) > most:
        parts.append(f"<p style='margin:4px 0'>and {len(listed) - most} more</p>")
    return "".join(parts)


def _cell(value: object) -> str:
    return value.markup if isinstance(value, Html) else escaped(value)


def bar(probability: float | None, colour: str = PLAIN) -> Html:
    """A probability as a bar with its number; nothing for ``None``."""
    if probability is None:
        return Html("")
    share = min(1.0, max(0.0, probability))
    width = round(BAR_WIDTH * share)
    return Html(
        "<span style='white-space:nowrap'>"
        f"<span style='display:inline-block;width:{BAR_WIDTH}px;height:0.8em;"
        "background:#8883;border-radius:3px'>"
        f"<span style='display:block;width:{width}px;height:100%;border-radius:3px;"
        f"background:rgba({colour},.9)'></span></span> {probability:.3f}</span>"
    )


def bar_pair(before: float | None, after: float | None, *, rises: bool) -> Html:
    """A probability before and after an edit as two bars; ``rises``: whether it should be high."""
    if before is None and after is None:
        return Html("")
    fits = after is not None and (after >= 0.5) == rises
    return Html(f"{bar(before)}<br>{bar(after, GOOD if fits else BAD)}")


def heat_map_html(
    title: str,
    rows: Sequence[str],
    numbers: Sequence[Sequence[float]],
    *,
    low: float,
    high: float,
    note: str = "",
    texts: Sequence[Sequence[str]] | None = None,
) -> str:
    """A heat map with a row for each name and a column for each number from 0.

    Args:
        title: above it.
        rows: names of the rows.
        numbers: per row and column.
        low: what is transparent.
        high: what has the full colour.
        note: below it.
        texts: what a cell says when it is pointed at, beside its number.
    """
    span = (high - low) or 1.0
    width = len(numbers[0]) if numbers else 0
    step = max(1, width // 10)
    head = "".join(
        f"<th style='font-weight:normal;font-size:70%'>{i if i % step == 0 else ''}</th>"
        for i in range(width)
    )
    parts = [f"<p style='margin:4px 0'><b>{escaped(title)}</b></p>"]
    parts.append(f"<table style='border-collapse:collapse'><tr><th></th>{head}</tr>")
    for i, (name, values) in enumerate(zip(rows, numbers, strict=True)):
        cells = []
        for j, value in enumerate(values):
            shade = min(1.0, max(0.0, (value - low) / span))
            text = f"{texts[i][j]!r}, " if texts is not None else ""
            hint = escape(f"layer {j}: {text}{value:.3f}", quote=True)
            cells.append(
                f"<td title='{hint}' style='width:14px;height:14px;padding:0;"
                f"background:rgba({PLAIN},{shade:.2f});border:1px solid #8882'></td>"
            )
        label = f"<td style='padding:0 6px;text-align:right'><code>{escaped(name)}</code></td>"
        parts.append(f"<tr>{label}{''.join(cells)}</tr>")
    parts.append("</table>")
    if note:
        parts.append(f"<p style='margin:4px 0'>{escaped(note)}</p>")
    return "".join(parts)


def data_frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A pandas ``DataFrame`` of these rows.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    try:
        pandas = import_module("pandas")
    except ImportError:
        raise MissingExtraError.of("pandas", "pandas", "to_frame()") from None
    return pandas.DataFrame([dict(row) for row in rows])
