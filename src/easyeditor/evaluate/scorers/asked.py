"""What does a user read who asks for the edited fact?"""

from __future__ import annotations

from collections.abc import Iterable

from easyeditor.edits import Case, Generate, Probe
from easyeditor.evaluate.generation_metrics import contains, equals
from easyeditor.evaluate.replies import Replies
from easyeditor.evaluate.scorers.base import Scorer, Values


class AskedScorer(Scorer):
    """Greedy answers to ``asked`` probes, read to their natural end, under ``generation``.

    Per name of the probe: ``<name>_acc``, whether an answer stands in the text; ``<name>_exact``,
    whether it is the whole text; ``<name>_ended``, whether the model ended the text by itself
    within ``options.asked_tokens``; ``<name>_tokens``, how many tokens it wrote. Nothing without
    these tokens. The trap: a text that does not end is long, and a long text contains more: read
    ``_acc`` beside ``_ended``.
    """

    group = "asked"

    def queries(self, probe: Probe | None, case: Case) -> Iterable[Generate]:
        """A free answer to the probe."""
        assert probe is not None
        if self.options.asked_tokens:
            yield Generate(probe.prompt, self.options.asked_tokens)

    def score(self, probe: Probe | None, case: Case, before: Replies, after: Replies) -> Values:
        """See the class; nothing where free text was not asked for."""
        assert probe is not None
        query = Generate(probe.prompt, self.options.asked_tokens)
        if query not in after.texts:
            return {}
        text, name = after[query], f"generation/{probe.name}"
        values: Values = {
            f"{name}_acc": float(contains(text, probe.answers)),
            f"{name}_exact": float(equals(text, probe.answers)),
        }
        ending = after.endings.get(query)
        if ending is not None:
            values[f"{name}_ended"] = float(ending.by_itself)
            values[f"{name}_tokens"] = float(ending.tokens)
        return values
