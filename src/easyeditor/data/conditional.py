"""Conditional tests as records of a plain file, and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from easyeditor.data.fields import Fields
from easyeditor.edits import ConditionalTest, Probe, Prompt
from easyeditor.errors import DataError


def question(
    name: str, prompt: Prompt | str, answers: Iterable[Iterable[str]]
) -> tuple[Probe, ...]:
    """One probe per answer, each with its aliases; blank ones are left out, so there may be none.

    Args:
        name: of the test.
        prompt: what is asked.
        answers: every one must be given; each a list of aliases.
    """
    return tuple(
        item
        for aliases in answers
        for item in _probe(name, prompt, tuple(dict.fromkeys(a for a in aliases if a.strip())))
    )


def _probe(name: str, prompt: Prompt | str, aliases: tuple[str, ...]) -> list[Probe]:
    return [Probe(prompt, aliases, f"conditional/{name}")] if aliases else []


def record_of(test: ConditionalTest) -> dict[str, Any]:
    """A test as JSON types; :func:`tests_of` reads it."""
    return {
        "name": test.name,
        "questions": [_record(item) for item in test.questions],
        "conditions": [_record(item) for item in test.conditions],
        "any": test.any,
    }


def _record(probes: tuple[Probe, ...]) -> dict[str, Any]:
    prompt = probes[0].prompt.to_json()
    return {"prompt": prompt, "answers": [list(item.answers) for item in probes]}


def tests_of(record: Fields) -> list[ConditionalTest]:
    """The field ``tests`` of a record: ``{"name", "questions", "conditions", "any"}`` each.

    A question or condition is ``{"prompt", "answers"}``, its answers lists of aliases.

    Raises:
        DataError: a field is missing or of another kind, or a test asks nothing.
    """
    tests = []
    for item in record.objects("tests"):
        name, enough = item.text("name"), item.raw.get("any", True)
        if not isinstance(enough, bool):
            raise DataError(f"{item.path('any')} must be true or false, not {enough!r}.")
        questions = _questions(name, item, "questions")
        if not questions:
            raise DataError(f"{item.path('questions')} must list at least one question.")
        tests.append(ConditionalTest(name, questions, _questions(name, item, "conditions"), enough))
    return tests


def _questions(name: str, item: Fields, field: str) -> tuple[tuple[Probe, ...], ...]:
    result = []
    for row in item.objects(field):
        _, prompt = row.get("prompt")
        path, answers = row.get("answers")
        if not isinstance(answers, list):
            raise DataError(f"{path} must be a list of lists of aliases.")
        lists = [[text] if isinstance(text, str) else text for text in answers]
        probes = question(name, prompt, lists)
        if not probes:
            raise DataError(f"{path} must hold at least one answer.")
        result.append(probes)
    return tuple(result)
