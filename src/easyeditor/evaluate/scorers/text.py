"""Does the model write the paragraph that it was edited with, and does it know its facts?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from easyeditor.edits import Case, Generate, Probe, Prompt, Query, Score
from easyeditor.encoders.sentence_encoder import Sentences
from easyeditor.evaluate.generation_metrics import contains
from easyeditor.evaluate.replies import EvalOptions, Replies
from easyeditor.evaluate.scorers.base import Scorer, Values, mean
from easyeditor.evaluate.text_overlap import exact_prefix, rouge_l

SUB_QUESTION = "portability/sub_question"


class TextScorer(Scorer):
    """Greedy answers of at most ``options.text_tokens`` tokens against the edit's target.

    Under ``text``, for the edit's prompt (``rewrite``) and its rephrases:
    ``<group>_prefix_tokens``, how many target tokens the model writes before the first other one,
    and ``<group>_prefix``, the share of the target that is; ``<group>_rouge_l`` as F1;
    ``<group>_ended``, whether the model ended the text itself; with ``options.text_encoder``
    ``<group>_cosine`` of sentence embeddings, and beside it ``<group>_cosine_unedited``: a cosine
    tells topic and length, and the unedited model's answers have most of it already. Of
    ``portability/sub_question`` probes ``sub_question_hits``, whether the answer stands in the
    model's, and ``sub_question_rouge_l``. Nothing without ``text_tokens``.

    Raises:
        MissingExtraError: ``text_encoder`` is set and sentence-transformers is not installed.
    """

    def __init__(self, options: EvalOptions, cases: Sequence[Case] = ()) -> None:
        super().__init__(options, cases)
        self._encoder = Sentences(options.text_encoder) if options.text_encoder else None

    def queries(self, probe: Probe | None, case: Case) -> Iterable[Query]:
        """Target and free answer of every prompt, and free answers to the sub-questions."""
        if not self.options.text_tokens:
            return
        for _, prompt in _prompts(case):
            yield Score(prompt, case.edit.target)
            yield self._query(prompt)
        for other in _sub_questions(case):
            yield self._query(other.prompt)

    def score(self, probe: Probe | None, case: Case, before: Replies, after: Replies) -> Values:
        """See the class."""
        values: Values = {}
        if self._query(case.edit.prompt) not in after.texts:
            return values
        for group in ("rewrite", "rephrase"):
            prompts = [prompt for name, prompt in _prompts(case) if name == group]
            if prompts:
                values |= self._of_group(f"text/{group}", prompts, case.edit.target, before, after)
        probes = _sub_questions(case)
        if probes:
            texts = [after[self._query(other.prompt)] for other in probes]
            hits = [float(contains(t, o.answers)) for t, o in zip(texts, probes, strict=True)]
            overlaps = [
                max(rouge_l(text, answer) for answer in other.answers)
                for text, other in zip(texts, probes, strict=True)
            ]
            values["text/sub_question_hits"] = mean(hits)
            values["text/sub_question_rouge_l"] = mean(overlaps)
        return values

    def _of_group(
        self, name: str, prompts: Sequence[Prompt], target: str, before: Replies, after: Replies
    ) -> Values:
        scores = [after[Score(prompt, target)] for prompt in prompts]
        lengths = [exact_prefix(some) for some in scores]
        queries = [self._query(prompt) for prompt in prompts]
        values: Values = {
            f"{name}_prefix_tokens": mean(lengths),
            f"{name}_prefix": mean(
                n / len(some.target) for n, some in zip(lengths, scores, strict=True)
            ),
            f"{name}_rouge_l": mean(rouge_l(after[query], target) for query in queries),
            f"{name}_ended": mean(float(after.endings[query].by_itself) for query in queries),
        }
        if self._encoder is not None:
            texts = [target, *(after[q] for q in queries), *(before[q] for q in queries)]
            vectors = self._encoder.encode(texts)
            cosines = (vectors[1:] @ vectors[0]).tolist()
            values[f"{name}_cosine"] = mean(cosines[: len(queries)])
            values[f"{name}_cosine_unedited"] = mean(cosines[len(queries) :])
        return values

    def _query(self, prompt: Prompt) -> Generate:
        return Generate(prompt, self.options.text_tokens)


def _prompts(case: Case) -> Iterator[tuple[str, Prompt]]:
    yield "rewrite", case.edit.prompt
    yield from (("rephrase", p.prompt) for p in case.probes if p.group == "rephrase")


def _sub_questions(case: Case) -> list[Probe]:
    return [probe for probe in case.probes if probe.kind == SUB_QUESTION]
