"""``steer``: a direction from texts of two kinds, as a patch, measured beside its controls."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easyeditor.cli import options, output, places
from easyeditor.cli.app import add
from easyeditor.cli.number_lists import numbers_of
from easyeditor.cli.output import Column
from easyeditor.cli.terminal import count, quoted
from easyeditor.errors import DataError
from easyeditor.files import written_whole

if TYPE_CHECKING:
    from easyeditor.data.contrast import Contrast
    from easyeditor.edits import Prompt
    from easyeditor.steering.conditions import Condition
    from easyeditor.steering.report import SteeringReport
    from easyeditor.steering.vectors import SteeringVectors

EXAMPLES = r"""
Examples:

  easyedit steer --positive polite.txt --negative rude.txt --layer 0.5 \
    --strength 4 --save polite.safetensors

  easyedit steer --pairs pairs.jsonl --sweep 1,2,4,8 --picture curve.png

  easyedit steer --method prompt --instruction "Answer in French." \
    --prompts questions.txt --positive french.txt --negative english.txt \
    --save french.safetensors

  easyedit export polite.safetensors --format control-vector --out polite
  llama-cli -m model.gguf --control-vector polite/control-vector.gguf
"""
PICTURES = (".png", ".svg")
IN_FRONT = 3
"""Positive texts that stand in front in the prompt-only row where no instruction is given."""


class VectorMethod(str, Enum):
    """How the vector is made."""

    caa = "caa"
    mean = "mean"
    prompt = "prompt"


class Module(str, Enum):
    """Whose output is read and steered."""

    block = "block"
    attention = "attention"
    mlp = "mlp"


class Read(str, Enum):
    """Which tokens of a text are read."""

    answer = "answer"
    last = "last"


class Where(str, Enum):
    """Which tokens are steered."""

    all = "all"
    prompt = "prompt"
    answer = "answer"
    after_prompt = "after_prompt"


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, steer, epilog=EXAMPLES)


def steer(
    positive: Annotated[
        Path | None,
        typer.Option(
            help="Texts that show what is wanted: one per line, or records with prompt and answer."
        ),
    ] = None,
    negative: Annotated[
        Path | None,
        typer.Option(help="Texts that do not; as many that begin alike, line by line, are pairs."),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="Instead: records with a prompt, a positive and a negative answer."),
    ] = None,
    method: Annotated[
        VectorMethod | None,
        typer.Option(
            help="caa: pairs; mean: two sets of texts; prompt: what --instruction changes in "
            "--prompts. By default caa for pairs (--pairs, or lines that begin alike), else mean."
        ),
    ] = None,
    instruction: Annotated[
        str,
        typer.Option(
            help="A text that asks for the same: of the prompt-only row, and of --method prompt."
        ),
    ] = "",
    prompts: Annotated[
        Path | None, typer.Option(help="Of --method prompt: one prompt per line.")
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            "--layers",
            help="A number, or a share of the depth; repeatable, or several with commas. 0.5 by "
            "default.",
        ),
    ] = None,
    module: Annotated[Module, typer.Option(help="Read and steer its output.")] = Module.block,
    read: Annotated[
        Read, typer.Option(help="Read all tokens of an answer, or the text's last.")
    ] = Read.answer,
    strength: Annotated[
        float, typer.Option(help="Of the saved patch; 1 adds the difference as it was read.")
    ] = 1.0,
    positions: Annotated[
        Where,
        typer.Option(
            help="The tokens that are steered; answer begins at the prompt's last token, "
            "after_prompt behind it."
        ),
    ] = Where.all,
    when: Annotated[
        Path | None, typer.Option(help="Prompts that are to be steered; with --unless.")
    ] = None,
    unless: Annotated[Path | None, typer.Option(help="Prompts that are not.")] = None,
    sweep: Annotated[
        str, typer.Option(help="Strengths to measure, e.g. 0.5,1,2,4; else the one of --strength.")
    ] = "",
    picture: Annotated[
        Path | None, typer.Option(help="Draw effect against perplexity (.png, .svg).")
    ] = None,
    ask: Annotated[
        list[str] | None, typer.Option(help="A prompt to continue in every row; repeatable.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Write all prompts by the chat template.")
    ] = False,
    model: options.Model = options.DEFAULT_MODEL,
    device: options.Device = None,
    dtype: options.Dtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
    save: Annotated[Path | None, typer.Option(help="Write the patch here.")] = None,
    as_json: options.Json = False,
) -> None:
    """Make a steering vector of texts of two kinds, and measure what it does."""
    check_place(save)
    _check_picture(picture, sweep)
    strengths = numbers_of(sweep, "--sweep") or [strength]
    layers = _layers(layer)
    contrast = _contrast(positive, negative, pairs)
    contrast = contrast.in_chat() if chat else contrast
    alike = contrast.paired or contrast.begins_alike
    chosen = (method or (VectorMethod.caa if alike else VectorMethod.mean)).value
    contrast = contrast.as_pairs() if chosen == "caa" else contrast
    questions = _prompts(_questions(chosen, prompts, instruction), chat)
    gates = [_prompts(texts, chat) for texts in _gates(when, unless)]
    options.check_model(model)
    lm = output.load_model(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)

    from easyeditor.steering.conditions import conditions_between
    from easyeditor.steering.report import steering_report
    from easyeditor.steering.vectors import contrast_vectors, prompt_vectors

    training, held_out = contrast.split()
    with output.working("reading the texts …", long=False):
        if questions:
            vectors = prompt_vectors(lm, questions, instruction, layers=layers, module=module.value)
        else:
            vectors = contrast_vectors(
                lm, training, method=chosen, layers=layers, module=module.value, read=read.value
            )
        condition = None
        if gates:
            condition = conditions_between(lm, gates[0], gates[1], layers, module.value)
    in_front = instruction.strip() or "\n".join(e.text for e in training.positive[:IN_FRONT])
    patch = vectors.patch(strength, positions.value, condition)
    with output.working("measuring …"):
        report = steering_report(
            lm,
            vectors,
            held_out,
            strengths,
            instruction=in_front,
            positions=positions.value,
            condition=condition,
            prompts=_prompts(ask or (), chat),
        )
    if picture is not None:
        _draw(report, picture)
    if save is not None:
        from easyeditor.patches.files import save_patch

        save_patch(patch, save)
    if as_json:
        output.print_json(_document(model, vectors, held_out, report, condition, save, picture))
        return
    _show(model, vectors, report, condition)
    if training is held_out:
        output.note("Measured on the texts that made the vector; give three of each or more.")
    if picture is not None:
        output.out.print_line(f"Picture: {picture}")
    if save is not None:
        name = quoted(model)
        output.out.print_line(
            f"Patch of strength {strength:g}: {save}\nUse it: easyedit generate --model {name} "
            f"--patch {quoted(save)} PROMPT"
        )


# -- what was asked ---------------------------------------------------------------------------


def check_place(save: Path | None) -> None:
    """Make sure, before the work, that a patch can be written; not to the stream of the tables.

    Raises:
        typer.BadParameter: it is standard output.
        OutputError: it cannot be written.
    """
    if save == places.STREAM:
        raise typer.BadParameter("the report is on standard output; name a file")
    places.check_file(save)


def _contrast(positive: Path | None, negative: Path | None, pairs: Path | None) -> Contrast:
    from easyeditor.data.contrast import read_contrast, read_pairs

    if pairs is not None:
        if positive is not None or negative is not None:
            raise typer.BadParameter("give --pairs, or --positive and --negative, not both")
        return read_pairs(pairs)
    if positive is None or negative is None:
        raise typer.BadParameter("give --positive and --negative, or --pairs")
    return read_contrast(positive, negative)


def _questions(method: str, prompts: Path | None, instruction: str) -> list[str]:
    """The prompts of a prompt vector; empty for other methods."""
    if method != "prompt":
        if prompts is not None:
            raise typer.BadParameter("only --method prompt takes them", param_hint="--prompts")
        return []
    if prompts is None or not instruction.strip():
        raise typer.BadParameter("--method prompt needs --prompts and --instruction")

    from easyeditor.data.contrast import read_texts

    return read_texts(prompts)


def _prompts(texts: Sequence[str], chat: bool) -> list[Prompt]:
    from easyeditor.edits import Prompt

    return [Prompt(text, chat=True if chat else None) for text in texts]


def _gates(when: Path | None, unless: Path | None) -> list[list[str]]:
    """The prompts of a condition, of both kinds; empty: all rows are steered."""
    if when is None and unless is None:
        return []
    if when is None or unless is None:
        raise typer.BadParameter("a condition needs both --when and --unless")

    from easyeditor.data.contrast import read_texts

    return [read_texts(when), read_texts(unless)]


def _layers(words: list[str] | None) -> list[int | float]:
    return numbers_of(",".join(words or ["0.5"]), "--layer")


def _check_picture(picture: Path | None, sweep: str) -> None:
    if picture is None:
        return
    if picture.suffix.lower() not in PICTURES:
        raise typer.BadParameter(f"{str(picture)!r} must end in {' or '.join(PICTURES)}")
    if len(numbers_of(sweep, "--sweep")) < 2:
        raise DataError("A picture shows several strengths: give --sweep, e.g. 0.5,1,2,4.")
    places.check_file(picture)


# -- what is shown ----------------------------------------------------------------------------


def _draw(report: SteeringReport, picture: Path) -> None:
    from easyeditor.bench.drawing import png, svg
    from easyeditor.bench.steering_picture import strength_picture

    figure = strength_picture(report)
    content = svg(figure) if picture.suffix.lower() == ".svg" else png(figure)
    with written_whole(picture) as part:
        part.write_bytes(content)


def _document(
    model: str,
    vectors: SteeringVectors,
    held_out: Contrast,
    report: SteeringReport,
    condition: dict[int, Condition] | None,
    save: Path | None,
    picture: Path | None,
) -> dict[str, Any]:
    gates = {layer: gate.accuracy for layer, gate in (condition or {}).items()}
    return {
        "model": model,
        "settings": dict(vectors.made_for.hyperparams),
        "sites": {str(layer): site for layer, site in vectors.sites.items()},
        "held_out": [len(held_out.positive), len(held_out.negative)],
        **report.to_json(),
        "condition_accuracy": {str(layer): accuracy for layer, accuracy in gates.items()},
        "patch": str(save) if save else None,
        "picture": str(picture) if picture else None,
    }


def _show(
    model: str,
    vectors: SteeringVectors,
    report: SteeringReport,
    condition: dict[int, Condition] | None,
) -> None:
    settings = vectors.settings
    columns = [Column("", text=True), Column("strength", right=True)]
    columns += [Column("effect (nats)", right=True), Column("preferred", right=True)]
    columns += [Column("perplexity", right=True)]
    rows = [
        [
            row.name,
            f"{row.strength:g}" if row.strength else "",
            _interval(row.effect.value, row.effect.low, row.effect.high),
            "" if row.preferred != row.preferred else f"{row.preferred:.0%}",
            "" if row.perplexity != row.perplexity else f"{row.perplexity:.2f}",
        ]
        for row in report.rows
    ]
    texts = count(report.rows[0].effect.n, "held-out pair" if report.paired else "held-out text")
    output.show(f"{vectors.made_for.method} on {model}, {texts}", columns, rows)
    for layer, norm, output_norm in zip(
        settings.layers, settings.norms, settings.output_norms, strict=True
    ):
        output.out.print_line(
            f"Layer {layer}, {settings.module}: the vector's norm is {norm:.4g}, "
            f"{norm / output_norm:.1%} of the outputs'."
        )
    for layer, gate in (condition or {}).items():
        output.out.print_line(
            f"Layer {layer}: the condition is right on {gate.accuracy:.0%} of held-out prompts."
        )
    if len({row.strength for row in report.rows}) > 2:
        best = report.harmless
        output.out.print_line(
            "No strength keeps the perplexity within 1.2 times."
            if best is None
            else f"The largest strength within 1.2 times the perplexity: {best:g}."
        )
    for i, prompt in enumerate(report.prompts):
        output.show(
            f"After {str(prompt)!r} (greedy)",
            [Column("", text=True), Column("strength", right=True), Column("text", text=True)],
            [[r.name, f"{r.strength:g}", " ".join(r.texts[i].split())] for r in report.rows],
        )


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:+.3f}" if low != low else f"{value:+.3f} ({low:+.3f} to {high:+.3f})"
