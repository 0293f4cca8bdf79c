"""Is the model as a whole still sound?"""

from __future__ import annotations

from collections.abc import Iterable

from easyeditor.edits import Case, Probe, Score
from easyeditor.evaluate.replies import Replies
from easyeditor.evaluate.scorers.base import Scorer, Values


class PerplexityScorer(Scorer):
    """``perplexity`` on the held-out text of the options, which is asked once per model."""

    def queries(self, probe: Probe | None, case: Case) -> Iterable[Score]:
        """None: the text belongs to no case."""
        return ()

    def score(self, probe: Probe | None, case: Case, before: Replies, after: Replies) -> Values:
        """See the class."""
        return {} if after.perplexity is None else {"perplexity": after.perplexity}
