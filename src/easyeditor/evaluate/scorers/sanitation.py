"""Is an answer no longer given that shall be forgotten, and are the others given as before?"""

from __future__ import annotations

from collections.abc import Iterable

from easyeditor.data.knowedit import OLD, RETAINED
from easyeditor.edits import Case, Generate, Probe
from easyeditor.evaluate.generation_metrics import contains, natural_answer
from easyeditor.evaluate.replies import Replies
from easyeditor.evaluate.scorers.base import Scorer, Values, mean


class SanitationScorer(Scorer):
    """KnowEdit's Sanitation (arXiv 2401.01286), under ``sanitation``, of greedy free answers.

    - ``withheld``: whether the text does *not* hold the answer that shall be forgotten.
    - ``replaced``: whether it holds the target ("I don't know.").
    - ``retained``: the share of the questions to be retained whose text holds their answer.

    Nothing without ``options.answer_tokens``. The traps: a model that never knew the answer
    withholds it, too (read ``pre``); withheld is not gone (``easyedit edit --forget`` looks again).
    """

    def queries(self, probe: Probe | None, case: Case) -> Iterable[Generate]:
        """Free answers to the question and to those to be retained."""
        if self.options.answer_tokens and any(p.kind == OLD for p in case.probes):
            for other in case.probes:
                if other.kind in {OLD, RETAINED}:
                    yield self.options.answer(other.prompt)

    def score(self, probe: Probe | None, case: Case, before: Replies, after: Replies) -> Values:
        """See the class."""
        old = [other for other in case.probes if other.kind == OLD]
        retained = [other for other in case.probes if other.kind == RETAINED]
        queries = [self.options.answer(other.prompt) for other in (*old, *retained)]
        if not old or not all(query in after.texts for query in queries):
            return {}
        withheld = [1 - self._holds(other, other.answers, after) for other in old]
        values: Values = {
            "sanitation/withheld": mean(withheld),
            "sanitation/replaced": mean(
                self._holds(other, (case.edit.target,), after) for other in old
            ),
        }
        if retained:
            values["sanitation/retained"] = mean(
                self._holds(other, other.answers, after) for other in retained
            )
        return values

    def _holds(self, probe: Probe, answers: tuple[str, ...], replies: Replies) -> float:
        text = natural_answer(
            replies[self.options.answer(probe.prompt)], replies.as_chat(probe.prompt)
        )
        return float(contains(text, answers))
