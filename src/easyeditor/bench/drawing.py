"""Draws numbers with intervals by matplotlib, and renders figures as bytes.

pyplot, its open figures and matplotlib's settings are not changed. Colours are those of Okabe and
Ito, which the colour-blind can distinguish; lines also differ in their markers.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from easyeditor.bench.table import AFTER_EACH, UNEDITED, Column, Row
from easyeditor.bench.writers import shown
from easyeditor.errors import MissingExtraError
from easyeditor.evaluate.bootstrap import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
PHASE_COLOURS = (*COLOURS[:6], "#882255", "#44AA99", "#AA4499", "#999933", "#332288", "#661100")
"""Of parts of one bar: none is the grey of the rest, none occurs twice."""
MARKS = "osD^vPX"
GREY = "#8C8C8C"
STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "hatch.linewidth": 0.8,
    "figure.facecolor": "white",
    "lines.markersize": 5,
    "svg.hashsalt": "easyeditor",
    "svg.fonttype": "path",
}
BEHIND: dict[str, Any] = {
    "xytext": (4, 0),
    "textcoords": "offset points",
    "fontsize": 8,
    "va": "center",
}
"""Where the figures of a bar stand."""
ACROSS = 4
"""Panels side by side."""
WRAP = 36
"""Letters of a name on one line."""
LETTER, LINE = 0.075, 0.17
"""Width of a letter and height of a line, in inches."""


@contextmanager
def styled() -> Iterator[None]:
    """A context with the package's matplotlib settings; the caller's are restored after it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise MissingExtraError.of("matplotlib", "bench", "A picture") from None
    with matplotlib.rc_context(STYLE):
        yield


def png(figure: Figure) -> bytes:
    """The figure as PNG, 150 dots per inch."""
    return _saved(figure, format="png", dpi=150)


def svg(figure: Figure) -> bytes:
    """The figure as SVG; equal figures give equal bytes."""
    return _saved(figure, format="svg", metadata={"Date": None})


@styled()
def _saved(figure: Figure, **how: Any) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes, not an error.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, **how)
    return file.getvalue()


def panels(
    n: int, height: float, *, width: float = 1.9, names: Sequence[str] = (), across: int = ACROSS
) -> Any:
    """A figure with ``n`` panels and room for names at the left.

    Returns ``(figure, axes)``; sizes in inches, of one panel.
    """
    from matplotlib.figure import Figure

    across = min(n, across)
    down = math.ceil(n / across)
    room = LETTER * max((len(line) for name in names for line in name.split("\n")), default=0)
    size = (0.5 + room + across * width, 0.5 + down * (height + 0.55))
    figure = Figure(figsize=size, layout="constrained")
    return figure, [figure.add_subplot(down, across, i + 1) for i in range(n)]


def written(name: str, letters: int = WRAP) -> str:
    """A name as a label: wrapped, dollar signs escaped."""
    return textwrap.fill(name, letters).replace("$", r"\$")


def height_of(names: Sequence[str]) -> float:
    """Height in inches of a panel with one row per name."""
    lines = max(name.count("\n") + 1 for name in names)
    return 0.25 + len(names) * max(0.3, 0.1 + LINE * lines)


def name_rows(axis: Axes, names: Sequence[str], *, visible: bool = True) -> None:
    """Label the rows with the names, the first at the top."""
    axis.set_yticks(range(len(names)), names if visible else [""] * len(names))
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")


def colours(rows: Sequence[Row]) -> list[str]:
    """One per row: by method, paler before a sequence went on, grey for the unedited model."""
    methods = list(dict.fromkeys(row.method for row in rows if row.method != UNEDITED))
    paint = {method: COLOURS[i % len(COLOURS)] for i, method in enumerate(methods)}
    return [
        _paler(paint[row.method]) if row.scored == AFTER_EACH else paint.get(row.method, GREY)
        for row in rows
    ]


def _paler(colour: str) -> str:
    """The colour mixed half with white."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{(part + 255) // 2:02X}" for part in parts)


def draw_bars(axis: Axes, rows: Sequence[Row], column: Column, paint: Sequence[str]) -> None:
    """A bar per row that has the number, its interval, and the number in figures behind both."""
    ends = [0.0]
    for y, (row, colour) in enumerate(zip(rows, paint, strict=True)):
        estimate = row.numbers.get(column.key)
        if estimate is None:
            continue
        value = estimate.value * column.scale
        text = shown(value, column.digits)
        if math.isfinite(value):
            axis.barh(y, value, 0.62, color=colour, zorder=2)
            ends.append(whiskers(axis, estimate, y, column.scale))
        end = max(0.0, ends[-1]) if math.isfinite(value) else 0.0
        axis.annotate(text, (end, y), **BEHIND)
    if column.scale == 100:
        axis.set_xlim(0, 100)  # the layout leaves room for the figures behind a full bar
        axis.set_xticks(range(0, 101, 25))
    else:
        axis.set_xlim(0, 1.35 * max(ends) or 1)
        axis.locator_params(axis="x", nbins=4)


def whiskers(
    axis: Axes, estimate: Estimate, y: float, scale: float, colour: str = "#333333"
) -> float:
    """Draw the interval of a number at height ``y``; returns where the drawing ends."""
    low, high = estimate.low * scale, estimate.high * scale
    if not (math.isfinite(low) and math.isfinite(high)):
        return estimate.value * scale
    axis.plot([low, high], [y, y], color=colour, linewidth=1.1, zorder=3, solid_capstyle="butt")
    axis.plot([low, high], [y, y], "|", color=colour, markersize=5, zorder=3)
    return max(high, estimate.value * scale)


def draw_line(
    axis: Axes, x: Sequence[float], estimates: Sequence[Estimate], number: int, label: str
) -> None:
    """Shares in percent against ``x``, with a band for the intervals."""
    colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
    style = ("-", "--", "-.")[number // len(COLOURS) % 3]
    y = [100 * estimate.value for estimate in estimates]
    axis.plot(x, y, style, marker=mark, color=colour, linewidth=1.6, label=label, zorder=3)
    low, high = [100 * f.low for f in estimates], [100 * f.high for f in estimates]
    axis.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0, zorder=2)


def legend(figure: Figure, axis: Axes) -> None:
    """Below the panels, in as many columns as the names leave room for."""
    handles, labels = axis.get_legend_handles_labels()
    longest = max(len(line) for label in labels for line in label.split("\n"))
    fit = int(figure.get_size_inches()[0] / (LETTER * longest + 0.55))
    rows = math.ceil(len(labels) / max(1, fit))
    columns = math.ceil(len(labels) / rows)  # no line much shorter than the others
    high = max(label.count("\n") + 1 for label in labels)
    figure.set_figheight(figure.get_figheight() + 0.15 + LINE * 1.25 * rows * high)
    where: dict[str, Any] = {"loc": "outside lower center", "ncols": columns, "frameon": False}
    figure.legend(handles, labels, **where)
