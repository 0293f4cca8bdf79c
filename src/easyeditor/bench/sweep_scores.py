"""Scores of one edited fact: the three parts of S, as counts and graded.

Graded scores read ``P(new) / (P(new) + P(old))`` of whole answers where S counts whether
P(new) > P(old) per token: with few facts, a count moves in coarse steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from easyeditor.edits import Case, Probe, Prompt, Score
from easyeditor.evaluate.query import Replies


@dataclass(frozen=True, slots=True)
class FactScores:
    """The scores of one edited fact: shares of successes, and graded; None without such probes."""

    es: float
    ps: float | None
    ns: float | None
    graded_es: float | None
    graded_ps: float | None
    graded_ns: float | None


def fact_scores(case: Case, replies: Replies) -> FactScores:
    """The scores of one fact from the replies of the edited model."""
    edit = case.edit
    truth = str(edit.ground_truth)
    near = [p for p in case.probes if p.group == "locality" and p.answers[0] != edit.target]
    again: list[Probe] = [p for p in case.probes if p.group == "rephrase"]
    es = _lead(replies, edit.prompt, edit.target, truth)
    ps = [_lead(replies, p.prompt, edit.target, truth) for p in again]
    ns = [_lead(replies, p.prompt, p.answers[0], edit.target) for p in near]
    success, graded = (
        [[es[k]], [lead[k] for lead in ps], [lead[k] for lead in ns]] for k in (0, 1)
    )
    return FactScores(float(success[0][0]), *map(mean_of, (*success[1:], *graded)))


def _lead(replies: Replies, prompt: Prompt, wanted: str, rival: str) -> tuple[float, float]:
    """Whether P(wanted) > P(rival), per token as in S; ``P(wanted) / (P(wanted) + P(rival))``."""
    first, second = (replies[Score(prompt, answer)] for answer in (wanted, rival))
    lead = len(first.target) * first.mean_logprob - len(second.target) * second.mean_logprob
    share = 1 / (1 + math.exp(-max(-50.0, min(50.0, lead))))
    return float(first.mean_logprob > second.mean_logprob), share


def harmonic(*parts: float | None) -> float:
    """The harmonic mean of the parts that are not None; 0 if one of them is."""
    numbers = [part for part in parts if part is not None]
    if min(numbers) <= 0:
        return 0.0
    return len(numbers) / sum(1 / number for number in numbers)


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None without any."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
