"""How far did the edit move what the model predicts where nothing should change?"""

from __future__ import annotations

import math
from collections.abc import Iterable

from easyeditor.edits import Case, NextToken, Probe
from easyeditor.evaluate.replies import Replies
from easyeditor.evaluate.scorers.base import Scorer, Values
from easyeditor.lm.next_token import kl_divergence


class DivergenceScorer(Scorer):
    """Per name of the locality probe ``locality/<name>_kl``; nothing without the option.

    The KL divergence, in nats, from the unedited model's next-token distribution behind the prompt
    to the edited one's; behind distracting prompts it is CounterFact+'s NKL (arXiv 2305.17553).
    """

    group = "locality"

    def queries(self, probe: Probe | None, case: Case) -> Iterable[NextToken]:
        """The next token after the probe's prompt."""
        assert probe is not None
        if self.options.divergence:
            yield NextToken(probe.prompt)

    def score(self, probe: Probe | None, case: Case, before: Replies, after: Replies) -> Values:
        """See the class; not on the unedited model, where it is 0 by definition."""
        assert probe is not None
        query = NextToken(probe.prompt)
        if after is before or query not in after.distributions:
            return {}
        divergence = kl_divergence(before[query], after[query])
        name = f"locality/{probe.name or 'locality'}_kl"
        return {name: None if math.isnan(divergence) else divergence}
