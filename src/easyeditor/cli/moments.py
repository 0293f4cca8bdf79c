"""``easyedit moments``: collect or show second moments, and see how many tokens they need."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easyeditor.cli import catalog, options, output, places
from easyeditor.cli.app import add
from easyeditor.cli.terminal import count
from easyeditor.methods import METHODS

if TYPE_CHECKING:
    from easyeditor.bench.convergence import Row
    from easyeditor.edits import Case
    from easyeditor.lm.model import LM
    from easyeditor.methods.locate import LocateHyperParams
    from easyeditor.second_moments import Moments

EXAMPLES = """
Examples:

  easyedit moments --model gpt2-xl --method memit --dataset wikipedia

  easyedit moments --layers 2,3,4 --tokens 20000 --dataset corpus.jsonl --json

  easyedit moments --convergence --edits facts.jsonl

What is collected is kept where edits look for it; a collection that was killed goes on.
"""
NO_EDITS = "none"


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, moments, epilog=EXAMPLES)


def moments(
    method: options.Method = "ROME",
    model: options.MaybeModel = None,
    layers: Annotated[
        str | None, typer.Option(help="For example 3,4,5 or -1; by default those of the method.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="shipped (texts of the package), self (sampled from the model), a .txt or .jsonl "
            "file, or a dataset."
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="How many; by default the preset's, else 10 × d_in.")
    ] = None,
    convergence: Annotated[
        bool,
        typer.Option(
            "--convergence",
            help="How eigenvalues and scores of edits move with 0.5, 1, 2, 4, 10 × d_in tokens.",
        ),
    ] = False,
    edits: Annotated[
        str | None,
        typer.Option(
            help="Edits for --convergence: a file, a name (easyedit data ls), or none; by default "
            "shipped facts that the model knows."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many edits.")] = 8,
    hparams: options.Hparams = None,
    set_: options.Settings = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Collect second moments, or show those that are there."""
    wanted = _numbers(layers)
    if edits is not None and not convergence:
        raise typer.BadParameter("only --convergence makes edits", param_hint="--edits")
    settings = _settings(method, model, hparams, set_, dataset, tokens)
    cases = _cases(edits, limit)

    from easyeditor.editors.layer_choice import automatic
    from easyeditor.hyperparams import resolve_layers

    model = settings.model_name
    settings = options.loaded_as(settings, device=device, dtype=dtype)
    with output.loading(model):
        from easyeditor.lm.loading import load

        lm = load(settings.model, trust_remote_code=trust_remote_code)
    settings = automatic(lm, settings)
    column = settings.column(lm)
    chosen = [int(n) for n in resolve_layers(wanted or settings.layers, column.n_layers)]
    reply = {"method": method, "model": model, "dataset": settings.mom2_dataset}
    if not convergence:
        result = settings.second_moments(column, chosen)
        shown = [_about(layer, created) for layer, created in result.items()]
        if as_json:
            output.print_json({**reply, "layers": shown})
        else:
            _show(f"Second moments of {model}", shown)
        return

    from easyeditor.bench import convergence as report

    if cases is None:
        cases = report.known_facts(lm, limit)
    sizes = _sizes(column, chosen[0], tokens)
    rows = list(report.convergence(lm, settings, cases, layers=chosen, sizes=sizes))
    if as_json:
        ids = [case.id for case in cases]
        output.print_json({**reply, "edits": ids, "rows": [row.plain() for row in rows]})
        return
    _show_rows(f"Second moments of {model}, {method}", rows)
    if cases:
        edits_made = count(len(cases), "edit")
        output.out.print(f"Scores: mean of {edits_made}, each from the unedited model.")
    elif edits is None:
        output.out.print("The model knows none of the shipped facts: give --edits FILE for scores.")


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text is not None else ()
    except ValueError:
        raise typer.BadParameter(
            f"numbers with commas between them, such as 3,4,5; got {text!r}", param_hint="--layers"
        ) from None


def _settings(
    method: str,
    model: str | None,
    hparams: Path | None,
    changes: list[str] | None,
    dataset: str | None,
    tokens: int | None,
) -> LocateHyperParams:
    if not catalog.method(method)["second_moments"]:
        those = [name for name in METHODS if catalog.method(name)["second_moments"]]
        raise typer.BadParameter(
            f"{method} uses no second moments; {', '.join(those)} do", param_hint="--method"
        )
    settings: Any = options.settings_of(method, model, hparams, changes)
    given = {"mom2_dataset": dataset, "mom2_n_tokens": tokens}
    changed = {name: value for name, value in given.items() if value is not None}
    located: LocateHyperParams = settings.replace(**changed)
    places.check_settings(method, located)
    return located


def _cases(edits: str | None, limit: int) -> list[Case] | None:
    """The edits of a file or a name; None if the model is to be asked what it knows."""
    if edits is None:
        return None
    if edits == NO_EDITS:
        return []
    from easyeditor.data.open import open_dataset

    return list(open_dataset(edits, size=limit))


def _sizes(column: LM, layer: int, tokens: int | None) -> list[int] | None:
    """The usual sizes, up to the number of tokens that was asked for."""
    if tokens is None:
        return None
    from easyeditor.bench.convergence import WIDTHS

    d_in = column.projection(layer).d_in
    return [*(size for width in WIDTHS if (size := round(width * d_in)) < tokens), tokens]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no infinity


def _about(layer: int, moment: Moments) -> dict[str, Any]:
    return {
        "layer": layer,
        "d_in": len(moment.matrix),
        "tokens": moment.tokens,
        "condition_number": _finite(moment.condition_number()),
        "source": moment.source,
        "file": str(moment.path) if moment.path else None,
    }


def _show(title: str, shown: Sequence[dict[str, Any]]) -> None:
    names = ("layer", "d_in", "tokens", "condition number")
    columns = [
        *(output.Column(name, right=True) for name in names),
        output.Column("source", text=True),
    ]
    rows = [
        [
            *(str(line[name]) for name in names[:3]),
            _short(line["condition_number"]),
            line["source"],
        ]
        for line in shown
    ]
    output.show(title, columns, rows)
    for line in shown:
        place = line["file"] or "in no file: the folder cannot be written"
        output.out.print_line(f"Layer {line['layer']}: {place}")


def _short(value: float | None) -> str:
    return "∞" if value is None else f"{value:.0f}" if value < 1e5 else f"{value:.0e}"


SCORES = ("rewrite", "rephrase", "locality")


def _show_rows(title: str, rows: Sequence[Row]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from easyeditor.bench.convergence import RANKS

    scores = [name for name in SCORES if name in rows[-1].scores]
    layers = [spectrum.layer for spectrum in rows[-1].layers]
    title += f", layer {layers[0]}" if len(layers) == 1 else ""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    ranks = [rank for rank in RANKS if rank in rows[-1].layers[0].eigenvalues]
    numbers = [*(f"λ{rank}" for rank in ranks), "cond.", "dist.", *scores]
    for name in ["tokens", "× d_in", *(["layer"] if len(layers) > 1 else []), *numbers]:
        table.add_column(name, justify="right")
    for row in rows:
        for line in _lines(row, ranks, scores):
            table.add_row(*line)
    output.out.print(table)
    output.out.print("λn: n-th largest eigenvalue. cond.: λ1/λmin. dist.: ‖C − C_last‖/‖C_last‖.")


def _lines(row: Row, ranks: Sequence[int], scores: Sequence[str]) -> Iterator[list[str]]:
    """One per layer; what belongs to all of them stands in the first."""
    for i, spectrum in enumerate(row.layers):
        yield [
            f"{row.tokens}" if i == 0 else "",
            f"{row.widths:.3g}" if i == 0 else "",
            *([str(spectrum.layer)] if len(row.layers) > 1 else []),
            *(f"{spectrum.eigenvalues[rank]:.3g}" for rank in ranks),
            _short(_finite(spectrum.condition_number)),
            f"{spectrum.distance:.2f}",
            *(f"{row.scores[name]:.2f}" if i == 0 else "" for name in scores),
        ]
