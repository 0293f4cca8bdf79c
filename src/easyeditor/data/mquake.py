"""MQuAKE: questions over several hops that must follow when one or more hops are edited."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easyeditor.data.counterfact import rewrite_of
from easyeditor.data.dataset import CaseDataset, case_id
from easyeditor.data.fields import Fields, probe
from easyeditor.edits import Case, Probe
from easyeditor.errors import DataError


class MQuAKEDataset(CaseDataset):
    """MQuAKE-CF and MQuAKE-T (Zhong et al. 2023).

    ``requested_rewrite`` lists the edits of a case: the first is ``edit``, the others are
    ``also``, and all are applied together. Its ``question`` is the rephrase probe of the first;
    ``new_single_hops`` are ``portability/one_hop`` (all hops of the chain, edited or not, as the
    paper's instance-wise accuracy asks them); ``questions``, the same chain in three wordings,
    are ``portability/multi_hop`` with ``new_answer`` and its aliases.

    The traps: a case is one edit of several facts, and scores named ``rewrite_…`` are of the
    first. With many cases edited at once, the edits of one break the chain of another: 998 records
    of MQuAKE-CF-3k are contaminated so. Edit each case alone, or use the v2 or the clean file, and
    say which.
    """

    name = "mquake"
    title = "MQuAKE: one or more edits per case, multi-hop questions"
    probes = ("rephrase", "portability/one_hop", "portability/multi_hop")

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """It has a list of ``requested_rewrite``."""
        return isinstance(record.get("requested_rewrite"), list)

    def case(self, record: Fields, index: int) -> Case:
        """One record as a case."""
        rewrites = record.objects("requested_rewrite")
        if not rewrites:
            raise DataError("requested_rewrite must list at least one edit.")
        edit, *also = (rewrite_of(rewrite) for rewrite in rewrites)
        probes: list[Probe] = []
        if "question" in rewrites[0]:
            probes += probe("rephrase", rewrites[0].text("question"), (edit.target,))
        for hop in record.objects("new_single_hops"):
            answers = _answers(hop, "answer", "answer_alias")
            probes += probe("portability/one_hop", hop.text("question"), answers)
        answers = _answers(record, "new_answer", "new_answer_alias")
        for question in record.texts("questions"):
            probes += probe("portability/multi_hop", question, answers)
        return Case(case_id(record.raw, index) or str(index), edit, tuple(probes), tuple(also))


def _answers(record: Fields, name: str, aliases: str) -> tuple[str, ...]:
    more = record.answers(aliases) if aliases in record else ()
    return tuple(dict.fromkeys((*record.answers(name), *more)))
