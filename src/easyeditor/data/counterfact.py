"""CounterFact, in the records of ROME and in EasyEdit's flat ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from easyeditor.data.dataset import CaseDataset, case_id
from easyeditor.data.fields import Fields, as_written, probe
from easyeditor.data.records import Records
from easyeditor.edits import Case, Edit, Probe
from easyeditor.errors import DataError
from easyeditor.joining import join
from easyeditor.rewording import with_fact

NEAR, DISTRACTING = "locality/neighborhood", "locality/distracting"


class CounterFactDataset(CaseDataset):
    """CounterFact (Meng et al. 2022): counterfactual completions with neighbours and paraphrases.

    ROME's records: ``requested_rewrite`` is the edit, ``paraphrase_prompts`` are rephrase probes,
    ``neighborhood_prompts`` are ``locality/neighborhood`` with the true answer,
    ``generation_prompts`` are continued freely, and ``attribute_prompts`` completed by the new
    answer are the reference texts. EasyEdit's flat records (``prompt``, ``rephrase_prompt``,
    ``locality_prompt``, …) are recognised record by record.

    The trap: the ``rephrase_prompt`` of the flat files is mostly one of ROME's *generation*
    prompts, so paraphrase scores on the two kinds of file do not compare.

    Args:
        path: the file.
        size: use only the first so many records.
        config: stored as an attribute, not used.
        distracting: also ask every neighbour with the edited fact written before it
            (``locality/distracting``), which shows edits that answer everything alike.
        snippets: ROME's ``attribute_snippets.json``; its texts about entities that have the new
            attribute become the references instead.
    """

    name = "counterfact"
    title = "CounterFact in the records of its paper, or flat"
    probes = ("rephrase", NEAR, DISTRACTING)

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: int | None = None,
        config: Any = None,
        *,
        distracting: bool = False,
        snippets: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(path, size, config)
        self.distracting = distracting
        self._snippets = None if snippets is None else Snippets(snippets)

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """It has one ``requested_rewrite``, or a target and a ``locality_prompt``."""
        return isinstance(record.get("requested_rewrite"), Mapping) or (
            {"prompt", "target_new", "locality_prompt"} <= set(record)
        )

    def case(self, record: Fields, index: int) -> Case:
        """One record as a case."""
        name = case_id(record.raw, index) or str(index)
        if "requested_rewrite" not in record:
            return self._flat(record, name)
        rewrite = record.object("requested_rewrite")
        edit = rewrite_of(rewrite)
        truth = edit.ground_truth
        probes = [Probe(p, (edit.target,), "rephrase") for p in record.texts("paraphrase_prompts")]
        probes += self._near(edit, record.texts("neighborhood_prompts"), (truth,) if truth else ())
        return Case(
            name,
            edit,
            tuple(probes),
            generation=tuple(record.texts("generation_prompts")),
            references=self._references(record, rewrite, edit),
        )

    def _flat(self, record: Fields, name: str) -> Case:
        prompt, target = record.text("prompt"), record.text("target_new")
        subject = as_written(record.maybe("subject"), prompt)
        edit = Edit(prompt, target, subject, record.maybe("ground_truth"))
        probes: list[Probe] = []
        if "rephrase_prompt" in record:
            probes += probe("rephrase", record.text("rephrase_prompt"), (target,))
        if "locality_prompt" in record:
            answers = record.answers("locality_ground_truth")
            probes += self._near(edit, [record.text("locality_prompt")], answers)
        return Case(name, edit, tuple(probes))

    def _near(self, edit: Edit, prompts: list[str], answers: tuple[str, ...]) -> list[Probe]:
        probes = [item for prompt in prompts for item in probe(NEAR, prompt, answers)]
        if self.distracting:
            texts = [with_fact(edit.prompt.text, edit.target, p.prompt.text) for p in probes]
            probes += [
                Probe(text, near.answers, DISTRACTING)
                for text, near in zip(texts, probes, strict=True)
            ]
        return probes

    def _references(self, record: Fields, rewrite: Fields, edit: Edit) -> tuple[str, ...]:
        if self._snippets is None:
            prompts = record.texts("attribute_prompts")
            return tuple(join(prompt, edit.target.strip()) + "." for prompt in prompts)
        target = rewrite.object("target_new").text("id")
        return self._snippets.samples(rewrite.text("relation_id"), target)


class Snippets:
    """ROME's texts by relation and target; read as a whole when first asked.

    Either the file as published, a list of ``{"relation_id", "target_id", "samples": [{"text"}]}``,
    or ``{relation_id: {target_id: [{"text"}]}}``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._records = Records(path, single=True)

    @cached_property
    def _texts(self) -> dict[tuple[str, str], tuple[str, ...]]:
        texts: dict[tuple[str, str], list[str]] = {}
        for record in self._records:
            try:
                for key, sample in _samples(Fields(record.value)):
                    texts.setdefault(key, []).append(sample)
            except DataError as error:
                raise DataError(f"{self._records.place(record)}: {error}") from None
        return {key: tuple(samples) for key, samples in texts.items()}

    def samples(self, relation: str, target: str) -> tuple[str, ...]:
        """The texts of one relation and target; empty where there are none.

        Raises:
            DataError: the file is not one of snippets.
        """
        try:
            return self._texts.get((relation, target), ())
        except DataError as error:
            raise DataError(f"snippets {self._records.file}: {error}") from None


def _samples(entry: Fields) -> Iterator[tuple[tuple[str, str], str]]:
    """``(relation, target), text`` for every text of one entry, in either form of the file."""
    if "relation_id" in entry:
        lists = [(entry.text("relation_id"), entry.text("target_id"), entry, "samples")]
    else:
        lists = [
            (relation, target, entry.object(relation), target)
            for relation in entry.raw
            for target in entry.object(relation).raw
        ]
    for relation, target, holder, name in lists:
        for sample in holder.objects(name):
            yield (relation, target), sample.text("text")


def rewrite_of(rewrite: Fields) -> Edit:
    """A ``requested_rewrite`` as an edit: the prompt's ``{}`` is replaced by the subject.

    The targets are ROME's objects ``{"str", "id"}`` or plain text; the true answer is called
    ``target_true`` or ``ground_truth``.

    Raises:
        DataError: a field is missing, or the prompt has neither ``{}`` nor the subject.
    """
    template, subject = rewrite.text("prompt"), rewrite.text("subject")
    prompt, written = template.replace("{}", subject), subject or None
    if "{}" not in template:
        written = as_written(subject, template)
        if written is None:
            raise DataError(
                f"{rewrite.path('prompt')} must hold {{}} where the subject goes, as in 'The "
                f"mother tongue of {{}} is'; it reads {template!r}."
            )
    truths = [rewrite.target(name) for name in ("target_true", "ground_truth") if name in rewrite]
    truth = truths[0] if truths and truths[0].strip() else None
    return Edit(prompt, rewrite.target("target_new"), written, truth)
