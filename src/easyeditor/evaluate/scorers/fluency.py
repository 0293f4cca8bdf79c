"""Does the model still write well, and what is true after the edit?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from easyeditor.edits import Case, Generate, Probe
from easyeditor.evaluate.generation_metrics import Consistency, ngram_entropy
from easyeditor.evaluate.replies import EvalOptions, Replies
from easyeditor.evaluate.scorers.base import Scorer, Values, mean


class FluencyScorer(Scorer):
    """On long sampled continuations; nothing without ``options.continuation_tokens``.

    - ``fluency``: mean weighted entropy of word 2- and 3-grams.
    - ``consistency``: TF-IDF cosine with the case's references, where it has some.

    Raises:
        MissingExtraError: there are references, and scikit-learn is not installed.
    """

    def __init__(self, options: EvalOptions, cases: Sequence[Case] = ()) -> None:
        super().__init__(options, cases)
        references = [text for case in cases for text in case.references]
        wanted = options.continuation_tokens and references
        self._consistency = Consistency(references) if wanted else None

    def queries(self, probe: Probe | None, case: Case) -> Iterable[Generate]:
        """The case's generation prompts, continued."""
        return self.options.long(case)

    def score(self, probe: Probe | None, case: Case, before: Replies, after: Replies) -> Values:
        """See the class."""
        queries = self.options.long(case)
        values: Values = {}
        if queries and all(query in after.texts for query in queries):
            written = [after[query] for query in queries]
            values["fluency"] = mean(ngram_entropy(text) for text in written)
            if self._consistency is not None and case.references:
                values["consistency"] = self._consistency(written, case.references)
        return values
