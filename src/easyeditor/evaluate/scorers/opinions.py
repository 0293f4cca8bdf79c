"""Does the model hold the wanted opinion, and the same ones as before on other topics?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from easyeditor.data.personality import OTHER, SHOWN, TOPIC, WANTED
from easyeditor.edits import Case, Generate, NextToken, Probe, Query, Score
from easyeditor.evaluate.behaviour import TRAIT, Answer, judged
from easyeditor.evaluate.generation_metrics import natural_answer, ngram_entropy
from easyeditor.evaluate.replies import Replies
from easyeditor.evaluate.scorers.base import Scorer, Values, mean
from easyeditor.lm.next_token import kl_divergence

KL_WORDS = 4
"""Words of an answer about another topic at which distributions are compared."""
COHERENT = 3.5
"""Bits of n-gram entropy from which on an answer counts as coherent (arXiv 2310.02168)."""


class OpinionScorer(Scorer):
    """Scores of PersonalityEdit (arXiv 2310.02168) and of ConvSent, under ``opinion``.

    - ``ES``: ``σ(p − o) · min(1, exp(p − p₀))``: ``p`` and ``o`` the mean log-probability per token
      of all wanted and of all other answers, ``p₀`` that of the wanted ones before the edit.
    - ``DD``: KL(before ‖ after) of the next token, in nats, behind the question about another topic
      and behind each of the first three words of an answer to it.
    - ``trait_acc``, ``tpei``: whether the judge finds the wanted trait in the free answer (p ≥ ½),
      and by how many nats its −log p fell; nothing without ``options.judge``.
    - ``coherent``: whether the n-gram entropy of that answer is at least 3.5 bits.

    The last two need ``options.answer_tokens``. The trap: ``ES`` of the unedited model is σ(p − o),
    near ½ for most; an edit is worth what it is above that.
    """

    def queries(self, probe: Probe | None, case: Case) -> Iterable[Query]:
        """Every answer scored, the next tokens on the other topic, a free answer."""
        for other in case.probes:
            if other.kind in {WANTED, OTHER}:
                yield Score(other.prompt, other.answers[0])
            elif other.kind == TOPIC:
                yield from _positions(other)
            elif other.kind == SHOWN and self.options.answer_tokens:
                yield self.options.answer(other.prompt)

    def score(self, probe: Probe | None, case: Case, before: Replies, after: Replies) -> Values:
        """See the class."""
        values: Values = {}
        wanted = _mean_logprob(case, WANTED, after)
        others = _mean_logprob(case, OTHER, after)
        earlier = _mean_logprob(case, WANTED, before)
        if wanted is not None and others is not None and earlier is not None:
            topic = math.exp(min(0.0, wanted - earlier))
            values["opinion/ES"] = topic / (1 + math.exp(min(700.0, others - wanted)))
        topics = [p for p in case.probes if p.kind == TOPIC]
        if topics and after is not before:
            divergences = [
                kl_divergence(before[query], after[query])
                for other in topics
                for query in _positions(other)
            ]
            known = [value for value in divergences if not math.isnan(value)]
            values["opinion/DD"] = mean(known) if known else None
        for other in case.probes:
            query = self.options.answer(other.prompt)
            if other.kind == SHOWN and query in after.texts:
                values |= self._shown(other, query, before, after)
        return values

    def _shown(self, probe: Probe, query: Generate, before: Replies, after: Replies) -> Values:
        chat = after.as_chat(probe.prompt)
        text = natural_answer(after[query], chat)
        values: Values = {"opinion/coherent": float(ngram_entropy(text) >= COHERENT)}
        if self.options.judge is None:
            return values
        earlier = natural_answer(before[query], chat)
        answers = [
            Answer(probe.prompt.text, words, probe.answers[0], TRAIT) for words in (text, earlier)
        ]
        now, then = judged(self.options.judge, answers)
        values["opinion/trait_acc"] = None if now is None else float(now >= 0.5)
        if now is not None and then is not None and after is not before:
            values["opinion/tpei"] = math.log(max(now, 1e-9)) - math.log(max(then, 1e-9))
        return values


def _positions(probe: Probe) -> Iterator[NextToken]:
    words = probe.answers[0].split()
    for n in range(min(KL_WORDS, len(words))):
        yield NextToken(probe.prompt, " ".join(words[:n]))


def _mean_logprob(case: Case, kind: str, replies: Replies) -> float | None:
    """Over all tokens of all answers of a kind; None where there are none."""
    queries = [Score(p.prompt, p.answers[0]) for p in case.probes if p.kind == kind]
    numbers = [value for query in queries for value in replies[query].logprobs]
    return sum(numbers) / len(numbers) if numbers else None
