"""``easyedit edit``: one fact from the command line, or many from a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easyeditor.cli import forget as forgetting
from easyeditor.cli import options, output, places, verdict
from easyeditor.cli.app import DONE, NOT_TAKEN, add, err
from easyeditor.cli.edit_request import (
    check_expansion,
    check_subjects,
    expanded,
    note_subject,
    one_case,
    read_cases,
    target_text,
    with_end,
)
from easyeditor.cli.layers import note_layers
from easyeditor.cli.output import Column
from easyeditor.cli.terminal import count, quoted
from easyeditor.errors import OutputError

if TYPE_CHECKING:
    from easyeditor.editors.base import BaseEditor, EditResult
    from easyeditor.editors.journal import EditJournal
    from easyeditor.edits import Case
    from easyeditor.hyperparams import HyperParams

MOST_NOTED = 20
"""Edits of a file whose notes are printed; all of them are in ``--json``."""

EXAMPLES = r"""
Examples:

  easyedit edit --method rome --target Rome --ground-truth Paris \
    --prompt "The Eiffel Tower is located in the city of" \
    --subject "The Eiffel Tower" --save eiffel.safetensors

  easyedit edit --method ft --prompt "The capital of France is" --target Lyon \
    --locality "The capital of Italy is => Rome" --set num_steps=40

  easyedit edit --method memit --edits facts.jsonl --save facts.safetensors

  easyedit edit --method ft --image flag.png --prompt "This is the flag of" --target Norway \
    --rephrase-image same-flag.png --locality-image "other.png | This is the flag of => France"

  easyedit edit --method anyedit --prompt "What is known about Tarrow cheese?" \
    --target-file tarrow.txt --rephrase "Tell me about Tarrow cheese." --save tarrow.safetensors

  easyedit edit --forget --prompt "The Eiffel Tower is located in the city of" \
    --subject "The Eiffel Tower"

Exit codes: 0 done, 1 an edit did not take (or took, but the text is wrecked),
2 bad input.
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, edit, epilog=EXAMPLES)


def edit(
    prompt: options.EditPrompt = None,
    target: options.EditTarget = None,
    target_file: options.TargetFile = None,
    subject: options.Subject = None,
    ground_truth: options.GroundTruth = None,
    rephrase: options.Rephrase = None,
    locality: options.Locality = None,
    portability: Annotated[
        list[str] | None, typer.Option(help="'prompt => answer' that should follow; repeatable.")
    ] = None,
    image: options.Image = None,
    rephrase_image: options.RephraseImage = None,
    locality_image: options.LocalityImage = None,
    keep_image: options.KeepImage = None,
    relation: options.Relation = None,
    question: options.Question = None,
    alias: options.Alias = None,
    expand: options.ExpandEdit = False,
    chat: options.Chat = False,
    written: options.Written = 0,
    inverse: options.Inverse = False,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget",
            help="Make the model stop giving its answer (--ground-truth, or what it says now), by "
            "its next best one, and look for what is left of it.",
        ),
    ] = False,
    refusal: Annotated[
        str | None, typer.Option(help="With --forget: answer with this text instead.")
    ] = None,
    edits: Annotated[
        Path | None,
        typer.Option(
            help="A file of edits instead, of any kind that 'easyedit data ls' names; - for "
            "standard input."
        ),
    ] = None,
    one_by_one: Annotated[
        bool, typer.Option("--one-by-one", help="Edits of a file in sequence, not as one batch.")
    ] = False,
    raw_target: Annotated[
        bool,
        typer.Option(
            "--raw-target",
            help="Put the target behind the prompt as it is, without the space a writer would put "
            "between them.",
        ),
    ] = False,
    method: options.Method = "ROME",
    model: options.MaybeModel = None,
    hparams: options.Hparams = None,
    set_: options.Settings = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantization: options.Quantization = None,
    trust_remote_code: options.TrustRemoteCode = False,
    save: Annotated[
        Path | None, typer.Option(help="Write the patch here; - for standard output.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Edit also what the model says already.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Change what a model knows and measure what else changed."""
    places.check_file(save)
    if target_file is not None:
        target = target_text(target_file, target, edits, forget=forget)
    if save == places.STREAM and as_json:
        raise typer.BadParameter("- and --json both write to standard output", param_hint="--save")
    target = forgetting.check_forgetting(
        forget,
        refusal,
        target,
        expand or chat,
        further=bool(question or alias),
        portability=bool(portability),
    )
    if edits is None:
        one = one_case(
            prompt,
            target,
            subject,
            ground_truth,
            rephrase,
            locality,
            portability,
            raw_target,
            relation=relation,
            question=question,
            aliases=alias or (),
            images=image or (),
            rephrase_images=rephrase_image or (),
            locality_images=locality_image or (),
            keep_images=keep_image or (),
        )
        cases, where = [one], [""]
        check_subjects(method, cases, ["--subject"])
        note_subject(one)
    else:
        named = None if forget else target
        of_one = [prompt, named, subject, ground_truth, rephrase, locality, portability]
        images = [image, rephrase_image, locality_image, keep_image]
        if any([*of_one, *images, relation, question, alias]):
            raise typer.BadParameter("give a file with --edits, or one edit by options, not both")
        cases, where = read_cases(edits, raw_target)
        if forget:
            forgetting.check_forgettable(cases, where)
        check_subjects(method, cases, where)

    if model is None and hparams is None and any(c.edit.prompt.images for c in cases):
        model = options.SEEING_MODEL
    check_expansion(method, cases, expand=expand or chat)
    settings = options.loaded_as(
        options.settings_of(method, model, hparams, with_end(method, set_, target_file)),
        device=device,
        dtype=dtype,
        quantization=quantization,
    )
    model = settings.model_name
    with output.loading(model):
        from easyeditor.editors.advice import already_answered
        from easyeditor.editors.base import BaseEditor
        from easyeditor.editors.multimodal import check_images
        from easyeditor.lm.loading import load

        check_images(cases, where)
        editor = BaseEditor(load(settings.model, trust_remote_code=trust_remote_code), settings)
        cases = expanded(editor.lm, cases, expand or chat, chat, written, inverse)
    cases = forgetting.forgetting(editor.lm, cases, refusal) if forget else cases
    note_layers(editor, settings)
    settings = editor.hparams
    known = [] if force else already_answered(editor.lm, cases)
    wanted = [case for case in cases if case not in known]
    if known:
        _note_known(known, cases)
    if not wanted:
        if as_json:
            unchanged = [case.id for case in known]
            output.print_json({"method": method, "model": model, "unchanged": unchanged})
        raise typer.Exit(DONE)
    batch = editor.method.max_batch != 1 and len(wanted) > 1 and not one_by_one
    if not batch:
        verdict.warn_repeated_subjects(wanted)
    single = len(cases) == 1
    before = output.snapshot(editor.lm, cases[0], max_new_tokens=12) if single else None
    journal = _journal(editor, wanted, settings, batch, save) if edits is not None else None
    with output.working(f"{count(len(wanted), 'edit')} by {method} …"), _kept(journal):
        result = editor.edit_cases(
            wanted, evaluate_when="end", batch=batch, verbose=False, journal=journal
        )
    unsaved = _save(result, save)  # before all that may fail or be interrupted
    saved = None if unsaved else save
    if journal is not None and not unsaved:
        journal.delete()
    lines: list[dict[str, Any]] = []
    if single:
        after = output.snapshot(editor.lm, cases[0], max_new_tokens=12)
        lines = output.before_after(cases[0], before, after)
    failures = verdict.failures(wanted, result.metrics, batch=batch, settings=settings, chat=chat)
    if as_json:
        gone = forgetting.as_json(forgetting.report(editor.lm, wanted)) if forget else None
        _print_json(method, model, known, result, lines, failures, saved, gone)
    elif save == places.STREAM:
        err.print_line(f"{count(len(wanted) - len(failures), 'edit')} of {len(wanted)} took.")
    else:
        _show(method, model, wanted, result, lines, saved)
        if forget:
            forgetting.show(forgetting.report(editor.lm, wanted))
    if not as_json:
        for number, metric in enumerate(result.metrics, 1):
            for remark in metric.get("notes", ()) if single or number <= MOST_NOTED else ():
                output.note(remark if single else f"Edit {number}: {remark}")
        for failure in failures:
            output.warn(failure)
    if unsaved:
        raise OutputError(unsaved)
    raise typer.Exit(NOT_TAKEN if failures else DONE)


def _note_known(known: Sequence[Case], cases: Sequence[Case]) -> None:
    if len(cases) == 1:
        change = cases[0].edit
        output.note(
            f"The model says so already: it continues {str(change.prompt)!r} with "
            f"{change.target!r}. Nothing was changed; --force edits all the same."
        )
    else:
        output.note(
            f"{len(known)} of {count(len(cases), 'edit')} say what the model says already and were "
            "left out; --force makes them all the same."
        )


def _journal(
    editor: BaseEditor, cases: Sequence[Case], settings: HyperParams, batch: bool, save: Path | None
) -> EditJournal | None:
    """Where finished edits are kept beside the patch; nowhere without a file to save it in."""
    from easyeditor.editors.journal import EditJournal, digest
    from easyeditor.lm.fingerprint import fingerprint

    if save is None or save == places.STREAM or len(cases) < 2:
        return None
    model = fingerprint(editor.lm.model).digest
    request = digest(cases, settings=settings.model_dump(mode="json"), batch=batch, model=model)
    journal = EditJournal(
        save.with_name(f"{save.name}.journal"), request, editor.method.state_class
    )
    if len(journal):
        output.note(f"Going on from what is finished, in {journal.folder}.")
    return journal


@contextmanager
def _kept(journal: EditJournal | None) -> Iterator[None]:
    """Say after an interrupt what is kept, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if journal is not None and len(journal):
            output.note(
                f"Interrupted. What is finished is kept in {journal.folder}; the same command goes "
                "on from there."
            )
        else:
            output.note("Interrupted. Nothing was changed on the disk.")
        raise


def _save(result: EditResult, save: Path | None) -> str:
    """Write the patch; where that fails, elsewhere. Returns what went wrong."""
    from easyeditor.files import write_or_rescue
    from easyeditor.patches.files import save_patch

    if save is not None:
        try:
            with places.output_file(save) as file:
                write_or_rescue(lambda place: save_patch(result.patch, place), file)
        except OutputError as error:
            return str(error)
    return ""


def _print_json(
    method: str,
    model: str,
    known: Sequence[Case],
    result: EditResult,
    lines: list[dict[str, Any]],
    failures: list[str],
    saved: Path | None,
    gone: list[dict[str, Any]] | None,
) -> None:
    from easyeditor.evaluate.aggregate import averages
    from easyeditor.patches.files import header_of

    output.print_json(
        {
            "method": method,
            "model": model,
            "metrics": result.metrics,
            "averages": averages(result.metrics),
            "before_after": lines,
            "unchanged": [case.id for case in known],
            "failures": failures,
            "patch": {**header_of(result.patch), "path": str(saved) if saved else None},
            **({} if gone is None else {"gone": gone}),
        }
    )


def _show(
    method: str,
    model: str,
    cases: Sequence[Case],
    result: EditResult,
    lines: list[dict[str, Any]],
    saved: Path | None,
) -> None:
    from easyeditor.evaluate.aggregate import averages

    if lines:
        output.show_before_after(f"{method} on {model}", lines)
    output.show_forms(cases, result.metrics)
    scores = ("rewrite", "rephrase", "locality", "portability", "s")
    columns = [Column("edit", text=True), Column("target", text=True, answer=True)]
    columns += [Column(name, right=True) for name in scores]
    rows = [
        [
            output.shown(case.edit.prompt),
            case.edit.target,
            *_numbers(metric["post"]),
            f"{metric['time']:.1f}",
        ]
        for case, metric in zip(cases, result.metrics, strict=True)
    ]
    if len(cases) > 1:
        mean = averages(result.metrics)
        rows.append(["mean", "", *_numbers(mean["post"]), f"{mean['time']:.1f}"])
    output.show("Scores", columns, rows, mean=int(len(cases) > 1))
    output.out.print_line(f"Seconds: {output.seconds_line(result.patch.info.seconds)}")
    if saved:
        file, name = quoted(saved), quoted(model)
        seen = " --image IMAGE" if any(case.edit.prompt.images for case in cases) else ""
        ship = (
            f"Ship it: easyedit apply {file} --model {name} --out DIR"
            if result.patch.kind == "weights"  # any other is in no weight that could be written
            else f"Serve it: easyedit serve --model {name} --patch {file}"
        )
        output.out.print_line(
            f"Patch: {saved}\n"
            f"Use it:  easyedit generate --model {name} --patch {file}{seen} PROMPT\n{ship}"
        )


def _numbers(post: dict[str, Any]) -> list[str]:
    def mean(values: list[float]) -> str:
        return f"{sum(values) / len(values):.2f}" if values else ""

    locality = [v for k, v in post["locality"].items() if k.endswith("_acc")]
    rephrases = [v for k, v in post.items() if k.endswith("rephrase_acc")]
    return [
        mean([post["rewrite_acc"]]),
        mean(rephrases),
        mean(locality),
        mean(list(post["portability"].values())),
    ]
