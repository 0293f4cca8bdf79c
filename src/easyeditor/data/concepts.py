"""ConceptEdit: new definitions of concepts, with instances of the old ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from easyeditor.data.dataset import CaseDataset, case_id
from easyeditor.data.fields import Fields, as_written, probe
from easyeditor.edits import Case, Edit, Probe, Prompt

INSTANCE, DEFINED = "instance/instance", "@definition"
"""Kind of a question whether something is an instance, and the end of the kind of one with the new
definition in front."""


class ConceptDataset(CaseDataset):
    """ConceptEdit (arXiv 2403.06259), its inter- and intra-files.

    The edit is ``prompt`` → ``target_new_desc``, its subject the concept's name ``label``;
    ``phrase_prompt`` is the rephrase, ``locality_prompt`` with ``locality_answer`` is ``locality/
    neighborhood``, and every ``instance_prompt`` ("Whether X belongs to category Y?") is asked as
    ``instance/instance``, with "Definition of Y: …" in front as ``instance/instance@definition``
    (on the unedited model, what a prompt alone does).
    """

    name = "concepts"
    title = "ConceptEdit: new definitions of concepts"
    probes = ("rephrase", "locality/neighborhood", "instance/*")

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """It has a new definition and a concept's name."""
        return {"prompt", "target_new_desc", "label"} <= set(record)

    def case(self, record: Fields, index: int) -> Case:
        """One record as a case."""
        prompt, target = record.text("prompt"), record.text("target_new_desc").strip()
        subject = as_written(record.text("label").strip(), prompt)
        edit = Edit(prompt, target, subject)
        probes: list[Probe] = []
        if "phrase_prompt" in record:
            probes += probe("rephrase", record.text("phrase_prompt"), (target,))
        if "locality_prompt" in record:
            question, answers = record.text("locality_prompt"), record.answers("locality_answer")
            probes += probe("locality/neighborhood", question, answers)
        probes += instance_probes(edit, record.texts("instance_prompt"), record.text("label"))
        return Case(case_id(record.raw, index) or str(index), edit, probes)


def instance_probes(
    edit: Edit, questions: Sequence[str | Prompt], concept: str, name: str = "instance"
) -> Iterator[Probe]:
    """Every question bare, and with the new definition in front."""
    for question in questions:
        prompt = Prompt(question) if isinstance(question, str) else question
        kind = f"instance/{name}"
        yield Probe(prompt, ("Yes",), kind)
        yield Probe(prompt.with_text(defined(edit, concept, prompt)), ("Yes",), f"{kind}{DEFINED}")


def defined(edit: Edit, concept: str, question: Prompt) -> str:
    """The question's text with the new definition in front."""
    return f"Definition of {concept.strip()}: {edit.target.strip()}\n{question.text}"
