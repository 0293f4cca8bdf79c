"""``Scorer``: the contract of a metric."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

from easyeditor.edits import Case, Probe, Prompt, Query, Score
from easyeditor.evaluate.replies import EvalOptions, Replies

Values = dict[str, float | None]
"""Metric by name; ``"locality/neighborhood_acc"`` stands under ``locality`` in the result. Values
of one name are averaged over the probes of a case; None says that there is nothing to measure."""


class Scorer(ABC):
    """A metric: what it asks a model, and its values from the replies before and after an edit.

    Args:
        options: what is asked beside the scores.
        cases: every case of the run, for a metric that needs them all (document frequencies).

    Attributes:
        group: the group of probes it is asked about, one after the other; None: once per case,
            with ``probe`` None.
    """

    group: ClassVar[str | None] = None

    def __init__(self, options: EvalOptions, cases: Sequence[Case] = ()) -> None:
        self.options = options

    @abstractmethod
    def queries(self, probe: Probe | None, case: Case) -> Iterable[Query]:
        """What :meth:`score` reads from the replies."""

    @abstractmethod
    def score(
        self, probe: Probe | None, case: Case, before: Replies, after: Replies
    ) -> Mapping[str, float | None]:
        """The values; ``after is before`` where the unedited model is scored by itself."""


def scored(all_scorers: Sequence[Scorer], case: Case) -> Iterator[tuple[Scorer, Probe | None]]:
    """Every pair of a scorer and what it is asked about: the case, then its probes in order."""
    for probe in (None, *case.probes):
        group = None if probe is None else probe.group
        for scorer in all_scorers:
            if scorer.group == group:
                yield scorer, probe


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean; of at least one value."""
    numbers = list(values)
    return sum(numbers) / len(numbers)


def answer_and_rivals(probe: Probe, case: Case) -> Iterator[Score]:
    """The probe's answer, the edit's target and its true answer, on the probe's prompt."""
    yield Score(probe.prompt, probe.answers[0])
    yield Score(probe.prompt, case.edit.target)
    if case.edit.ground_truth:
        yield Score(probe.prompt, case.edit.ground_truth)


def probability(replies: Replies, prompt: Prompt, answer: str) -> float:
    """Geometric mean of the probabilities of the answer's tokens."""
    return math.exp(replies[Score(prompt, answer)].mean_logprob)


def compare(
    replies: Replies, prompt: Prompt, wanted: str, rival: str, name: str
) -> dict[str, float | None]:
    """``<name>_success``: whether P(wanted) > P(rival), and ``<name>_diff``: the difference."""
    difference = probability(replies, prompt, wanted) - probability(replies, prompt, rival)
    return {f"{name}_success": float(difference > 0), f"{name}_diff": difference}
