"""What a user should know of a request beside its scores, as sentences under ``notes``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from easyeditor.edits import Case, ImageRef
from easyeditor.evaluate.degeneration import (
    answer_holds,
    answer_mentions,
    answered,
    free_answers,
)
from easyeditor.lm.inference import score
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.methods.base import Need
from easyeditor.subjects import locate_subject

LONG_TARGET_TOKENS = 30
"""Longer targets are rarely learnt whole by one vector at one token."""
LONGEST_QUOTE = 40
"""Characters of an answer that a note quotes."""


def already_answered(lm: LM, cases: Sequence[Case]) -> list[Case]:
    """The cases with one edit whose target the model gives anyway, whole and under greedy decoding.

    The rule is that of :func:`easyeditor.evaluate.degeneration.answered`.
    """
    single = [case for case in cases if not case.also]
    scores = score(lm, [(case.edit.prompt, case.edit.target) for case in single])
    likely = [case for case, row in zip(single, scores, strict=True) if row.accuracy == 1.0]
    answers = free_answers(lm, likely)
    return [
        case
        for case, answer in zip(likely, answers, strict=True)
        if answer_holds(answer.text, case.edit.target)
    ]


def notes_before(
    lm: LM, cases: Sequence[Case], pre: Sequence[Mapping[str, Any]]
) -> list[list[str]]:
    """Per case: where its subject was found, a long target, an answer the model gives already."""
    notes = []
    for case, half in zip(cases, pre, strict=True):
        sentences = []
        if answered(half):
            sentences.append("The model gives this answer already; the edit is not needed.")
        for edit in case.edits:
            if edit.subject is not None:
                place = locate_subject(edit.prompt.text, edit.subject)
                sentences += filter(None, [place.describe(edit.subject)])
            n = len(lm.text.row(edit.prompt, edit.target).target)
            if n > LONG_TARGET_TOKENS:
                sentences.append(
                    f"The target has {n} tokens; more than {LONG_TARGET_TOKENS} are rarely learnt "
                    "whole from one prompt. Shorten it, split it into several facts, or fine-tune."
                )
        notes.append(sentences)
    return notes


def other_form(pre: Mapping[str, Any], post: Mapping[str, Any], target: str) -> str | None:
    """The note on an edit that holds in one form of the prompt and not in the other."""
    before = pre.get("free_answer", {}).get("forms", {})
    after = post.get("free_answer", {}).get("forms", {})
    holding = {form: answer_mentions(text, target) for form, text in after.items()}
    if len(holding) < 2 or all(holding.values()) or not any(holding.values()):
        return None
    lacking = next(form for form, holds in holding.items() if not holds)
    change = "still" if before.get(lacking) == after[lacking] else "now"
    return (
        f"The edit does not hold for the {lacking} form of the prompt: there the model {change} "
        f"answers {after[lacking].strip()[:LONGEST_QUOTE]!r}. To edit both forms, use expand=True "
        "(--expand)."
    )


def repeated_subjects(cases: Sequence[Case]) -> dict[int, int]:
    """For each case the number of the last later one about the same subject, where there is one."""
    by_subject: dict[tuple[str, tuple[ImageRef, ...]], list[int]] = defaultdict(list)
    for i, case in enumerate(cases):
        # "the flag" of another picture is another one
        for name in {(e.subject.casefold(), e.prompt.images) for e in case.edits if e.subject}:
            by_subject[name].append(i)
    return {i: group[-1] for group in by_subject.values() for i in group[:-1]}


def overwritten(later: int, held: bool) -> str:
    """The note on a case that no longer holds, or may not, for the sake of a later one."""
    what = "may be overwritten" if held else "was overwritten"
    several = ", ".join(solving_together())
    return (
        f"This edit {what} by edit {later + 1}, which is about the same subject. Several facts "
        f"about one subject hold when they are solved together: batch_edit(), {several}."
    )


def solving_together() -> list[str]:
    """The methods that find facts by their subjects and solve several at once."""
    return [
        name
        for name in METHODS
        if (method := METHODS.get(name)).max_batch is None and Need.SUBJECT in method.needs
    ]
