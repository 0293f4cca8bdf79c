"""Are questions over several hops answered, in any of their wordings, and all hops on the way?"""

from __future__ import annotations

from collections.abc import Iterable

from easyeditor.edits import Case, Generate, Probe
from easyeditor.evaluate.generation_metrics import contains, equals, natural_answer
from easyeditor.evaluate.replies import Replies
from easyeditor.evaluate.scorers.base import Scorer, Values

KINDS = {"portability/multi_hop": ("multi_hop_any", any), "portability/one_hop": ("hops_all", all)}


class MultiHopScorer(Scorer):
    """MQuAKE's two counts (arXiv 2305.14795), of cases with ``portability/multi_hop`` probes.

    Under ``generation``, of greedy free answers: ``multi_hop_any_exact``, whether *any* of the
    case's questions (MQuAKE: three wordings) gives a text that equals the answer or an alias after
    normalisation; ``hops_all_exact``, whether *all* its single hops do. ``…_acc``: the same with
    the answer anywhere in the text, for models that answer in sentences. Nothing without
    ``options.answer_tokens``.
    """

    def queries(self, probe: Probe | None, case: Case) -> Iterable[Generate]:
        """Free answers to the questions and to the single hops."""
        if self.options.answer_tokens and _multi_hop(case):
            for other in case.probes:
                if other.kind in KINDS:
                    yield self.options.answer(other.prompt)

    def score(self, probe: Probe | None, case: Case, before: Replies, after: Replies) -> Values:
        """See the class."""
        values: Values = {}
        if not self.options.answer_tokens or not _multi_hop(case):
            return values
        for kind, (name, enough) in KINDS.items():
            probes = [other for other in case.probes if other.kind == kind]
            queries = [self.options.answer(other.prompt) for other in probes]
            if not probes or not all(query in after.texts for query in queries):
                continue
            answers = [
                (natural_answer(after[query], after.as_chat(query.prompt)), other.answers)
                for query, other in zip(queries, probes, strict=True)
            ]
            values[f"generation/{name}_acc"] = float(enough(contains(*pair) for pair in answers))
            values[f"generation/{name}_exact"] = float(enough(equals(*pair) for pair in answers))
        return values


def _multi_hop(case: Case) -> bool:
    return any(probe.kind == "portability/multi_hop" for probe in case.probes)
