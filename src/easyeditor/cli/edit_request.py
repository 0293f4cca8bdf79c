"""The cases that the options of ``easyedit edit`` describe, or a file of edits holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from easyeditor.cli import catalog, output, places
from easyeditor.cli.terminal import count
from easyeditor.errors import EditError, SubjectRequiredError

if TYPE_CHECKING:
    from easyeditor.edits import Case, Edit, Probe, Prompt
    from easyeditor.lm.model import LM

IMAGE_REPHRASE = "rephrase/image"


def one_case(
    prompt: str | None,
    target: str | None,
    subject: str | None,
    ground_truth: str | None,
    rephrase: list[str] | None,
    locality: list[str] | None,
    portability: list[str] | None,
    raw_target: bool,
    *,
    relation: str | None = None,
    question: str | None = None,
    aliases: Sequence[str] = (),
    images: Sequence[str] = (),
    rephrase_images: Sequence[str] = (),
    locality_images: Sequence[str] = (),
    keep_images: Sequence[str] = (),
) -> Case:
    """The case that the options describe.

    Raises:
        typer.BadParameter: prompt or target is missing, or there are a prompt and a relation.
    """
    from easyeditor.data.edits_file import parse_arrow, with_prompts_of
    from easyeditor.edits import Case, Edit, ImageRef, Probe, Prompt
    from easyeditor.rewording import sentence_of

    if relation is not None:
        if prompt is not None:
            raise typer.BadParameter(
                "a triple has --subject, --relation and --target, and no --prompt",
                param_hint="--relation",
            )
        if subject is None:
            raise typer.BadParameter("--relation needs the --subject that it is of")
        prompt = sentence_of(subject, relation)
    missing = [n for n, v in (("--prompt", prompt), ("--target", target)) if v is None]
    if missing:
        raise typer.BadParameter(f"{' and '.join(missing)} missing (or give --edits FILE)")
    if rephrase_images and not images:
        raise typer.BadParameter("it asks about another image of the same; give --image, too")
    if keep_images and not images:
        raise typer.BadParameter("it asks the prompt about another image; give --image, too")
    about = Prompt(prompt or "", tuple(map(ImageRef.of, images)), raw=raw_target)
    others = [replace(about, images=(ImageRef.of(path),)) for path in keep_images]
    change = Edit(about, target or "", subject, ground_truth, keep=others)
    change = with_prompts_of(change, aliases, question)
    probes = [
        Probe(change.prompt.with_text(text), (change.target,), "rephrase")
        for text in rephrase or []
    ]
    probes += [
        Probe(replace(change.prompt, images=(ImageRef.of(path),)), (change.target,), IMAGE_REPHRASE)
        for path in rephrase_images
    ]
    probes += [parse_image_locality(text, change.prompt) for text in locality_images]
    probes += [parse_arrow(text, "locality/neighborhood") for text in locality or []]
    probes += [parse_arrow(text, "portability/one_hop") for text in portability or []]
    return Case("0", change, tuple(probes))


def target_text(file: Path, target: str | None, edits: Path | None, *, forget: bool) -> str:
    """The text of a file, or of standard input, as the target of an edit.

    Raises:
        typer.BadParameter: there is another target, or what the edit is, too.
        DataError: the file is no UTF-8 text, or empty.
    """
    from easyeditor.errors import DataError

    others = {"--target": target is not None, "--edits": edits is not None, "--forget": forget}
    if given := [name for name, there in others.items() if there]:
        raise typer.BadParameter(f"give it or {given[0]}, not both", param_hint="--target-file")
    name = "standard input" if file == places.STREAM else str(file)
    with places.input_file(file, ".txt") as path:
        try:
            text = path.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{name} cannot be read as a target's text: {error}.") from None
    if not text:
        raise DataError(f"{name} is empty; write the text that the prompt shall be answered with.")
    return text


def with_end(method: str, changes: list[str] | None, target_file: Path | None) -> list[str]:
    """The changes of the settings, with ``append_eos`` for a text where the method has it."""
    changes = list(changes or [])
    named = any(change.partition("=")[0].strip() == "append_eos" for change in changes)
    if target_file is None or named or "append_eos" not in catalog.settings(method, "")[0]:
        return changes
    return ["append_eos=true", *changes]


def parse_image_locality(text: str, prompt: Prompt) -> Probe:
    """``"x.png | prompt => answer"`` as a probe; without a prompt the edit's own is asked.

    Raises:
        typer.BadParameter: there is no image or no answer.
    """
    from easyeditor.edits import ImageRef, Probe

    path, bar, rest = (part.strip() for part in text.partition("|"))
    question, arrow, answer = (part.strip() for part in rest.partition("=>"))
    if not (path and bar and arrow and answer):
        raise typer.BadParameter(
            f"{text!r} must read 'image | prompt => answer', e.g. 'dog.png | What is this? => a "
            "dog'",
            param_hint="--locality-image",
        )
    other = replace(prompt, text=question or prompt.text, images=(ImageRef.of(path),))
    return Probe(other, (answer,), "locality/image")


def read_cases(file: Path, raw_target: bool) -> tuple[list[Case], list[str]]:
    """The cases of a file, and where each stands in it."""
    from easyeditor.data.open import checked_cases, open_dataset
    from easyeditor.edits import check_consistent

    with places.input_file(file) as path:
        dataset = open_dataset(path)
        cases = checked_cases(dataset)
        where = [f"{file}, {dataset.place(i)}" for i in range(len(cases))]
        check_consistent(change for case in cases for change in case.edits)
    if raw_target:
        cases = [replace(case, edit=_raw(case.edit)) for case in cases]
    return cases, where


def _raw(change: Edit) -> Edit:
    from easyeditor.edits import Prompt

    return replace(change, prompt=Prompt(str(change.prompt), change.prompt.images, raw=True))


def check_subjects(method: str, cases: Sequence[Case], where: Sequence[str]) -> None:
    """Refuse an edit without the subject that the method needs, before the model is loaded."""
    if not catalog.method(method)["needs_subject"]:
        return
    lacking = [
        place
        for case, place in zip(cases, where, strict=True)
        if any(change.subject is None for change in case.edits)
    ]
    if lacking:
        seen = any(change.prompt.images for case in cases for change in case.edits)
        image = " ('<image>' for the image)" if seen else ""
        more = f" (and {count(len(lacking) - 1, 'edit')} more)" if lacking[1:] else ""
        raise SubjectRequiredError(
            f"{lacking[0]}: the edit names no subject, and {method} finds a fact by its "
            f"subject{more}. Give the words of the prompt that it is about{image}, or take a "
            "method that needs none (easyedit methods)."
        )


def note_subject(case: Case) -> None:
    """Say which words of the prompt were taken for the subject, where that was not plain."""
    from easyeditor.subjects import locate_subject

    if case.edit.subject is not None:
        span = locate_subject(str(case.edit.prompt), case.edit.subject)
        if remark := span.describe(case.edit.subject):
            output.note(remark)


def check_expansion(method: str, cases: Sequence[Case], *, expand: bool) -> None:
    """Refuse further prompts for a method that stores one, before the model is loaded.

    Raises:
        EditError: the method cannot make an edit with several prompts.
    """
    if catalog.method(method)["expands"] or not (expand or any(c.edit.expansions for c in cases)):
        return
    able = ", ".join(one["name"] for one in catalog.methods() if one["expands"])
    raise EditError(
        f"{method} stores one prompt for an edit and cannot expand it. Leave out --expand, --chat, "
        f"--question and --alias, or take one of {able}."
    )


def expanded(
    lm: LM,
    cases: Sequence[Case],
    expand: bool,
    chat: bool = False,
    written: int = 0,
    inverse: bool = False,
) -> list[Case]:
    """The cases with their edits expanded as the options say."""
    from easyeditor.editors.expanding import Expansion, expanded_cases

    if not expand:
        if written or inverse:
            raise typer.BadParameter("--written and --inverse say how to --expand; give it, too")
        return list(cases)
    how = Expansion(chat=True if chat else None, written=written, inverse=inverse)
    return expanded_cases(lm, cases, how)
