"""``refusal``: the direction of refusing, taken out of a model's weights, beside its controls."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from easyeditor.cli import options, output, places
from easyeditor.cli.app import add
from easyeditor.cli.number_lists import numbers_of
from easyeditor.cli.output import Column
from easyeditor.cli.steer import check_place
from easyeditor.cli.terminal import quoted
from easyeditor.errors import DataError

if TYPE_CHECKING:
    from easyeditor.steering.refusal import RefusalDirection
    from easyeditor.steering.refusal_report import RefusalReport

T = TypeVar("T")
TEST_EVERY = 4
"""Every fourth prompt is in the report only."""
FEWEST = 4
EXAMPLES = r"""
Examples:

  easyedit refusal --harmful declined.txt --harmless answered.txt \
    --save refusal.safetensors

  easyedit refusal --harmful declined.txt --harmless answered.txt \
    --layer 0.4,0.6 --tokens 2 --refusal "I'm sorry" --as hooks --save refusal.safetensors
"""


class Form(str, Enum):
    """What the patch consists of."""

    weights = "weights"
    hooks = "hooks"
    added = "added"


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, refusal, epilog=EXAMPLES)


def refusal(
    harmful: Annotated[Path, typer.Option(help="Prompts that the model refuses, one per line.")],
    harmless: Annotated[Path, typer.Option(help="Prompts that it answers.")],
    refusal: Annotated[
        list[str] | None,
        typer.Option(
            help="A text that refusals begin with; repeatable. By default some in English."
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            "--layers",
            help="Layers to try; by default all below 0.8 of the depth, which takes long.",
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Last tokens to try; by default all that the prompts share at their end."
        ),
    ] = None,
    form: Annotated[
        Form,
        typer.Option(
            "--as",
            help="weights: ablated in the weights, and what cannot be in a second file; hooks: "
            "ablated by adapters in one file; added: the direction added, so that it refuses.",
        ),
    ] = Form.weights,
    plain: Annotated[bool, typer.Option("--plain", help="Ask without the chat template.")] = False,
    model: options.Model = options.DEFAULT_MODEL,
    device: options.Device = None,
    dtype: options.Dtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
    save: Annotated[Path | None, typer.Option(help="Write the patch here.")] = None,
    as_json: options.Json = False,
) -> None:
    """Find the direction that refusing lies in, and take it out of the weights."""
    from easyeditor.data.contrast import read_texts

    check_place(save)
    rest = None if save is None else save.with_name(f"{save.stem}-activations{save.suffix}")
    places.check_file(rest)
    if not all(text.strip() for text in refusal or ()):
        raise typer.BadParameter("a text is empty", param_hint="--refusal")
    texts = [read_texts(harmful), read_texts(harmless)]
    for path, kind in zip((harmful, harmless), texts, strict=True):
        if len(kind) < FEWEST:
            raise DataError(f"{path} holds {len(kind)} prompts; give {FEWEST} at least.")
    layers = None if layer is None else numbers_of(",".join(layer), "--layer")
    options.check_model(model)
    lm = output.load_model(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)

    from easyeditor.edits import Prompt
    from easyeditor.steering.ablating import ablation_hooks, ablation_weights
    from easyeditor.steering.refusal import REFUSALS, refusal_direction
    from easyeditor.steering.refusal_report import refusal_report

    chat = bool(getattr(lm.tokenizer, "chat_template", None)) and not plain
    kinds = [[Prompt(t, chat=True if chat else None) for t in kind] for kind in texts]
    refusals = tuple(refusal or REFUSALS)
    (bad, bad_test), (good, good_test) = (_split(kind) for kind in kinds)
    with output.working("measuring directions …"):
        direction = refusal_direction(
            lm, bad, good, refusals=refusals, layers=layers, tokens=tokens
        )
        ablation = ablation_weights(lm, direction.vector, direction.settings)
    with output.working("measuring what it does …"):
        report = refusal_report(
            lm, direction, bad_test, good_test, ablation=ablation, refusals=refusals
        )
    patches: dict[Path | None, Any] = {}
    if form is Form.weights and ablation.weights is not None:
        patches = {save: ablation.weights}
        if ablation.activations is not None:
            patches[rest] = ablation.activations
    elif form is Form.added:
        patches = {save: direction.inducing(lm)}
    else:
        patches = {save: ablation_hooks(lm, direction.vector, direction.settings)}
    written = _save(patches)
    if as_json:
        document = {**_described(direction), **report.to_json(), "patches": written}
        output.print_json({"model": model, **document})
        return
    _show(model, direction, report, len(bad_test), len(good_test))
    if written:
        words = " ".join(f"--patch {quoted(path)}" for path in written)
        output.out.print_line(f"Use it: easyedit generate --model {quoted(model)} {words} PROMPT")
    if len(written) > 1:
        output.note(
            "Two files are one change: what cannot be in the weights (an embedding that the output "
            "head shares, norms behind the MLP) is in the second, which no export holds."
        )


def _split(prompts: Sequence[T]) -> tuple[list[T], list[T]]:
    test = [prompt for i, prompt in enumerate(prompts) if i % TEST_EVERY == TEST_EVERY - 1]
    return [prompt for i, prompt in enumerate(prompts) if i % TEST_EVERY != TEST_EVERY - 1], test


def _save(patches: dict[Path | None, Any]) -> list[str]:
    from easyeditor.patches.files import save_patch

    return [str(save_patch(patch, path)) for path, patch in patches.items() if path is not None]


def _described(direction: RefusalDirection) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "chosen": asdict(direction.chosen),
        "meets_criteria": direction.strict,
        "candidates": [asdict(candidate) for candidate in direction.candidates],
    }


def _show(
    model: str, direction: RefusalDirection, report: RefusalReport, harmful: int, harmless: int
) -> None:
    best = direction.chosen
    output.out.print_line(
        f"Direction at token {best.token}, layer {best.layer}, of {len(direction.candidates)} "
        "measured."
    )
    if not direction.strict:
        output.warn(
            "No direction met the criteria (KL below 0.1, refusing induced); with this one ablated "
            "the model refuses least. Does it refuse these prompts at all?"
        )
    columns = [Column("", text=True), Column("refusal, harmful", right=True)]
    columns += [Column("refusal, harmless", right=True), Column("KL", right=True)]
    columns += [Column("perplexity", right=True), Column("after the first prompt", text=True)]
    rows = [
        [
            row.name,
            f"{row.harmful:+.2f}",
            f"{row.harmless:+.2f}",
            f"{row.kl:.4f}",
            f"{row.perplexity:.2f}",
            " ".join(row.text.split()),
        ]
        for row in report.rows
    ]
    title = f"{model}: {harmful} harmful and {harmless} harmless prompts, log-odds of refusing"
    output.show(title, columns, rows)
    output.out.print_line(
        f"Weights and hooks differ by {report.difference:.1g} at most (log-probabilities)."
    )
