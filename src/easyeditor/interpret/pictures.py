"""Heat maps of traces and lenses, as matplotlib figures: tokens down, layers across.

matplotlib's pyplot and its settings are left alone; a notebook shows a returned figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from easyeditor.errors import MissingExtraError, TraceError
from easyeditor.interpret.causal_trace import ROLES, AverageTrace, CausalTrace
from easyeditor.interpret.logit_lens import LogitLens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"state": "Purples", "mlp": "Greens", "attention": "Reds"}
LINES = {"state": "#7261ab", "mlp": "#20b020", "attention": "#f3201b"}
TITLES = {
    "state": "Impact of restoring state after corrupted input",
    "mlp": "Impact of restoring MLP after corrupted input",
    "attention": "Impact of restoring attention after corrupted input",
}
STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 7,
    "axes.titlesize": 7.5,
    "figure.facecolor": "white",
    "figure.dpi": 200,
    "svg.hashsalt": "easyeditor",
    "svg.fonttype": "path",
}
LINE, LETTER = 0.145, 0.062
"""Height of a token's row and width of a letter, in inches."""


@contextmanager
def _styled() -> Iterator[None]:
    try:
        import matplotlib
    except ImportError:
        raise MissingExtraError.of("matplotlib", "bench", "A picture") from None
    with matplotlib.rc_context(STYLE):
        yield


def trace_figure(trace: CausalTrace, model: str = "the model") -> Figure:
    """ROME's Fig. 1: the answer's score after restoring, floor at the corrupted run's.

    The subject's tokens are starred. Scores below the floor (noise may help) have its colour.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    labels = _labels(trace.tokens, trace.subject)
    with _styled():
        figure, axes = _empty(labels, trace.scores.shape[1])
        low = trace.corrupted
        high = max(float(trace.scores.max()), low + 1e-6)
        mesh = axes.pcolor(trace.scores.numpy(), cmap=COLOURS[trace.kind], vmin=low, vmax=high)
        _ticks(axes, labels, trace.scores.shape[1])
        severed = f", {trace.options.severed} severed" if trace.options.severed else ""
        axes.set_title(TITLES[trace.kind] + severed)
        if trace.kind == "state":
            axes.set_xlabel(f"single restored layer within {model}")
        else:
            name = "MLP" if trace.kind == "mlp" else "attention"
            axes.set_xlabel(f"center of interval of {trace.options.window} restored {name} layers")
        bar = figure.colorbar(mesh, ax=axes)
        probability = trace.options.metric == "probability"
        mark = "p" if probability else "Δlogit"
        bar.ax.set_title(f"{mark}({_plain(trace.answer.strip())})", fontsize=7)
    return figure


def average_figure(averages: Sequence[AverageTrace]) -> Figure:
    """ROME's Fig. 2: mean indirect effects by the role of the token, one map per kind.

    Raises:
        MissingExtraError: matplotlib is not installed.
        TraceError: there are none.
    """
    if not averages:
        raise TraceError("There is no average to draw; make one with average_traces.")
    with _styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(0.4 + 3.4 * len(averages), 2.2), layout="constrained")
        all_axes = figure.subplots(1, len(averages), squeeze=False)[0]
        for axes, average in zip(all_axes, averages, strict=True):
            numbers = average.effects.numpy()
            mesh = axes.pcolor(numbers, cmap=COLOURS[average.kind], vmin=0)
            _ticks(axes, ROLES if axes is all_axes[0] else [""] * len(ROLES), numbers.shape[1])
            axes.set_title(f"Avg. indirect effect of {average.kind}, n = {average.n}")
            axes.set_xlabel("layer" if average.kind == "state" else "center of the interval")
            figure.colorbar(mesh, ax=axes).ax.set_title("AIE", fontsize=7)
    return figure


def lens_figure(lens: LogitLens, after: LogitLens | None = None) -> Figure:
    """The answers' probabilities by token and layer; with ``after`` before and after an edit.

    Raises:
        MissingExtraError: matplotlib is not installed.
        TraceError: the two are of different prompts or answers.
    """
    lenses = [lens] if after is None else [lens, after]
    if after is not None and (after.tokens, after.answers) != (lens.tokens, lens.answers):
        raise TraceError(
            "Before and after are lenses of one prompt and the same answers; these are of "
            f"{lens.prompt!r} and {after.prompt!r}."
        )
    labels = _labels(lens.tokens, None)
    n_layers = lens.probabilities.shape[-1]
    high = max(float(one.probabilities.max()) for one in lenses)
    with _styled():
        from matplotlib.figure import Figure

        rows, columns = len(lenses), len(lens.answers)
        size = _width(labels, n_layers) * columns, (0.75 + LINE * len(labels)) * rows
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for line, one in zip(grid, lenses, strict=True):
            when = "" if after is None else (" before" if one is lens else " after")
            for axes, answer, numbers in zip(line, one.answers, one.probabilities, strict=True):
                mesh = axes.pcolor(numbers.numpy(), cmap="viridis", vmin=0, vmax=high)
                _ticks(axes, labels if axes is line[0] else [""] * len(labels), n_layers)
                axes.set_title(f"p({_plain(answer.strip())}){when}")
                axes.set_xlabel("layer")
        figure.colorbar(mesh, ax=grid)
    return figure


def _labels(tokens: Sequence[str], subject: tuple[int, int] | None) -> list[str]:
    names = [token.strip() or repr(token) for token in tokens]
    if subject is not None:
        first, last = subject
        names = [f"{name}*" if first <= i <= last else name for i, name in enumerate(names)]
    return [_plain(name) for name in names]


def _plain(text: str) -> str:
    """The text with dollars that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")


def _width(labels: Sequence[str], n_layers: int) -> float:
    return 1.6 + max(1.9, 0.05 * n_layers) + LETTER * max(map(len, labels))


def _empty(labels: Sequence[str], n_layers: int) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    size = _width(labels, n_layers), max(2.0, 0.75 + LINE * len(labels))
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def _ticks(axes: Axes, labels: Sequence[str], n_layers: int) -> None:
    axes.invert_yaxis()
    axes.set_yticks([0.5 + i for i in range(len(labels))], labels)
    every = 5 if n_layers > 6 else 1
    layers = range(0, n_layers, every)
    axes.set_xticks([0.5 + i for i in layers], [str(i) for i in layers])
    axes.tick_params(length=2)


def text_map(numbers: torch.Tensor, low: float, high: float) -> list[str]:
    """The rows of a map as text, one character a cell from light to dark, for terminals."""
    shades = " ·░▒▓█"
    scale = (len(shades) - 1) / max(high - low, 1e-12)
    levels = ((numbers - low) * scale).round().clamp(0, len(shades) - 1).long()
    return ["".join(shades[i] for i in row) for row in levels.tolist()]
