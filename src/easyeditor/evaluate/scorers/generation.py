"""Do free answers hold the answer?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from easyeditor.edits import Case, Generate, Probe, Prompt
from easyeditor.evaluate.generation_metrics import contains, equals, natural_answer
from easyeditor.evaluate.replies import Replies
from easyeditor.evaluate.scorers.base import Scorer, Values, mean


class GenerationScorer(Scorer):
    """Greedy answers up to where they end by themselves, under ``generation``.

    For the edit's prompt (``rewrite``), its rephrases and its consequences (``portability``):
    ``<group>_acc``, whether the answer stands in the text, and ``<group>_exact``, whether it is
    the whole text. Nothing without ``options.answer_tokens``.
    """

    def queries(self, probe: Probe | None, case: Case) -> Iterable[Generate]:
        """Free answers to the prompt and to every probe but the locality ones."""
        if self.options.answer_tokens:
            yield self.options.answer(case.edit.prompt)
            for other in case.probes:
                if other.group != "locality":
                    yield self.options.answer(other.prompt)

    def score(self, probe: Probe | None, case: Case, before: Replies, after: Replies) -> Values:
        """See the class."""
        values: Values = {}
        if self.options.answer(case.edit.prompt) not in after.texts:
            return values
        for group in ("rewrite", "rephrase", "portability"):
            pairs = [
                (
                    natural_answer(after[self.options.answer(prompt)], after.as_chat(prompt)),
                    accepted,
                )
                for prompt, accepted in _accepted(case, group)
            ]
            if pairs:
                values[f"generation/{group}_acc"] = mean(float(contains(*pair)) for pair in pairs)
                values[f"generation/{group}_exact"] = mean(float(equals(*pair)) for pair in pairs)
        return values


def _accepted(case: Case, group: str) -> Iterator[tuple[Prompt, tuple[str, ...]]]:
    if group == "rewrite":
        yield case.edit.prompt, (case.edit.target,)
    yield from ((p.prompt, p.answers) for p in case.probes if p.group == group)
