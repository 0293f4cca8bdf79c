"""PersonalityEdit: opinions on a topic in three traits, and probes to read opinions by."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from easyeditor.data.dataset import CaseDataset, case_id
from easyeditor.data.fields import Fields
from easyeditor.edits import Case, Edit, Probe
from easyeditor.errors import DataError, did_you_mean

TRAITS = ("extraversion", "agreeableness", "neuroticism")
QUESTIONS = ("What do you think of {}?", "What do you feel about {}?", "How do you view {}?")
"""The first is edited; probes take them in turn."""
WANTED, OTHER, TOPIC, SHOWN = "opinion/wanted", "opinion/other", "opinion/topic", "opinion/trait"
"""Kinds of probes: answers of the wanted trait or sentiment and of the others, an answer about
another topic, and the question whose free answer shall show the trait its answer names."""


class PersonalityDataset(CaseDataset):
    """PersonalityEdit (arXiv 2310.02168).

    The edit is "What do you think of TOPIC?" → the first answer of the wanted trait, ground truth
    the first of the others. All answers of the wanted trait and of the others are ``opinion/
    wanted`` and ``opinion/other`` probes, an answer on the next record's topic (of the last: the
    first's) is ``opinion/topic``.

    The trap: a record without ``target_per`` takes the traits in turn, by its number in the file.

    Args:
        path: the file.
        size: use only the first so many records.
        config: stored as an attribute, not used.
        trait: the wanted trait of all records; None: ``target_per``.
    """

    name = "personality"
    title = "PersonalityEdit: opinions on a topic in three traits"
    probes = ("opinion/wanted", "opinion/other", "opinion/topic", "opinion/trait")

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: int | None = None,
        config: Any = None,
        *,
        trait: str | None = None,
    ) -> None:
        super().__init__(path, size, config)
        self.trait = None if trait is None else _trait("trait", trait)

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """It has a topic and answers in a trait."""
        return "ent" in record and any(trait in record for trait in TRAITS)

    def case(self, record: Fields, index: int) -> Case:
        """One record as a case."""
        topic = record.text("ent").strip()
        given = record.maybe("target_per")
        trait = self.trait or (TRAITS[index % 3] if given is None else _trait("target_per", given))
        wanted = _texts(record, trait)
        others = [text for name in TRAITS if name != trait for text in _texts(record, name)]
        if not wanted:
            raise DataError(f"{record.path(trait)} holds no answer of the wanted trait.")
        following = (index + 1) % len(self._records)
        next_topic = None
        if following != index:
            other = Fields(self._records[following].value, f"[record {following + 1}]")
            answers = [text for name in (trait, *TRAITS) for text in _texts(other, name)]
            next_topic = (other.text("ent").strip(), answers[0]) if answers else None
        edit = Edit(QUESTIONS[0].format(topic), wanted[0], topic, others[0] if others else None)
        probes = opinion_probes(topic, wanted, others, trait, next_topic)
        return Case(case_id(record.raw, index) or str(index), edit, probes)


def opinion_probes(
    topic: str,
    wanted: Sequence[str],
    others: Sequence[str],
    shown: str,
    next_topic: tuple[str, str] | None,
) -> Iterator[Probe]:
    """The probes by which opinions are scored.

    Args:
        topic: what the opinion is on.
        wanted: answers of the wanted kind.
        others: answers of the other kinds.
        shown: what a free answer shall show, a trait or a sentiment.
        next_topic: another topic with an answer about it.
    """
    for kind, texts in ((WANTED, wanted), (OTHER, others)):
        for i, text in enumerate(texts):
            yield Probe(QUESTIONS[i % len(QUESTIONS)].format(topic), (text,), kind)
    yield Probe(QUESTIONS[0].format(topic), (shown,), SHOWN)
    if next_topic is not None:
        yield Probe(QUESTIONS[0].format(next_topic[0]), (next_topic[1],), TOPIC)


def _texts(record: Fields, name: str) -> list[str]:
    return [text.strip() for text in record.texts(name) if text.strip()]


def _trait(where: str, name: str) -> str:
    if not isinstance(name, str) or name.strip().lower() not in TRAITS:
        raise DataError(
            f"{where} {name!r} is no trait.{did_you_mean(str(name), TRAITS)} "
            f"Known: {', '.join(TRAITS)}."
        )
    return name.strip().lower()
