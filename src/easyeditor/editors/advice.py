"""What a user should know of a request beside its scores, as sentences under ``notes``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from easyeditor.edits import Case
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.methods.base import Need
from easyeditor.subjects import locate_subject

LONG_TARGET_TOKENS = 30
"""Longer targets are rarely learnt whole by one vector at one token."""


def said_already(half: Mapping[str, Any]) -> bool:
    """Whether every target token is the model's first choice: it says the target already."""
    return bool(half["rewrite_acc"] == 1.0)


def notes_before(
    lm: LM, cases: Sequence[Case], pre: Sequence[Mapping[str, Any]]
) -> list[list[str]]:
    """Per case: where its subject was found, a long target, an answer the model gives already."""
    notes = []
    for case, half in zip(cases, pre, strict=True):
        sentences = []
        if said_already(half):
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


def repeated_subjects(cases: Sequence[Case]) -> dict[int, int]:
    """For each case the number of the last later one about the same subject, where there is one."""
    by_subject: dict[str, list[int]] = defaultdict(list)
    for i, case in enumerate(cases):
        for name in {edit.subject.casefold() for edit in case.edits if edit.subject}:
            by_subject[name].append(i)
    return {i: group[-1] for group in by_subject.values() for i in group[:-1]}


def overwritten(later: int, held: bool) -> str:
    """The note on a case that no longer holds, or may not, for the sake of a later one."""
    what = "may be overwritten" if held else "was overwritten"
    several = [
        name
        for name in METHODS
        if (method := METHODS.get(name)).max_batch is None and Need.SUBJECT in method.needs
    ]
    return (
        f"This edit {what} by edit {later + 1}, which is about the same subject. Several facts "
        f"about one subject hold when they are solved together: batch_edit(), {', '.join(several)}."
    )
