"""The effect of a steering vector against what it costs, as a matplotlib figure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from easyeditor.bench.drawing import COLOURS, GREY, MARKS, legend, panels, styled
from easyeditor.errors import DataError
from easyeditor.steering.report import (
    MOST_PERPLEXITY,
    PROMPT_ONLY,
    RANDOM,
    STEERED,
    SteeringReport,
    SteeringRow,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE = 10
"""Times the least perplexity, from which the axis is logarithmic."""
LINES = ((STEERED, 0, "steering vector"), (RANDOM, 1, "random vectors of the same norm"))


@styled()
def strength_picture(report: SteeringReport) -> Figure:
    """Left the effect by strength, right the effect against the perplexity it costs.

    The prompt's effect is a dashed line; the unsteered model's a thin one. A dotted line marks 1.2
    times the unsteered perplexity.

    Raises:
        DataError: the report holds fewer than two strengths.
        MissingExtraError: matplotlib is not installed.
    """
    if len(report.named(STEERED)) < 2:
        raise DataError("A picture shows several strengths; this report has one. Give a list.")
    figure, (left, right) = panels(2, 2.6, width=3.4)
    base, prompt = report.rows[0], report.named(PROMPT_ONLY)[0]
    for name, number, label in LINES:
        rows = report.named(name)
        look: dict[str, Any] = {"marker": MARKS[number], "color": COLOURS[number]}
        strengths = [row.strength for row in rows]
        left.plot(strengths, [row.effect.value for row in rows], label=label, **look)
        if not any(math.isnan(row.effect.low) for row in rows):
            bounds = [row.effect.low for row in rows], [row.effect.high for row in rows]
            left.fill_between(strengths, *bounds, color=COLOURS[number], alpha=0.13, linewidth=0)
        _against_cost(right, rows, look)
    for axis in (left, right):
        axis.axhline(prompt.effect.value, ls="--", color=COLOURS[2], label="prompt only")
        axis.axhline(base.effect.value, color=GREY, linewidth=0.9, label="unsteered")
    right.axvline(MOST_PERPLEXITY * base.perplexity, ls=":", color=GREY)
    left.set_xlabel("strength")
    left.set_ylabel("effect: log-probability margin (nats)")
    costs = [row.perplexity for row in report.rows if math.isfinite(row.perplexity)]
    if max(costs) > WIDE * min(costs):
        right.set_xscale("log")
    right.set_xlabel("perplexity of other text")
    right.set_title("effect against cost", loc="left")
    left.set_title("effect by strength", loc="left")
    legend(figure, left)
    return figure


def _against_cost(axis: Axes, rows: list[SteeringRow], look: dict[str, Any]) -> None:
    finite = [row for row in rows if math.isfinite(row.perplexity)]
    axis.plot([r.perplexity for r in finite], [r.effect.value for r in finite], **look)
    for row in finite:
        if row.name == STEERED:
            where: dict[str, Any] = {"xytext": (4, 3), "textcoords": "offset points", "fontsize": 7}
            axis.annotate(f"{row.strength:g}", (row.perplexity, row.effect.value), **where)
