"""The picture of docs/architecture.md: the floors, and the way of an edit and of an answer.

python scripts/architecture_picture.py [FILE.png]    # writes docs/pictures/architecture.svg, too
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

TARGET = Path(__file__).parent.parent / "docs" / "pictures" / "architecture.svg"
FLOORS = (  # top to bottom: number, folders, what they do
    ("9", ["cli/", "web/"], "parse, print"),
    (
        "8",
        ["bench/", "ledger/", "export/", "serving/", "sharing/"],
        "resumable runs; edits of a served model; other programs' formats; an endpoint",
    ),
    ("7", ["editors/", "train/"], "EditSession: edit, measure, keep or put back"),
    ("6", ["methods/"], "one file each: Edit + state → Outcome(patch, state)"),
    (
        "5",
        ["second_moments/", "associative/", "gradients/", "interpret/", "steering/", "evaluate/"],
        "statistics, keys and values, gradients; queries and scorers",
    ),
    ("4", ["patches/"], "what an edit is: weights, modules, routes; the stack; files"),
    (
        "3",
        ["lm/", "lm/forward/", "encoders/", "data/"],
        "the model, tokens, passes; files → Cases",
    ),
    (
        "2",
        ["edits.py", "hyperparams.py", "registry.py", "tensor_file.py", "json_log.py"],
        "the vocabulary, the two file formats",
    ),
    ("1", ["errors.py"], "the exception tree"),
)
COLOURS = ("#dbe4ee", "#e9eff5")
LEFT, WIDTH, HEIGHT = 1.0, 8.0, 0.86


def draw() -> Figure:
    """The picture."""
    figure = Figure(figsize=(11, 7.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 11)
    axes.set_ylim(0, 9.1)
    axes.axis("off")
    for i, (number, folders, purpose) in enumerate(FLOORS):
        _floor(axes, 8.05 - i * HEIGHT, number, folders, purpose, COLOURS[i % 2])
    down, up = "#1f4e79", "#7a4b00"
    _arrow(axes, 0.45, 8.6, 2.35, down)
    axes.text(
        0.2,
        5,
        "an edit: request → tokens → search → Patch",
        rotation=90,
        va="center",
        ha="center",
        fontsize=10,
        color=down,
    )
    _arrow(axes, 10.35, 2.35, 8.6, up)
    axes.text(
        10.65,
        5.4,
        "an answer: model → replies → scores → report",
        rotation=90,
        va="center",
        ha="center",
        fontsize=10,
        color=up,
    )
    axes.text(
        5,
        0.4,
        "A module imports its own floor and those below it, also inside functions.",
        ha="center",
        fontsize=10,
        style="italic",
    )
    return figure


def _floor(
    axes: Any, bottom: float, number: str, folders: list[str], purpose: str, colour: str
) -> None:
    """One floor: its folders as boxes, its purpose beneath them."""
    box = FancyBboxPatch(
        (LEFT, bottom),
        WIDTH + 0.9,
        HEIGHT - 0.1,
        boxstyle="round,pad=0,rounding_size=0.06",
        facecolor=colour,
        edgecolor="#8aa0b5",
    )
    axes.add_patch(box)
    axes.text(LEFT + 0.2, bottom + 0.38, number, fontsize=13, weight="bold", va="center")
    names = "    ".join(folders)
    axes.text(LEFT + 0.6, bottom + 0.53, names, fontsize=11, family="monospace", va="center")
    axes.text(LEFT + 0.6, bottom + 0.2, purpose, fontsize=9.5, color="#333333", va="center")


def _arrow(axes: Any, x: float, start: float, end: float, colour: str) -> None:
    axes.annotate(
        "", (x, end), (x, start), arrowprops={"arrowstyle": "-|>", "lw": 2, "color": colour}
    )


def main() -> None:
    """Write the picture."""
    settings = {"svg.hashsalt": "architecture", "svg.fonttype": "path"}
    with matplotlib.rc_context(settings):
        draw().savefig(TARGET, format="svg", metadata={"Date": None})
        for name in sys.argv[1:]:
            draw().savefig(name, dpi=90)


if __name__ == "__main__":
    main()
