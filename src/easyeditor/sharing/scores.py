"""What a patch changes in figures: each edit's answer before and after, and other text."""

from __future__ import annotations

import math
from dataclasses import dataclass

from easyeditor.lm.inference import generate, score
from easyeditor.lm.model import LM
from easyeditor.patches.patch import Patch
from easyeditor.patches.stack import applied

ANSWER_TOKENS = 12


@dataclass(frozen=True, slots=True)
class EditScore:
    """One edit on the model that carries all edits of the patch.

    Attributes:
        prompt: what is continued.
        target: the new answer.
        before: probability of the target, geometric mean over its tokens, unedited.
        after: edited.
        holds: whether every token of the target is the most probable one, edited.
        answer_before: the greedy continuation, unedited.
        answer_after: edited.
    """

    prompt: str
    target: str
    before: float
    after: float
    holds: bool
    answer_before: str
    answer_after: str


def edit_scores(lm: LM, patch: Patch) -> list[EditScore]:
    """The scores of every edit of a patch; the model is as before afterwards.

    Raises:
        PatchMismatchError: the patch was made for another model.
        PatchStateError: the model carries the patch already.
    """
    patch.check(lm.model)
    edits = patch.info.edits
    pairs = [(edit.prompt, edit.target) for edit in edits]
    prompts = [edit.prompt for edit in edits]
    before, said_before = score(lm, pairs), generate(lm, prompts, ANSWER_TOKENS)
    with applied(lm.model, patch):
        after, said_after = score(lm, pairs), generate(lm, prompts, ANSWER_TOKENS)
    return [
        EditScore(
            str(edit.prompt),
            edit.target,
            math.exp(old.mean_logprob),
            math.exp(new.mean_logprob),
            new.argmax == new.target,
            one.strip(),
            other.strip(),
        )
        for edit, old, new, one, other in zip(
            edits, before, after, said_before, said_after, strict=True
        )
    ]
