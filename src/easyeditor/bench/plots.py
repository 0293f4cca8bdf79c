"""The pictures of a report, as matplotlib figures.

Rows are methods and panels are numbers, so that any number of methods and names of any length fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from easyeditor.bench.drawing import (
    COLOURS,
    GREY,
    MARKS,
    PHASE_COLOURS,
    colours,
    draw_bars,
    draw_line,
    height_of,
    legend,
    name_rows,
    panels,
    styled,
    whiskers,
    written,
)
from easyeditor.bench.results import Run
from easyeditor.bench.table import UNEDITED, Column, Row, Table
from easyeditor.evaluate.aggregate import retention
from easyeditor.evaluate.bootstrap import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROBABILITY = {"rewrite_prob/target_new": "P(new)", "rewrite_prob/ground_truth": "P(true)"}
TITLES = {
    "S": "S: harmonic mean of ES, PS, NS",
    "ES": "ES: new answer likelier",
    "PS": "PS: … in other words",
    "NS": "NS: neighbours unchanged",
    "rewrite_acc": "rewrite accuracy",
    "rephrase_acc": "rephrase accuracy",
}
AGEING = {
    "S": "S",
    "NS": "NS",
    "rewrite_acc": "rewrite acc",
    "rephrase_acc": "rephrase acc",
    "locality/neighborhood_acc": "locality: neighborhood",
}
"""Scores that are drawn against the age of an edit."""
EVALUATE, EDIT = "seconds/evaluate", "seconds/edit"
REST = "#CFCFCF"


def figures(runs: Sequence[Run], table: Table) -> dict[str, Figure]:
    """Every picture there are numbers for, by name.

    ``scores``; ``probability`` (of the new and the true answer, before and after the edit);
    ``time`` and ``memory``; ``retention`` (sequences only).

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figures_by_name = {
        "scores": scores(table),
        "probability": probability_shift(table.rows),
        "time": seconds(table.rows),
        "memory": bars(
            table.rows, [c for c in table.columns if c.key.startswith("memory/")], "Peak of memory"
        ),
        "retention": ageing(runs),
    }
    return {name: figure for name, figure in figures_by_name.items() if figure is not None}


def scores(table: Table) -> Figure | None:
    """Every score of every row with its interval."""
    left_out = ("EM", "PM", "NM", "fluency", "consistency", "_success")  # no shares, or shown as NS
    columns = [c for c in table.columns if c.scale == 100 and not c.key.endswith(left_out)]
    return bars(table.rows, columns, "Scores in percent, mean over the cases with 95 % interval")


@styled()
def bars(rows: Sequence[Row], columns: Sequence[Column], title: str = "") -> Figure | None:
    """One panel per column, one bar per row; the unedited model is grey.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows = [row for row in rows if any(column.key in row.numbers for column in columns)]
    if not rows:
        return None
    names = [written(row.title) for row in rows]
    figure, axes = panels(len(columns), height_of(names), names=names)
    for axis, column in zip(axes, columns, strict=True):
        draw_bars(axis, rows, column, colours(rows))
        name_rows(axis, names, visible=axis.get_subplotspec().is_first_col())
        axis.set_title(written(TITLES.get(column.key, column.title), 26), loc="left")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


@styled()
def probability_shift(rows: Sequence[Row]) -> Figure | None:
    """P(new) and P(true) on the edited prompts: hollow before the edit, full after it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows = [row for row in rows if row.method != UNEDITED and PROBABILITY.keys() & row.numbers]
    if not rows:
        return None
    names = [written(row.title) for row in rows]
    figure, (axis,) = panels(1, 1.2 * height_of(names), width=5, names=names)
    for i, (key, title) in enumerate(PROBABILITY.items()):
        look: dict[str, Any] = {"marker": MARKS[i], "color": COLOURS[i], "linestyle": "none"}
        for y, row in enumerate(rows):
            if key in row.numbers and key in row.before:
                height = y - 0.17 + 0.34 * i
                old, new = row.before[key].value, row.numbers[key].value
                axis.plot([old, new], [height] * 2, color=COLOURS[i], linewidth=1.2, alpha=0.6)
                whiskers(axis, row.numbers[key], height, 1)
                axis.plot(old, height, markerfacecolor="white", zorder=4, **look)
                axis.plot(new, height, zorder=5, **look)
        axis.plot([], [], markerfacecolor="white", label=f"{title} before", **look)
        axis.plot([], [], label=f"{title} after", **look)
    name_rows(axis, names)
    axis.set_xlim(-0.03, 1.03)
    axis.set_xlabel("probability (geometric mean per token)")
    legend(figure, axis)
    return figure


@styled()
def seconds(rows: Sequence[Row]) -> Figure | None:
    """Seconds per edit, split into its phases where they are known, and seconds to evaluate.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows = [row for row in rows if EDIT in row.numbers]
    if not rows:
        return None
    names = [written(row.title) for row in rows]
    figure, (edit, evaluate) = panels(2, height_of(names), width=3.2, names=names)
    keys = dict.fromkeys(k for row in rows for k in row.numbers if k.startswith("seconds/"))
    phases = [key for key in keys if key not in {EDIT, EVALUATE}]
    draw_bars(edit, rows, Column(EDIT, "", "", 1, 2), [REST if phases else COLOURS[0]] * len(rows))
    left = [0.0] * len(rows)
    for i, key in enumerate(phases):
        width = [row.numbers[key].value if key in row.numbers else 0.0 for row in rows]
        hatch = ("", "///", "...")[i // len(PHASE_COLOURS) % 3]
        look: dict[str, Any] = {"color": PHASE_COLOURS[i % len(PHASE_COLOURS)], "hatch": hatch}
        label = written(key.removeprefix("seconds/"))
        edit.barh(range(len(rows)), width, 0.62, left, label=label, edgecolor="w", zorder=2, **look)
        left = [a + b for a, b in zip(left, width, strict=True)]
    draw_bars(evaluate, rows, Column(EVALUATE, "", "", 1, 2), [GREY] * len(rows))
    name_rows(edit, names)
    name_rows(evaluate, names, visible=False)
    edit.set_title("seconds per edit", loc="left")
    evaluate.set_title("seconds to evaluate a case", loc="left")
    if phases:
        edit.barh(0, 0, color=REST, label="other")
        legend(figure, edit)
    return figure


@styled()
def ageing(runs: Sequence[Run]) -> Figure | None:
    """Scores against the number of later edits: grey right after the edit, coloured at the end.

    One line of panels per method.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    ages = {
        f"{run.name} · {label}" if runs[1:] else label: retention(both)
        for run in runs
        for label in run.records
        if (both := run.both(label))
    }
    keys = [k for k in AGEING if any(k in b["at_end"] for age in ages.values() for b in age)]
    if not keys:
        return None
    names = [written(name, 20) for name in ages]
    figure, axes = panels(len(keys) * len(ages), 1.1, names=names, across=len(keys))
    for i, (name, buckets) in enumerate(zip(names, ages.values(), strict=True)):
        line = axes[i * len(keys) : (i + 1) * len(keys)]
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axis, key in zip(line, keys, strict=True):
            shown = [b for b in buckets if key in b["at_end"] and key in b["after_edit"]]
            middle = [(b["age"] + b["oldest"]) / 2 for b in shown]
            fresh = [100 * b["after_edit"][key].value for b in shown]
            axis.plot(middle, fresh, "--", color=GREY, linewidth=1.4, label="right after the edit")
            label = "at the end of the sequence"
            draw_line(axis, middle, [b["at_end"][key] for b in shown], 0, label)
            axis.set_ylim(-4, 104)
            axis.set_yticks(range(0, 101, 25), [] if axis is not line[0] else None)
            if i == 0:
                axis.set_title(AGEING[key], loc="left")
            if i == len(names) - 1:
                axis.set_xlabel("later edits")
    legend(figure, axes[0])
    return figure


@styled()
def layer_plot(
    points: Mapping[int, Mapping[str, Estimate]],
    *,
    unedited: Mapping[str, Estimate] | None = None,
) -> Figure:
    """What editing each layer gains and costs: S, ES, PS and NS against the edited layer.

    Args:
        points: a :func:`~easyeditor.evaluate.aggregate.summary` of ``post`` per layer.
        unedited: that of ``pre``; its NS is drawn as a line, the height to keep.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure, (axis,) = panels(1, 2.8, width=5.2)
    for number, name in {0: "ES", 1: "PS", 2: "NS", 6: "S"}.items():  # the sum of it in black
        there = [layer for layer in sorted(points) if name in points[layer]]
        if there:
            draw_line(axis, there, [points[layer][name] for layer in there], number, name)
    if unedited and "NS" in unedited:
        axis.axhline(100 * unedited["NS"].value, ls="--", color=GREY, label="NS, unedited")
    axis.set_ylim(-4, 104)
    axis.set_xlabel("edited layer")
    axis.xaxis.get_major_locator().set_params(integer=True)
    legend(figure, axis)
    return figure
