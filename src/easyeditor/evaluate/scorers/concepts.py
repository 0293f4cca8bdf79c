"""Do instances of a concept follow its new definition, and does the model define it so?"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from easyeditor.edits import Case, Generate, Probe
from easyeditor.evaluate.behaviour import CONCEPT, Answer, judged
from easyeditor.evaluate.generation_metrics import natural_answer
from easyeditor.evaluate.replies import Replies
from easyeditor.evaluate.scorers.base import Scorer, Values

GROUP = "instance"
SHOTS = "Whether Rome belongs to category city? Yes\nWhether Rome belongs to category animal? No\n"
"""Before every question whether something is an instance, so that the answer is yes or no."""
TOKENS = 2


class InstanceScorer(Scorer):
    """ConceptEdit's instance change (arXiv 2403.06259), under ``instance``.

    ``yes``: the share of "is X a Y?" answered yes (two tokens, after two examples); ``unparsed``:
    the share answered with neither yes nor no, which counts in no other score; ``change``: yes
    before − yes after, over questions parsed both times. ``yes@definition``, …: the same with the
    new definition before the question, on unedited weights what a prompt alone does.
    """

    group = GROUP

    def queries(self, probe: Probe | None, case: Case) -> Iterable[Generate]:
        """The question behind the examples."""
        assert probe is not None
        yield _query(probe)

    def score(self, probe: Probe | None, case: Case, before: Replies, after: Replies) -> Values:
        """See the class."""
        assert probe is not None
        _, at, condition = probe.name.partition("@")
        then, now = yes_or_no(before[_query(probe)]), yes_or_no(after[_query(probe)])
        values: Values = {
            f"instance/yes{at}{condition}": now,
            f"instance/unparsed{at}{condition}": float(now is None),
        }
        if after is not before:
            both = None if then is None or now is None else then - now
            values[f"instance/change{at}{condition}"] = both
        return values


class ConceptScorer(Scorer):
    """``concept/consistency``: the judge's −1, 0 or 1 of the free answer to the edited prompt.

    Of cases with ``instance`` probes, with ``options.answer_tokens`` (the paper: 40) and
    ``options.judge``; nothing without.
    """

    def queries(self, probe: Probe | None, case: Case) -> Iterable[Generate]:
        """A free answer to the edited prompt."""
        if self._applies(case):
            yield self.options.answer(case.edit.prompt)

    def score(self, probe: Probe | None, case: Case, before: Replies, after: Replies) -> Values:
        """See the class."""
        query = self.options.answer(case.edit.prompt)
        if not self._applies(case) or query not in after.texts:
            return {}
        text = natural_answer(after[query], after.as_chat(case.edit.prompt))
        answer = Answer(case.edit.prompt.text, text, case.edit.target, CONCEPT)
        return {"concept/consistency": judged(self.options.judge, [answer], lowest=-1)[0]}

    def _applies(self, case: Case) -> bool:
        asks = self.options.answer_tokens and self.options.judge is not None
        return bool(asks) and any(probe.group == GROUP for probe in case.probes)


def yes_or_no(text: str) -> float | None:
    """1 for a text that begins with yes, 0 with no, None otherwise."""
    match = re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)
    return None if match is None else float(match.group(1).lower() == "yes")


def _query(probe: Probe) -> Generate:
    """Never in chat form: the examples are lines to be continued, not a user's turn."""
    text = f"{SHOTS}{probe.prompt.text.strip()}"
    return Generate(replace(probe.prompt.with_text(text), chat=False), TOKENS)
