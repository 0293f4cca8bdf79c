"""The parts of ``easyedit edit --forget``: its targets, and the report on what is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from easyeditor.cli import output
from easyeditor.cli.output import Column
from easyeditor.cli.terminal import count
from easyeditor.errors import EditError

if TYPE_CHECKING:
    from easyeditor.edits import Case
    from easyeditor.evaluate.gone import Gone, Traces
    from easyeditor.lm.model import LM

PLACEHOLDER = "unknown"
"""Stands for the target until the model was asked for one."""
MOST_REPORTED = 8
"""Edits of a file that are looked for; each takes some seconds."""


def check_forgetting(
    forget: bool,
    refusal: str | None,
    target: str | None,
    expand: bool,
    *,
    further: bool = False,
    portability: bool = False,
) -> str | None:
    """The target to go on with, a placeholder where the model is to be asked for it.

    Args:
        forget: whether something is to be forgotten.
        refusal: the text to answer with.
        target: of an edit that is to be made.
        expand: whether the edit is to be made with other wordings.
        further: whether a question or aliases were given to make the edit with.
        portability: whether something was given that follows from the new answer.

    Raises:
        typer.BadParameter: the options contradict each other.
    """
    if refusal is not None and not forget:
        raise typer.BadParameter("it says what --forget answers with", param_hint="--refusal")
    if not forget:
        return target
    if refusal is not None and not refusal.strip():
        raise typer.BadParameter(
            "it is empty; give the text to answer with, or leave it out for the model's next best "
            "answer",
            param_hint="--refusal",
        )
    if target is not None:
        raise typer.BadParameter(
            "--forget takes no --target: it is the model's next best answer, or --refusal TEXT"
        )
    if expand:
        raise typer.BadParameter(
            "--forget looks for the fact in other wordings, so it makes no edit with them; leave "
            "out --expand and --chat"
        )
    if further:
        raise typer.BadParameter(
            "--forget asks in other wordings, so it makes no edit with them; leave out --question "
            "and --alias, or give --rephrase to be asked"
        )
    if portability:
        raise typer.BadParameter(
            "nothing is known to follow from the answer that --forget puts in the old one's place; "
            "leave out --portability"
        )
    return PLACEHOLDER if refusal is None else refusal


def check_forgettable(cases: Sequence[Case], where: Sequence[str]) -> None:
    """Refuse cases of a file that are more than one fact in one wording, before loading.

    Raises:
        EditError: one has expansions or further edits.
    """
    for case, place in zip(cases, where, strict=True):
        if case.also or case.edit.expansions:
            raise EditError(
                f"{place}: --forget replaces one answer to one prompt, and this edit has further "
                "ones (question, aliases, expansions or also). Leave them out, or list each as an "
                "edit of its own."
            )


def forgetting(lm: LM, cases: Sequence[Case], refusal: str | None) -> list[Case]:
    """The cases with targets in place of their old answers."""
    from easyeditor.editors.forgetting import forgetting_case

    with output.working("asking for other answers …", long=False):
        return [forgetting_case(lm, case, refusal) for case in cases]


def report(lm: LM, cases: Sequence[Case]) -> list[Gone]:
    """What is left of the old answers; the model carries the edits."""
    from easyeditor.evaluate.gone import OldAnswer, gone_report

    if len(cases) > MOST_REPORTED:
        output.note(f"The first {MOST_REPORTED} of {len(cases)} old answers are looked for.")
    with output.working("looking for the old answers …"):
        return gone_report(lm, [OldAnswer.of(case) for case in cases[:MOST_REPORTED]])


def show(reports: Sequence[Gone]) -> None:
    """Print every attack on each fact, and its verdict."""
    columns = [Column("", text=True), Column("before", right=True), Column("after", right=True)]
    for gone in reports:
        before, after, fact = gone.before, gone.after, gone.fact
        rows = [
            [
                "probability of the old answer",
                f"{before.probability:.4f}",
                f"{after.probability:.4f}",
            ],
            ["its rank", str(before.rank), str(after.rank)],
            ["best rank over layers (logit lens)", _lens(before), _lens(after)],
            [
                f"given in {count(len(fact.paraphrases), 'other wording')}",
                str(before.paraphrases),
                str(after.paraphrases),
            ],
        ]
        if gone.n_samples:
            text = f"given in {gone.n_samples} samples"
            rows.append([text, str(before.samples), str(after.samples)])
        if fact.reversed is not None:
            rows.append(["reversed question", _yes(before.reversed), _yes(after.reversed)])
        for one in gone.relearned:
            text = f"after {count(one.steps, 'step')} on other facts: probability, rank"
            rows.append([text, "", f"{one.probability:.4f}, {one.rank}"])
        output.show(f"Is it gone? {fact.prompt} → {fact.answer}", columns, rows)
        output.out.print_line(f"{fact.answer!r}: {gone.verdict}.")


def as_json(reports: Sequence[Gone]) -> list[dict[str, Any]]:
    """The reports as JSON values."""
    return [gone.to_json() for gone in reports]


def _lens(traces: Traces) -> str:
    return f"{traces.lens_rank} (layer {traces.lens_layer})"


def _yes(value: bool | None) -> str:
    return "yes" if value else "no"
