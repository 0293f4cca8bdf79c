"""Tests that count only where the unedited model knows what they rest on."""

from __future__ import annotations

from collections.abc import Iterable

from easyeditor.edits import Case, ConditionalTest, Generate, Probe
from easyeditor.evaluate.generation_metrics import contains, natural_answer
from easyeditor.evaluate.replies import Replies
from easyeditor.evaluate.scorers.base import Scorer, Values, mean


class ConditionsScorer(Scorer):
    """RippleEdits' criteria as its paper counts them (arXiv 2307.12976), under ``conditional``.

    Per criterion, of greedy free answers: ``<name>_acc``, the share of the tests that pass among
    those that count, None where none does; ``<name>_counted``, the share that counts: the
    *unedited* model answers every condition. A question is answered where the text holds an answer
    of each of its probes; a test passes with one right question, or with all (``test.any``).
    Nothing without ``options.answer_tokens``.
    """

    def queries(self, probe: Probe | None, case: Case) -> Iterable[Generate]:
        """Free answers to conditions and questions."""
        if self.options.answer_tokens:
            for test in case.tests:
                for question in (*test.conditions, *test.questions):
                    yield self.options.answer(question[0].prompt)

    def score(self, probe: Probe | None, case: Case, before: Replies, after: Replies) -> Values:
        """See the class."""
        values: Values = {}
        if not set(self.queries(None, case)) <= after.texts.keys():
            return values
        for name in dict.fromkeys(test.name for test in case.tests):
            tests = [test for test in case.tests if test.name == name]
            counting = [test for test in tests if self._counts(test, before)]
            passed = [float(self._passes(test, after)) for test in counting]
            values[f"conditional/{name}_acc"] = mean(passed) if passed else None
            values[f"conditional/{name}_counted"] = len(counting) / len(tests)
        return values

    def _counts(self, test: ConditionalTest, before: Replies) -> bool:
        return all(self._answered(question, before) for question in test.conditions)

    def _passes(self, test: ConditionalTest, after: Replies) -> bool:
        enough = any if test.any else all
        return enough(self._answered(question, after) for question in test.questions)

    def _answered(self, question: tuple[Probe, ...], replies: Replies) -> bool:
        prompt = question[0].prompt
        text = natural_answer(replies[self.options.answer(prompt)], replies.as_chat(prompt))
        return all(contains(text, probe.answers) for probe in question)
