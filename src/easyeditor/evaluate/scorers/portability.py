"""Does what follows from the edit hold?"""

from __future__ import annotations

from collections.abc import Iterable

from easyeditor.edits import Case, Probe, Score
from easyeditor.evaluate.replies import Replies
from easyeditor.evaluate.scorers.base import Scorer, Values


class PortabilityScorer(Scorer):
    """Per name of the probe, under ``portability``: ``<name>_acc``, token accuracy."""

    group = "portability"

    def queries(self, probe: Probe | None, case: Case) -> Iterable[Score]:
        """The probe's answer."""
        assert probe is not None
        yield Score(probe.prompt, probe.answers[0])

    def score(self, probe: Probe | None, case: Case, before: Replies, after: Replies) -> Values:
        """See the class."""
        assert probe is not None
        name = probe.name or "portability"
        accuracy = after[Score(probe.prompt, probe.answers[0])].accuracy
        return {f"portability/{name}_acc": accuracy}
