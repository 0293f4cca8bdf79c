"""ZsRE as MEND split it: questions with a counterfactual answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easyeditor.data.dataset import CaseDataset, case_id
from easyeditor.data.fields import Fields, as_written, probe
from easyeditor.edits import Case, Edit, Probe


class ZsreDataset(CaseDataset):
    """ZsRE (Levy et al. 2017), in the records of MEND (Mitchell et al. 2022) and EasyEdit.

    ``src`` is edited to ``alt``; ``answers[0]``, where there are answers, is the ground truth;
    ``rephrase`` is the rephrase probe; ``loc`` (as it is written, "nq question: …") with
    ``loc_ans`` is ``locality/neighborhood``; ``portability``, where there is one, is
    ``portability/one_hop``.
    KnowEdit's ZsRE has other records: that is ``KnowEditDataset``.

    The trap: a few records have an empty ``alt``, other files have none. Those ask for no change,
    and are read as the edit to ``answers[0]``, as every record is in ROME's protocol.
    """

    name = "zsre"
    title = "ZsRE: questions with a counterfactual answer, flat"
    probes = ("rephrase", "locality/neighborhood", "portability/one_hop")

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """It has ``src``, and ``alt`` or ``answers``."""
        return "src" in record and ("alt" in record or "answers" in record)

    def case(self, record: Fields, index: int) -> Case:
        """One record as a case."""
        truths = record.answers("answers") if "answers" in record else ()
        prompt = record.text("src")
        target = record.text("alt") if not truths or "alt" in record else ""
        if not target.strip() and truths:
            target = truths[0]
        subject = as_written(record.maybe("subject"), prompt)
        edit = Edit(prompt, target, subject, truths[0] if truths else None)
        probes: list[Probe] = []
        if "rephrase" in record:
            probes += probe("rephrase", record.text("rephrase"), (target,))
        if "loc" in record:
            probes += probe("locality/neighborhood", record.text("loc"), record.answers("loc_ans"))
        if "portability" in record:
            hop = record.object("portability")
            probes += probe(
                "portability/one_hop", hop.text("New Question"), hop.answers("New Answer")
            )
        return Case(case_id(record.raw, index) or str(index), edit, tuple(probes))
