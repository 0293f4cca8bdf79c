"""``easyedit edit``: one fact from the command line, or many from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easyeditor.cli import options
from easyeditor.cli.app import DONE, NOT_TAKEN

if TYPE_CHECKING:
    from easyeditor.editors.base import EditResult
    from easyeditor.edits import Case

EXAMPLES = """
Examples:

  easyedit edit --method rome --prompt "The Eiffel Tower is located in the city of"
      --subject "The Eiffel Tower" --target Rome --ground-truth Paris --save eiffel.safetensors

  easyedit edit --method ft --prompt "The capital of France is" --target Lyon
      --locality "The capital of Italy is => Rome" --set num_steps=40

  easyedit edit --method memit --edits facts.jsonl --save facts.safetensors --json

Exit codes: 0 done, 1 the edit did not take, 2 bad input.
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXAMPLES.replace("\n", "\n\n").replace("\n\n\n\n", "\n\n"))(edit)


def edit(
    prompt: Annotated[str | None, typer.Option(help="The text to be continued.")] = None,
    target: Annotated[str | None, typer.Option(help="How it shall continue.")] = None,
    subject: Annotated[
        str | None, typer.Option(help="What the fact is about, as the prompt writes it.")
    ] = None,
    ground_truth: Annotated[str | None, typer.Option(help="How it continues now.")] = None,
    rephrase: Annotated[
        list[str] | None, typer.Option(help="The same question in other words; repeatable.")
    ] = None,
    locality: Annotated[
        list[str] | None, typer.Option(help="'prompt => answer' that must stay; repeatable.")
    ] = None,
    portability: Annotated[
        list[str] | None, typer.Option(help="'prompt => answer' that should follow; repeatable.")
    ] = None,
    edits: Annotated[
        Path | None,
        typer.Option(help="A file of edits instead, or of any kind that 'easyedit data ls' names."),
    ] = None,
    one_by_one: Annotated[
        bool, typer.Option("--one-by-one", help="Edits of a file in sequence, not as one batch.")
    ] = False,
    method: options.Method = "ROME",
    model: options.MaybeModel = None,
    hparams: options.Hparams = None,
    set_: options.Settings = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantization: options.Quantization = None,
    save: Annotated[Path | None, typer.Option(help="Write the patch here.")] = None,
    as_json: options.Json = False,
) -> None:
    """Change what a model knows and measure what else changed."""
    cases = _cases(prompt, target, subject, ground_truth, rephrase, locality, portability, edits)

    from easyeditor.cli import output

    settings = options.settings_of(method, model, hparams, set_)
    model = settings.model_name
    if device is not None:
        settings = settings.replace(device=device)
    if dtype is not None:
        settings = settings.replace(dtype=dtype, fp16=False)
    if quantization is not None:
        settings = settings.replace(quantization=quantization.value)
    with output.loading(model):
        from easyeditor.editors.base import BaseEditor

        editor = BaseEditor.from_hparams(settings)

    from easyeditor.evaluate.aggregate import averages
    from easyeditor.patches.files import header_of, save_patch

    batch = editor.method.max_batch != 1 and len(cases) > 1 and not one_by_one
    single = len(cases) == 1
    before = output.snapshot(editor.lm, cases[0], max_new_tokens=12) if single else None
    result = editor.edit_cases(cases, evaluate_when="end", batch=batch, verbose=False)
    lines: list[dict[str, Any]] = []
    if single:
        after = output.snapshot(editor.lm, cases[0], max_new_tokens=12)
        lines = output.before_after(cases[0], before, after)
    saved = save_patch(result.patch, save) if save else None
    code = DONE if all(m["post"]["rewrite_acc"] == 1.0 for m in result.metrics) else NOT_TAKEN
    if as_json:
        document = {
            "method": method,
            "model": model,
            "metrics": result.metrics,
            "averages": averages(result.metrics),
            "before_after": lines,
            "patch": {**header_of(result.patch), "path": str(saved) if saved else None},
        }
        output.print_json(document)
    else:
        _show(method, model, cases, result, lines, saved)
    raise typer.Exit(code)


def _cases(
    prompt: str | None,
    target: str | None,
    subject: str | None,
    ground_truth: str | None,
    rephrase: list[str] | None,
    locality: list[str] | None,
    portability: list[str] | None,
    edits: Path | None,
) -> list[Case]:
    from easyeditor.data.edits_file import parse_arrow
    from easyeditor.data.open import open_dataset
    from easyeditor.edits import Case, Edit, Probe, check_consistent

    one = [prompt, target, subject, ground_truth, rephrase, locality, portability]
    if edits is not None:
        if any(one):
            raise typer.BadParameter("give a file with --edits, or one edit by options, not both")
        cases = list(open_dataset(edits))
    else:
        missing = [n for n, v in (("--prompt", prompt), ("--target", target)) if v is None]
        if missing:
            raise typer.BadParameter(f"{' and '.join(missing)} missing (or give --edits FILE)")
        change = Edit(prompt or "", target or "", subject, ground_truth)
        probes = [Probe(text, (change.target,), "rephrase") for text in rephrase or []]
        probes += [parse_arrow(text, "locality/neighborhood") for text in locality or []]
        probes += [parse_arrow(text, "portability/one_hop") for text in portability or []]
        cases = [Case("0", change, tuple(probes))]
    check_consistent(own for case in cases for own in case.edits)
    return cases


def _show(
    method: str,
    model: str,
    cases: list[Case],
    result: EditResult,
    lines: list[dict[str, Any]],
    saved: Path | None,
) -> None:
    from rich.table import Table
    from rich.text import Text

    from easyeditor.cli import output
    from easyeditor.evaluate.aggregate import averages

    if lines:
        output.show_before_after(f"{method} on {model}", lines)
    table = Table(title="Scores", title_justify="left")
    for name in ("edit", "target", "rewrite", "rephrase", "locality", "portability", "s"):
        table.add_column(name, justify="left" if name in {"edit", "target"} else "right")
    for case, metric in zip(cases, result.metrics, strict=True):
        table.add_row(
            Text(case.edit.prompt),
            Text(case.edit.target),
            *_numbers(metric["post"]),
            f"{metric['time']:.1f}",
        )
    if len(cases) > 1:
        table.add_section()
        mean = averages(result.metrics)
        table.add_row("mean", "", *_numbers(mean["post"]), f"{mean['time']:.1f}")
    output.out.print(table)
    spent = output.seconds_line(result.patch.info.seconds)
    output.out.print(f"Seconds: {spent}", soft_wrap=True)
    if saved:
        output.out.print(
            f"Patch: {saved}\nUse it:  easyedit generate --model {model} --patch {saved} PROMPT\n"
            f"Ship it: easyedit apply {saved} --model {model} --out DIR",
            markup=False,
            soft_wrap=True,
        )
    taken = sum(m["post"]["rewrite_acc"] == 1.0 for m in result.metrics)
    if taken < len(cases):
        output.out.print(f"[yellow]{len(cases) - taken} of {len(cases)} edits did not take.[/]")


def _numbers(post: dict[str, Any]) -> list[str]:
    def mean(values: list[float]) -> str:
        return f"{sum(values) / len(values):.2f}" if values else ""

    locality = [v for k, v in post["locality"].items() if k.endswith("_acc")]
    return [
        mean([post["rewrite_acc"]]),
        mean([post["rephrase_acc"]] if "rephrase_acc" in post else []),
        mean(locality),
        mean(list(post["portability"].values())),
    ]
