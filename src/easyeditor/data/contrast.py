"""Texts of two kinds that a steering vector is the difference of, and where they are read.

A file holds one text per line (``.txt``), or records (``.jsonl``, ``.json``, ``.csv``) with a
prompt and an answer. Of plain texts in equal number the n-th lines of both files are compared, and
what they share at their beginning is their prompt; any other text has its first word as prompt.
Only the answer, the rest, is read and scored.

Equal numbers do not make pairs: a contrast is ``paired`` where its file says so
(:func:`read_pairs`) or its user (:meth:`Contrast.as_pairs`, the method CAA).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from easyeditor.data.records import Records
from easyeditor.edits import Prompt
from easyeditor.errors import DataError

PROMPTS = ("prompt", "question", "instruction")
ANSWERS = ("answer", "completion", "response", "target")
POSITIVE = ("positive", "matching", "chosen", "good")
NEGATIVE = ("negative", "not_matching", "rejected", "bad")
TEXTS = (".txt", ".text", "")
HELD_OUT_EVERY = 3
"""Every third text or pair is left out of the vector, to measure it on."""


@dataclass(frozen=True, slots=True)
class Example:
    """One text of a kind: ``answer``, which shows it, after a ``prompt``, which need not."""

    prompt: Prompt
    answer: str

    @property
    def text(self) -> str:
        """The whole text, as far as it is plain."""
        gap = "" if self.prompt.raw else " "
        return f"{self.prompt.text}{gap}{self.answer}"


@dataclass(frozen=True, slots=True)
class Contrast:
    """Texts that show something and texts that do not.

    Attributes:
        positive: what the vector leads to.
        negative: what it leads away from.
        paired: whether the n-th texts of both kinds belong together and are scored against each
            other.

    Raises:
        DataError: one of the two is empty, or pairs have different numbers of them.
    """

    positive: tuple[Example, ...]
    negative: tuple[Example, ...]
    paired: bool = False

    def __post_init__(self) -> None:
        for name in ("positive", "negative"):
            if not getattr(self, name):
                raise DataError(
                    f"There are no {name} texts, and a direction is the difference of two kinds; "
                    "give at least one of each."
                )

        if self.paired and len(self.positive) != len(self.negative):
            raise DataError(
                f"There are {len(self.positive)} positive and {len(self.negative)} negative texts, "
                "and contrast pairs need as many of each: the n-th belong together. Use the "
                "difference of means for texts that are no pairs (method='mean', --method mean)."
            )

    @property
    def begins_alike(self) -> bool:
        """Whether there are as many of each and the n-th of both kinds have one prompt."""
        prompts = [[example.prompt for example in kind] for kind in (self.positive, self.negative)]
        return prompts[0] == prompts[1]

    def as_pairs(self) -> Contrast:
        """The same, with the n-th texts of both kinds as a pair.

        Raises:
            DataError: the numbers differ.
        """
        return replace(self, paired=True)

    def split(self) -> tuple[Contrast, Contrast]:
        """``(to make a vector of, to measure it on)``.

        Every third text is of the second; of fewer than three both are the whole.
        """
        if min(len(self.positive), len(self.negative)) < HELD_OUT_EVERY:
            return self, self
        training, held_out = (
            replace(self, positive=_part(self.positive, part), negative=_part(self.negative, part))
            for part in (False, True)
        )
        return training, held_out

    def in_chat(self) -> Contrast:
        """The same with every prompt as a user's turn by the tokenizer's template."""
        return replace(self, positive=_in_chat(self.positive), negative=_in_chat(self.negative))


def _part(examples: Sequence[Example], held_out: bool) -> tuple[Example, ...]:
    last = HELD_OUT_EVERY - 1
    return tuple(e for i, e in enumerate(examples) if (i % HELD_OUT_EVERY == last) is held_out)


def _in_chat(examples: Iterable[Example]) -> tuple[Example, ...]:
    return tuple(Example(Prompt(e.prompt.text, chat=True), e.answer.lstrip()) for e in examples)


def contrast_of(positive: Sequence[str], negative: Sequence[str]) -> Contrast:
    """The contrast of plain texts, see the module for what is a text's prompt.

    Raises:
        DataError: there are none, a text is a single word, or the texts of a pair are the same.
    """
    pairs = len(positive) == len(negative)
    starts: list[int] = []
    if pairs:
        for number, (one, other) in enumerate(zip(positive, negative, strict=True), 1):
            if one == other:
                raise DataError(f"Pair {number} is the same text twice: {one[:60]!r}.")
            starts.append(_shared(one, other))
    kinds = [
        tuple(
            _cut(text, (starts[i] if pairs else 0) or _first_word(text), name, i + 1)
            for i, text in enumerate(texts)
        )
        for name, texts in (("positive", positive), ("negative", negative))
    ]
    return Contrast(kinds[0], kinds[1])


def read_contrast(positive: str | os.PathLike[str], negative: str | os.PathLike[str]) -> Contrast:
    """The contrast of two files, of texts or of records with a prompt and an answer.

    Raises:
        DataError: a file is missing, empty or unreadable; one holds texts and the other records.
    """
    kinds = [_read(Path(positive)), _read(Path(negative))]
    if all(isinstance(kind[0], str) for kind in kinds):
        return contrast_of(*kinds)  # type: ignore[arg-type]
    if any(isinstance(kind[0], str) for kind in kinds):
        raise DataError(
            f"One of {positive} and {negative} holds plain texts and the other records; give two "
            "of the same form."
        )
    return Contrast(tuple(kinds[0]), tuple(kinds[1]))  # type: ignore[arg-type]


def read_pairs(path: str | os.PathLike[str]) -> Contrast:
    """The contrast of a file of pairs: records with a prompt, a positive and a negative answer.

    Raises:
        DataError: the file is missing, empty or unreadable, or a record lacks a field.
    """
    positive, negative = [], []
    for where, record in _records(Path(path)):
        prompt = Prompt(_field(record, PROMPTS, where))
        positive.append(Example(prompt, _field(record, POSITIVE, where)))
        negative.append(Example(prompt, _field(record, NEGATIVE, where)))
    return Contrast(tuple(positive), tuple(negative), paired=True)


def read_texts(path: str | os.PathLike[str]) -> list[str]:
    """The texts of a file, one per line; of records the prompts.

    Raises:
        DataError: the file is missing, empty or unreadable.
    """
    return [item if isinstance(item, str) else item.prompt.text for item in _read(Path(path), ())]


def _read(path: Path, answers: Sequence[str] = ANSWERS) -> list[str] | list[Example]:
    if path.suffix.lower() not in TEXTS:
        return [
            Example(
                Prompt(_field(record, PROMPTS, where)),
                _field(record, answers, where) if answers else "",
            )
            for where, record in _records(path)
        ]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{str(path)!r} cannot be read as a file of texts: {reason}.") from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty; it holds one text per line.")
    return lines


def _records(path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    records = Records(path)
    for record in records:
        where = f"{path}, {records.place(record)}"
        if not isinstance(record.value, Mapping):
            raise DataError(f"{where}: a record is an object, not {record.value!r:.60}.")
        yield where, record.value


def _field(record: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    value = next((record[name] for name in names if name in record), None)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{where}: it needs a text under {' or '.join(map(repr, names))}. Fields: "
            f"{', '.join(map(str, record))}."
        )
    return value.strip()


def _shared(one: str, other: str) -> int:
    """Where two texts part, at the blank before the first word that differs; 0: they share none."""
    pairs = enumerate(zip(one, other, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
    return max(one.rfind(" ", 0, same), 0)


def _first_word(text: str) -> int:
    return max(text.find(" "), 0)


def _cut(text: str, at: int, kind: str, number: int) -> Example:
    if not at or not text[at:].strip():
        raise DataError(
            f"The {kind} text {number} is {text[:60]!r}: a text needs two words at least, a "
            "beginning that is not read and something behind it that shows what is meant."
        )
    return Example(Prompt(text[:at], raw=True), text[at:])


def with_prefix(example: Example, prefix: str) -> Example:
    """The same text with another in front of its prompt."""
    return replace(example, prompt=example.prompt.with_text(f"{prefix}\n{example.prompt.text}"))
