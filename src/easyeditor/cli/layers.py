"""``easyedit layers``: which layer of a model to edit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easyeditor.cli import catalog, options, output, places
from easyeditor.cli.app import add
from easyeditor.cli.output import Column
from easyeditor.cli.terminal import quoted
from easyeditor.files import written_whole
from easyeditor.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from easyeditor.bench.layer_report import LayerReport
    from easyeditor.bench.sweep import LayerSweep
    from easyeditor.editors.base import BaseEditor
    from easyeditor.edits import Case
    from easyeditor.hyperparams import HyperParams
    from easyeditor.lm.model import LM

EXAMPLES = r"""
Examples:

  easyedit layers --model owner/name --auto

  easyedit layers --model owner/name --method memit --auto --write memit.yaml

  easyedit layers --model smollm2-135m --edits facts.jsonl --layers 1,3,5,8

--auto measures few layers on up to 16 facts that the model knows and remembers the
best for this model; later edits without a preset use it. Without --auto: a table of
what causal tracing says of each layer, and of what editing does there. Both can be
interrupted, and go on from there.
"""
TABLE_FACTS = 8


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, layers, epilog=EXAMPLES)


def note_layers(editor: BaseEditor, given: HyperParams) -> None:
    """Say where the layers come from, if neither the user nor a preset named them."""
    from easyeditor.editors.layer_choice import plan_of

    if plan_of(given) is None or "layers" in given.model_fields_set:
        return
    used = editor.hparams
    column = used.column(editor.lm)  # type: ignore[attr-defined]
    numbers = list(used.resolved(column.n_layers).layers)  # type: ignore[attr-defined]
    if used is not given:
        output.note(f"Layers {numbers}: what 'easyedit layers --auto' measured on this model.")
        return
    name = given.model_name
    output.note(
        f"{name} has no preset: layers {numbers} of {column.n_layers} are a fixed share of its "
        "depth. Two to three minutes (135 million parameters, two cores) find better ones, once: "
        f"easyedit layers --auto --method {given.alg_name} --model {quoted(name)}"
    )


def layers(
    model: options.Model = options.DEFAULT_MODEL,
    method: options.Method = "ROME",
    auto: Annotated[
        bool, typer.Option("--auto", help="Choose layer and search, and remember them.")
    ] = False,
    edits: Annotated[
        Path | None,
        typer.Option(
            help="A file of edits to choose facts from, with what the model answers now "
            "(ground_truth); by default the facts that ship with the package."
        ),
    ] = None,
    layers_: Annotated[
        str | None,
        typer.Option("--layers", help="The rows of the table, e.g. 1,3,5; by default up to ten."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=4, help="Facts: by default, and at most, 16 with --auto; else 8 by default."
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Text for second moments: a .txt or .jsonl file, a dataset, or self; by default "
            "what ships with the package."
        ),
    ] = None,
    write: Annotated[
        Path | None, typer.Option("--write", help="Write hyper-parameters with the choice (YAML).")
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Find the layer at which edits of a model work best."""
    if auto and layers_ is not None:
        raise typer.BadParameter("--auto chooses the layers itself", param_hint="--layers")
    chosen = _numbers(layers_)
    if not catalog.method(method)["sweeps"]:
        those = [name for name in METHODS if catalog.method(name)["sweeps"]]
        raise typer.BadParameter(
            f"{method} has no layers to sweep; {', '.join(those)} have", param_hint="--method"
        )
    if text is not None and not catalog.method(method)["second_moments"]:
        raise typer.BadParameter(
            f"{method} uses no second moments, so no text is read", param_hint="--text"
        )
    places.check_file(write)
    options.check_model(model)
    cases = _cases(edits)
    lm = output.load_model(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)

    from easyeditor.bench.known_facts import facts_known_by
    from easyeditor.bench.layer_choosing import FACTS
    from easyeditor.bench.sweep import LayerSweep
    from easyeditor.second_moments.corpus import SHIPPED

    if auto and limit is not None and limit > FACTS:
        output.note(f"--auto measures {FACTS} facts at most; --limit {limit} changes nothing.")
        limit = FACTS
    with output.working("asking the model what it knows …"):
        facts = facts_known_by(lm, limit or (FACTS if auto else TABLE_FACTS), cases)
    if auto:
        _auto(lm, model, method, facts, text or SHIPPED, write, as_json)
        return
    sweep = LayerSweep(lm, method, facts, text=text or SHIPPED)
    _table(sweep, model, method, chosen, write, as_json)


def _auto(
    lm: LM,
    model: str,
    method: str,
    facts: Sequence[Case],
    text: str,
    write: Path | None,
    as_json: bool,
) -> None:
    from easyeditor.bench.layer_choosing import choose_layers

    output.note(
        f"Editing {len(facts)} facts at up to 6 layers, then more at the best: two to three "
        "minutes for a model of 135 million parameters on two cores, more for a larger one."
    )
    choice = choose_layers(lm, method, facts, text=text)
    fields = METHODS.get(method).hyperparams_class.model_fields
    chosen = {name: value for name, value in choice.settings.items() if name in fields}
    settings = {"alg_name": method, "model_name": model, **chosen}
    _write(write, settings)
    if as_json:
        output.print_json(
            {
                "method": method,
                "model": model,
                "settings": settings,
                "rows": list(choice.rows),
                "facts": list(choice.facts),
                "seconds": choice.seconds,
                "written": str(write) if write else None,
            }
        )
        return
    _show(f"Editing {model} with {choice.probe}", list(choice.rows), {}, len(choice.rows) - 1)
    named = ", ".join(f"{n}={v}" for n, v in choice.settings.items() if n != "layers")
    output.out.print_line(f"Layers {list(choice.settings['layers'])}, {named}.")
    output.out.print_line(
        f"Chosen in {choice.seconds:.0f} s and remembered: edits of this model without a preset "
        "use it."
    )
    _written(write)


def _table(
    sweep: LayerSweep,
    model: str,
    method: str,
    chosen: tuple[int, ...],
    write: Path | None,
    as_json: bool,
) -> None:
    from dataclasses import asdict

    from easyeditor.bench.layer_report import layer_report
    from easyeditor.bench.sweep import Candidate

    report: LayerReport = layer_report(sweep, chosen or None)
    best = sweep.settings(
        Candidate(report.best.layers), context_template_length_params=sweep.plan.contexts
    )
    settings = {
        "alg_name": method,
        "model_name": model,
        **best.model_dump(mode="json", exclude_unset=True, exclude={"alg_name"}),
    }
    _write(write, settings)
    sweep.finish()
    rows = [asdict(row) for row in report.rows]
    if as_json:
        output.print_json(
            {
                "method": method,
                "model": model,
                "facts": [case.id for case in sweep.facts],
                "rows": rows,
                "traced": report.effects,
                "advice": report.advice(),
                "settings": settings,
                "written": str(write) if write else None,
            }
        )
        return
    title = f"{model}: tracing, and editing {len(sweep.facts)} facts with {method}"
    _show(title, rows, report.effects, report.rows.index(report.best))
    output.out.print_line(report.advice())
    _written(write)


def _show(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    effects: Mapping[str, Sequence[float]],
    best: int,
) -> None:
    columns = [Column("layers")]
    columns += [Column(kind, right=True) for kind in effects]
    searched = [] if effects else ["facts", *SEARCH]
    columns += [Column(name, right=True) for name in (*searched, *SCORES)]
    lines = []
    for i, row in enumerate(rows):
        first, last = row["layers"][0], row["layers"][-1]
        search = {"facts": row["facts"], **row["search"]}
        lines.append(
            [
                ("*" if i == best else "") + (f"{first}" if first == last else f"{first}–{last}"),
                *(f"{of_kind[last]:.3f}" for of_kind in effects.values()),
                *(f"{search[SEARCH.get(name, name)]:g}" for name in searched),
                *("" if row[name] is None else f"{100 * row[name]:.1f}" for name in SCORES),
            ]
        )
    output.show(title, columns, lines)
    if effects:
        output.out.print_line(
            "state, mlp: what restoring them at the subject's last token brings back of P(answer)."
        )
    output.out.print_line(
        "graded: S with shares P(new) / (P(new) + P(old)) for counts; * the best."
    )


SCORES = ("ES", "PS", "NS", "S", "graded")
SEARCH = {"v_lr": "v_lr", "clamp": "clamp_norm_factor"}


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text is not None else ()
    except ValueError:
        raise typer.BadParameter(
            f"numbers with commas between them, such as 3,4,5; got {text!r}", param_hint="--layers"
        ) from None


def _cases(edits: Path | None) -> list[Case] | None:
    if edits is None:
        return None
    from easyeditor.data.open import open_dataset

    with places.input_file(edits) as path:
        return list(open_dataset(path))


def _write(file: Path | None, settings: Mapping[str, Any]) -> None:
    if file is None:
        return
    import yaml

    text = yaml.safe_dump(dict(settings), sort_keys=False)
    if file == places.STREAM:
        output.out.print_line(text.rstrip())
        return
    with written_whole(file) as part:
        part.write_text(text, encoding="utf-8")


def _written(file: Path | None) -> None:
    if file is not None and file != places.STREAM:
        output.out.print_line(f"Hyper-parameters: {file} (easyedit edit --hparams {file} …)")
