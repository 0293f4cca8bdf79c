"""Edits that shall make a model stop giving an answer: with what it is replaced."""

from __future__ import annotations

import re
from dataclasses import replace

from easyeditor.edits import Case, Edit, Generate
from easyeditor.errors import EditError, EditFailed
from easyeditor.evaluate.degeneration import answer_mentions
from easyeditor.lm.inference import generate
from easyeditor.lm.model import LM

TRIES = 5
"""First tokens that are tried for another answer."""
TOKENS, MOST_WORDS = 10, 4
"""Of an answer."""
REPHRASE, PORTABILITY = "rephrase", "portability"
"""Groups of probes whose answers depend on the target."""


def forgetting_case(lm: LM, case: Case, refusal: str | None = None) -> Case:
    """The case with a target in place of the old answer.

    Its rephrase probes are asked for the new target. What followed from the former one is left out:
    portability probes, tests on conditions and references.

    Args:
        lm: the model that is to be edited; it is asked.
        case: its edit's ground truth is the old answer; by default what the model answers.
        refusal: a text to answer with; None: the model's own next best answer.

    Raises:
        EditError: the case has further edits.
        EmptyTargetError: the refusal is blank.
        EditFailed: the model gives no answer, or no other.
    """
    if case.also:
        raise EditError(
            f"The case {case.id!r} has further edits beside that of {case.edit.prompt!r}, and each "
            "fact to forget needs a target of its own; give every edit as a case."
        )
    edit = forgetting_edit(lm, case.edit, refusal)
    probes = [
        replace(probe, answers=(edit.target,)) if probe.group == REPHRASE else probe
        for probe in case.probes
        if probe.group != PORTABILITY
    ]
    return replace(case, edit=edit, probes=tuple(probes), references=(), tests=())


def forgetting_edit(lm: LM, edit: Edit, refusal: str | None = None) -> Edit:
    """The edit, and its expansions, with a target in place of the old answer.

    See :func:`forgetting_case`. A blank ground truth counts as none.
    """
    old = (edit.ground_truth or "").strip()
    old = old or _first_words(generate(lm, [Generate(edit.prompt, TOKENS)])[0])
    if not old:
        raise EditFailed(
            f"The model gives no answer to {edit.prompt!r} that could be forgotten. Name the old "
            "answer: ground_truth (--ground-truth)."
        )
    target = alternative_answer(lm, edit, old) if refusal is None else refusal
    expansions = tuple(replace(other, target=target, rejected=old) for other in edit.expansions)
    return replace(edit, target=target, ground_truth=old, rejected=old, expansions=expansions)


def alternative_answer(lm: LM, edit: Edit, old: str) -> str:
    """What the model answers when it may not begin with the old answer's first token.

    Raises:
        EditFailed: all that was tried holds the old answer, or nothing.
    """
    closed = {*lm.text.row(edit.prompt, old).target[:1], *lm.end_tokens}
    for _ in range(TRIES):
        query = Generate(edit.prompt, TOKENS)
        text = generate(lm, [query], begin_suppress_tokens=sorted(closed))[0]
        answer = _first_words(text)
        if answer and not answer_mentions(answer, old) and not answer_mentions(old, answer):
            return answer
        closed.update(lm.text.row(edit.prompt, text).target[:1] if text.strip() else ())
    raise EditFailed(
        f"The model has no answer to {edit.prompt!r} beside {old!r} among its {TRIES} likeliest. "
        "Give a text to answer with (refusal=, --refusal)."
    )


def _first_words(text: str) -> str:
    """What an answer says before its first mark of punctuation, a few words at most."""
    line = re.split(r"[.,;:!?\n(]", text.strip())[0]
    return " ".join(line.split()[:MOST_WORDS])
