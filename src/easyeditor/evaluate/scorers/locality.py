"""Is what the edit does not concern as it was?"""

from __future__ import annotations

from collections.abc import Iterable

from easyeditor.edits import Case, Probe, Score
from easyeditor.evaluate.replies import Replies
from easyeditor.evaluate.scorers.base import Scorer, Values, answer_and_rivals, compare, mean


class LocalityScorer(Scorer):
    """Per name of the probe, under ``locality``.

    - ``<name>_acc``: share of the answer's argmax tokens that are as before the edit (not on the
      unedited model, where it is 1 by definition).
    - ``<name>_success`` (neighbourhood score), ``<name>_diff``: P(true) > P(new), the difference;
      not where the true answer is the new target.
    """

    group = "locality"

    def queries(self, probe: Probe | None, case: Case) -> Iterable[Score]:
        """The probe's answer, the target and the edit's true answer."""
        assert probe is not None
        return answer_and_rivals(probe, case)

    def score(self, probe: Probe | None, case: Case, before: Replies, after: Replies) -> Values:
        """See the class."""
        assert probe is not None
        name, answer, target = probe.name or "locality", probe.answers[0], case.edit.target
        values: Values = {}
        if after is not before:
            query = Score(probe.prompt, answer)
            pairs = zip(before[query].argmax, after[query].argmax, strict=True)
            values[f"locality/{name}_acc"] = mean(float(a == b) for a, b in pairs)
        if answer.strip() != target.strip():
            values |= compare(after, probe.prompt, answer, target, f"locality/{name}")
        return values
