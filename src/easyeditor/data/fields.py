"""The fields of a record by name and type; errors name a field by its path in the record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from easyeditor.edits import Probe
from easyeditor.errors import DataError, SubjectNotFoundError, did_you_mean
from easyeditor.subjects import locate_subject


class Fields:
    """The named fields of a record or of an object inside one.

    Raises:
        DataError: ``value`` is not an object; each reader: the field is missing or of another
            kind.
    """

    def __init__(self, value: object, path: str = "") -> None:
        if not isinstance(value, Mapping):
            raise DataError(f"{path or 'a record'} must hold named fields, not {kind_of(value)}.")
        self.raw: Mapping[str, Any] = value
        self._path = path

    def __contains__(self, name: str) -> bool:
        """Whether the field is there and holds something."""
        return self.raw.get(name) not in (None, "", [], {})

    def path(self, name: object) -> str:
        """How the field is called in messages."""
        return f"{self._path}.{name}" if self._path else str(name)

    def get(self, *names: str) -> tuple[str, Any]:
        """``(path, value)`` of the first of these fields that is there."""
        for name in names:
            if self.raw.get(name) is not None:
                return self.path(name), self.raw[name]
        wanted = " or ".join(self.path(name) for name in names)
        present = ", ".join(map(str, self.raw)) or "nothing"
        raise DataError(
            f"{wanted} missing; there is {present}.{did_you_mean(names[0], map(str, self.raw))}"
        )

    def text(self, *names: str) -> str:
        """A text; given several names, the first that is there."""
        path, value = self.get(*names)
        if not isinstance(value, str):
            raise DataError(f"{path} must be text, not {kind_of(value)}.")
        return value

    def maybe(self, *names: str) -> str | None:
        """A text, or None where the field is absent, null or blank."""
        if all(self.raw.get(name) is None for name in names):
            return None
        text = self.text(*names)
        return text if text.strip() else None

    def target(self, name: str) -> str:
        """A text, also as ROME's ``{"str": text, "id": …}``, or the first of a list of texts."""
        path, value = self.get(name)
        return first_text(path, value)

    def texts(self, name: str) -> list[str]:
        """A list of texts (one text counts as one); empty where the field is absent."""
        if self.raw.get(name) is None:
            return []
        path, value = self.get(name)
        given = [value] if isinstance(value, str) else value
        if not isinstance(given, list):
            raise DataError(f"{path} must be a text or a list of texts, not {kind_of(value)}.")
        for i, item in enumerate(given):
            if not isinstance(item, str):
                raise DataError(f"{path}[{i}] must be text, not {kind_of(item)}.")
        return given

    def object(self, name: str) -> Fields:
        """An object inside the record."""
        path, value = self.get(name)
        return Fields(value, path)

    def objects(self, name: str) -> list[Fields]:
        """A list of objects; empty where the field is absent."""
        if self.raw.get(name) is None:
            return []
        path, value = self.get(name)
        if not isinstance(value, list):
            raise DataError(f"{path} must be a list of objects, not {kind_of(value)}.")
        return [Fields(item, f"{path}[{i}]") for i, item in enumerate(value)]

    def answers(self, name: str) -> tuple[str, ...]:
        """All accepted answers: a text, a list of them, or a list of lists of aliases.

        The first is the one that is scored; blanks are left out, so there may be none.
        """
        path, value = self.get(name)
        return tuple(dict.fromkeys(text for text in _flat(path, value) if text.strip()))


def first_text(path: str, value: Any) -> str:
    """The text of a target or ground truth: text, ``{"str": text}``, or the first of a list.

    Raises:
        DataError: it is none of these, or the list holds no text; ``path`` names it.
    """
    if isinstance(value, list) and value:
        answers = [text for text in _flat(path, value) if text.strip()]
        return answers[0] if answers else ""
    if isinstance(value, Mapping) and "str" in value:
        path, value = f"{path}.str", value["str"]
    if not isinstance(value, str):
        raise DataError(f"{path} must be text, or an object with 'str', not {kind_of(value)}.")
    return value


def _flat(path: str, value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for i, item in enumerate(value) for text in _flat(f"{path}[{i}]", item)]
    raise DataError(f"{path} must be a text or a list of texts, not {kind_of(value)}.")


def kind_of(value: object) -> str:
    """The type of a value for an error message, e.g. ``a number (5)``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"{str(value).lower()}"
    if isinstance(value, (int, float)):
        return f"a number ({value})"
    if isinstance(value, str):
        return f"text ({value!r:.60})"
    return "a list" if isinstance(value, list) else "an object"


def as_written(subject: str | None, prompt: str) -> str | None:
    """The subject as the prompt writes it; None where it does not occur."""
    try:
        return locate_subject(prompt, subject or "").written
    except SubjectNotFoundError:
        return None


def probe(kind: str, prompt: str, answers: tuple[str, ...]) -> list[Probe]:
    """One probe in a list; an empty list where there is no answer to score."""
    return [Probe(prompt, answers, kind)] if answers else []
