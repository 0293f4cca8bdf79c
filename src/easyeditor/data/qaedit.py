"""QAEdit: real questions that models get wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easyeditor.data.dataset import CaseDataset, case_id
from easyeditor.data.fields import Fields, as_written, probe
from easyeditor.edits import Case, Edit, Probe


class QAEditDataset(CaseDataset):
    """QAEdit (Yang et al. 2025, arXiv 2502.11177): NQ, TriviaQA and SimpleQA as edits.

    ``prompt`` (or ``question``) → ``target`` (or ``answer``), the true answer; ``rephrase`` is the
    rephrase probe; ``locality``, a list of ``{"loc", "loc_ans"}``, is ``locality/neighborhood``.

    The trap: there is no ground truth: what the model says before the edit is simply wrong.
    """

    name = "qaedit"
    title = "QAEdit: questions from NQ, TriviaQA and SimpleQA"
    probes = ("rephrase", "locality/neighborhood")

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """It lists ``loc`` and ``loc_ans``, or has a ``question`` and its answer."""
        near = record.get("locality")
        if isinstance(near, list) and near and isinstance(near[0], Mapping) and "loc" in near[0]:
            return True
        return "question" in record and bool({"target", "answer"} & set(record))

    def case(self, record: Fields, index: int) -> Case:
        """One record as a case."""
        prompt, target = record.text("prompt", "question"), record.text("target", "answer")
        edit = Edit(prompt, target, as_written(record.maybe("subject"), prompt))
        probes: list[Probe] = []
        if "rephrase" in record:
            probes += probe("rephrase", record.text("rephrase"), (target,))
        for near in record.objects("locality"):
            probes += probe("locality/neighborhood", near.text("loc"), near.answers("loc_ans"))
        return Case(case_id(record.raw, index) or str(index), edit, tuple(probes))
