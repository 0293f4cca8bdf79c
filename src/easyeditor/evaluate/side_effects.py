"""What else an edit moved: facts that it is not about, asked before and after."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from easyeditor.edits import Edit
from easyeditor.lm.inference import score
from easyeditor.lm.model import LM


@dataclass(frozen=True, slots=True)
class Shift:
    """The probability of one answer before and after.

    Attributes:
        prompt: what was asked.
        answer: the answer that was scored.
        before, after: its probability (geometric mean per token).
        same: whether the first choice of every token is what it was.
    """

    prompt: str
    answer: str
    before: float
    after: float
    same: bool

    @property
    def change(self) -> float:
        """After minus before."""
        return self.after - self.before


def unrelated_facts(facts: Iterable[Edit], n: int, edits: Sequence[Edit] = ()) -> list[Edit]:
    """``n`` of the facts with a known answer, spread evenly, none about a subject of ``edits``."""
    subjects = {edit.subject for edit in edits if edit.subject}
    usable = [fact for fact in facts if fact.ground_truth and fact.subject not in subjects]
    step = max(1, len(usable) // max(1, n))
    return usable[::step][:n]


def side_effects(before: LM, after: LM, facts: Sequence[Edit]) -> list[Shift]:
    """How the present answer of each fact moved, the largest change first.

    Args:
        before: the unedited model.
        after: the edited one.
        facts: edits whose ``ground_truth`` is asked for; their targets are not used.
    """
    pairs = [(fact.prompt, str(fact.ground_truth)) for fact in facts]
    shifts = [
        Shift(
            str(prompt),
            answer,
            math.exp(old.mean_logprob),
            math.exp(new.mean_logprob),
            old.argmax == new.argmax,
        )
        for (prompt, answer), old, new in zip(
            pairs, score(before, pairs), score(after, pairs), strict=True
        )
    ]
    return sorted(shifts, key=lambda shift: -abs(shift.change))
