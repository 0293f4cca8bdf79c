"""KnowEdit's six files: three of facts, biographies, opinions, and things to forget."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from easyeditor.data.dataset import CaseDataset, case_id
from easyeditor.data.fields import Fields, as_written, probe
from easyeditor.data.personality import QUESTIONS, opinion_probes
from easyeditor.edits import Case, Edit, Probe
from easyeditor.errors import DataError, did_you_mean

FACTS, BIOGRAPHY, OPINION, FORGETTING = "facts", "wikibio", "convsent", "sanitation"
KINDS = {
    "zsre": FACTS,
    "wiki_recent": FACTS,
    "wiki_counterfact": FACTS,
    "recent": FACTS,
    "counterfact": FACTS,
    "wikibio": BIOGRAPHY,
    "convsent": OPINION,
    "sanitation": FORGETTING,
}
GROUPS = {
    "Relation_Specificity",
    "Forgetfulness",
    "Logical_Generalization",
    "Reasoning",
    "Subject_Aliasing",
}
SECTIONS = {"success": "locality", "K_F": "K_R"}  # what to forget: what to keep
OLD, RETAINED = "forgotten/answer", "locality/retained"
"""Kinds of probes: the question whose answer shall go, and those whose answers shall stay."""


class KnowEditDataset(CaseDataset):
    """KnowEdit (Zhang et al. 2024), all six parts; which one is seen from the fields.

    - ZsRE, wiki_recent, wiki_counterfact: ``prompt`` → ``target_new``; the probes keep their
      groups' names (``locality/Relation_Specificity``, ``portability/Reasoning``, …). Where a
      probe lists several answers or aliases, all are accepted and the first is scored; a probe
      without any answer (there are a few) is left out.
    - WikiBio: the passage ``text`` → the sentence ``labels`` that shall follow it; the subject is
      ``concept``.
    - ConvSent (SERAC's sentiment task): "What do you think of ENTITY?" → the first text of the
      wanted sentiment, ground truth the first of the other; the question in two other wordings is
      the rephrase, the entity of the record before (for the first: after) with its opposite
      opinion is ``locality/other_topic``; all texts of the wanted sentiment are the references, and
      all texts of both are ``opinion`` probes (:class:`PersonalityDataset`'s).
    - Sanitation: each question to be forgotten → "I don't know." (as the file says); the questions
      to be retained are divided among the cases in turn as ``locality/retained``, so each is asked
      once; the answer to be forgotten is ``forgotten/answer``.

    The trap: a subject that the prompt does not write (3 in ZsRE) is None, and a method that
    needs a subject refuses the case.

    Args:
        path: the file.
        size: use only the first so many records.
        config: stored as an attribute, not used.
        kind: which part it is, where the fields shall not decide: zsre, wiki_recent,
            wiki_counterfact, wikibio, convsent or sanitation.
        sentiment: which opinion ConvSent edits in: positive or negative.
    """

    name = "knowedit"
    title = "KnowEdit: ZsRE, wiki_recent, wiki_counterfact, WikiBio, ConvSent, Sanitation"
    probes = (
        "rephrase",
        "locality/Relation_Specificity",
        "locality/Forgetfulness",
        "locality/other_topic",
        "locality/retained",
        "forgotten/answer",
        "opinion/*",
        "portability/Logical_Generalization",
        "portability/Reasoning",
        "portability/Subject_Aliasing",
    )
    _sections = tuple(SECTIONS)

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: int | None = None,
        config: Any = None,
        *,
        kind: str | None = None,
        sentiment: str = "positive",
    ) -> None:
        super().__init__(path, size, config)
        if kind is not None and kind not in KINDS:
            raise DataError(
                f"kind {kind!r} is no part of KnowEdit.{did_you_mean(str(kind), KINDS)} "
                f"Known: {', '.join(KINDS)}."
            )
        if sentiment not in ("positive", "negative"):
            raise DataError(f"sentiment must be positive or negative, not {sentiment!r}.")
        self.kind, self.sentiment = kind, sentiment
        self._want, self._other = ("pos", "neg") if sentiment == "positive" else ("neg", "pos")

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """It is one of the six kinds of record, or an object of Sanitation's lists."""
        if any({forget, keep} <= set(record) for forget, keep in SECTIONS.items()):
            return True
        if {"text", "labels", "concept"} <= set(record) or {"ent", "pos", "neg"} <= set(record):
            return True
        if not {"prompt", "target_new"} <= set(record):
            return False
        blocks = [record.get("locality"), record.get("portability")]
        return "cond" in record or any(
            name in GROUPS and isinstance(items, list) and "ground_truth" in str(items[:1])
            for block in blocks
            if isinstance(block, Mapping)
            for name, items in block.items()
        )

    def case(self, record: Fields, index: int) -> Case:
        """One record as a case."""
        part = KINDS[self.kind] if self.kind else _part(record)
        edit, probes, prompts, references = {
            FACTS: self._facts,
            BIOGRAPHY: self._biography,
            OPINION: self._opinion,
            FORGETTING: self._forgetting,
        }[part](record, index)
        name = case_id(record.raw, index) or str(index)
        return Case(name, edit, tuple(probes), generation=prompts, references=references)

    def _facts(self, record: Fields, _: int) -> _Parts:
        prompt, target = record.text("prompt"), record.text("target_new")
        truths = record.answers("ground_truth") if "ground_truth" in record else ()
        subject = as_written(record.maybe("subject"), prompt)
        edit = Edit(prompt, target, subject, truths[0] if truths else None)
        probes: list[Probe] = []
        if "rephrase_prompt" in record:
            probes += probe("rephrase", record.text("rephrase_prompt"), (target,))
        return edit, probes + _groups(record), (), ()

    def _biography(self, record: Fields, _: int) -> _Parts:
        prompt = record.text("text")
        subject = as_written(record.maybe("concept"), prompt)
        edit = Edit(prompt, record.text("labels"), subject)
        return edit, _groups(record), (), ()

    def _opinion(self, record: Fields, index: int) -> _Parts:
        entity = record.text("ent").strip()
        wanted = [text.strip() for text in record.texts(self._want) if text.strip()]
        others = record.answers(self._other)
        if not wanted:
            raise DataError(f"{record.path(self._want)} holds no text to edit in.")
        prompt = QUESTIONS[0].format(entity)
        edit = Edit(prompt, wanted[0], entity, others[0].strip() if others else None)
        probes = [Probe(text.format(entity), (wanted[0],), "rephrase") for text in QUESTIONS[1:]]
        neighbor, topic = index - 1 if index else 1, None
        if neighbor < len(self._records):
            other = Fields(self._records[neighbor].value, f"[record {neighbor + 1}]")
            answers = tuple(text.strip() for text in other.answers(self._other))
            question = QUESTIONS[0].format(other.text("ent").strip())
            probes += probe("locality/other_topic", question, answers[:1])
            topic = (other.text("ent").strip(), answers[0]) if answers else None
        unwanted = [text.strip() for text in others]
        probes += opinion_probes(entity, wanted, unwanted, self.sentiment, topic)
        return edit, probes, (prompt,), tuple(wanted)

    def _forgetting(self, record: Fields, index: int) -> _Parts:
        prompt, target = record.text("question"), record.text("target_new")
        truths = record.answers("ground_truth")
        subject = as_written(record.maybe("subject"), prompt)
        edit = Edit(prompt, target, subject, truths[0] if truths else None)
        probes: list[Probe] = []
        for other in self._records.aside()[index :: len(self._records)]:
            retained = Fields(other.value, f"[record {other.number} of {other.section!r}]")
            probes += probe(RETAINED, retained.text("question"), retained.answers("ground_truth"))
        probes += probe(OLD, prompt, truths)
        return edit, probes, (), ()


_Parts = tuple[Edit, list[Probe], tuple[str, ...], tuple[str, ...]]


def _part(record: Fields) -> str:
    if "ent" in record:
        return OPINION
    if "labels" in record:
        return BIOGRAPHY
    return FORGETTING if "question" in record else FACTS


def _groups(record: Fields) -> list[Probe]:
    return [
        item
        for group in ("locality", "portability")
        if group in record
        for name in record.object(group).raw
        for entry in record.object(group).objects(name)
        for item in probe(f"{group}/{name}", entry.text("prompt"), entry.answers("ground_truth"))
    ]
