"""Does the edit hold on its own prompt, and on other wordings of it?"""

from __future__ import annotations

from collections.abc import Iterable

from easyeditor.edits import Case, Probe, Score
from easyeditor.evaluate.replies import Replies
from easyeditor.evaluate.scorers.base import (
    Scorer,
    Values,
    answer_and_rivals,
    compare,
    mean,
    probability,
)


class RewriteScorer(Scorer):
    """On the edit's prompt.

    - ``rewrite_acc``: share of target tokens that are the argmax under teacher forcing, over all
      edits of the case.
    - ``rewrite_prob``: probability of ``target_new`` and ``ground_truth`` (geometric means per
      token).
    - ``rewrite_success`` (efficacy score), ``rewrite_diff``: P(new) > P(true), P(new) − P(true),
      where the true answer is known.
    """

    def queries(self, probe: Probe | None, case: Case) -> Iterable[Score]:
        """The targets, and the true answer."""
        for edit in case.edits:
            yield Score(edit.prompt, edit.target)
        if case.edit.ground_truth:
            yield Score(case.edit.prompt, case.edit.ground_truth)

    def score(self, probe: Probe | None, case: Case, before: Replies, after: Replies) -> Values:
        """See the class."""
        edit = case.edit
        truth = edit.ground_truth or None
        values: Values = {
            "rewrite_acc": mean(after[Score(e.prompt, e.target)].accuracy for e in case.edits),
            "rewrite_prob/target_new": probability(after, edit.prompt, edit.target),
            "rewrite_prob/ground_truth": truth and probability(after, edit.prompt, truth),
        }
        if truth:
            values |= compare(after, edit.prompt, edit.target, truth, "rewrite")
        return values


class RephraseScorer(Scorer):
    """On other wordings: ``rephrase_acc``, ``rephrase_success`` (paraphrase score), ``_diff``.

    A name of the probe comes before: ``image_rephrase_acc`` on another image of the same thing
    (``rephrase/image``). ``rephrase/text`` is a plain rephrase.
    """

    group = "rephrase"

    def queries(self, probe: Probe | None, case: Case) -> Iterable[Score]:
        """The probe's answer, the target and the true answer."""
        assert probe is not None
        return answer_and_rivals(probe, case)

    def score(self, probe: Probe | None, case: Case, before: Replies, after: Replies) -> Values:
        """See the class."""
        assert probe is not None
        edit = case.edit
        name = "rephrase" if probe.name in {"", "text"} else f"{probe.name}_rephrase"
        values: Values = {f"{name}_acc": after[Score(probe.prompt, probe.answers[0])].accuracy}
        if edit.ground_truth:
            values |= compare(after, probe.prompt, edit.target, edit.ground_truth, name)
        return values
