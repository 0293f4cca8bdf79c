"""Ask a model everything a set of cases wants to know, in few batched forward passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from easyeditor.edits import Case
from easyeditor.lm.model import TokenScores

Pair = tuple[str, str]
Observation = Mapping[Pair, TokenScores]
"""``{(prompt, answer): scores}``; what a model said, independent of who asks."""


class Scorer(Protocol):
    """Whatever can be asked: a model, or a route to one."""

    def score(self, pairs: Sequence[Pair]) -> list[TokenScores]:
        """Scores under teacher forcing, one per pair."""
        ...


def questions(case: Case) -> Iterator[Pair]:
    """Every ``(prompt, answer)`` whose scores the metrics of this case read."""
    edit = case.edit
    yield edit.prompt, edit.target
    if edit.ground_truth:
        yield edit.prompt, edit.ground_truth
    for probe in case.probes:
        yield probe.prompt, probe.answers[0]
        yield probe.prompt, edit.target
        if edit.ground_truth:
            yield probe.prompt, edit.ground_truth


def observe(scorer: Scorer, cases: Sequence[Case]) -> dict[Pair, TokenScores]:
    """Score every question of every case once."""
    pairs = list(dict.fromkeys(pair for case in cases for pair in questions(case)))
    return dict(zip(pairs, scorer.score(pairs), strict=True))
