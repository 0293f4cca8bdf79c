"""Whether a new edit contradicts edits that are active, found before the model is touched.

Facts are compared by their texts: two are the same fact when a prompt or a rewording of one is a
prompt or a rewording of the other, whatever its capitals, accents' encoding and blanks. An edit
that breaks another one in the model alone is found by scoring (:mod:`easyeditor.ledger.health`).
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from easyeditor.edits import Case, Edit, Prompt
from easyeditor.ledger.entries import Entry
from easyeditor.subjects import locate_subject


class Problem(str, Enum):
    """What may be wrong with a new edit; each can be allowed."""

    DUPLICATE = "duplicate"
    CONTRADICTION = "contradiction"
    CIRCLE = "circle"
    UNTAKEN = "untaken"
    BROKEN = "broken"
    HEALTH = "health"

    def __str__(self) -> str:
        return self.value


SAME_FACT = (Problem.DUPLICATE, Problem.CONTRADICTION)
"""What an edit resolves by taking the place of the other."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """One reason not to make an edit.

    Attributes:
        problem: its kind.
        entries: numbers of the entries it conflicts with.
        message: what conflicts, and the ways out.
    """

    problem: Problem
    entries: tuple[int, ...]
    message: str


def conflicts_with(cases: Sequence[Case], active: Iterable[Entry]) -> list[Conflict]:
    """The conflicts of ``cases`` with the edits of ``active``: duplicates first, circles last."""
    entries = list(active)
    known: dict[str, list[tuple[Entry, Edit]]] = defaultdict(list)
    for entry in entries:
        for case in entry.cases:
            for edit in case.edits:
                for question in _questions(case, edit):
                    known[question].append((entry, edit))
    result: dict[tuple[Problem, int, str], Conflict] = {}
    for case in cases:
        for edit in case.edits:
            for question in _questions(case, edit):
                for entry, other in known[question]:
                    conflict = _same_fact(edit, other, entry)
                    result[conflict.problem, entry.number, str(edit.prompt)] = conflict
    order = list(Problem)
    same = sorted(result.values(), key=lambda c: (order.index(c.problem), c.entries))
    return [*same, *_circles(cases, entries)]


def comparable(text: str) -> str:
    """The text without differences that do not make another fact: case, form, blanks, the dot."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).rstrip(" .")


def _question(prompt: Prompt) -> str:
    images = " ".join(image.sha256 for image in prompt.images)
    return "\0".join((comparable(prompt.text), prompt.system or "", images))


def _questions(case: Case, edit: Edit) -> list[str]:
    prompts = [edit.prompt]
    if edit is case.edit:
        prompts += [probe.prompt for probe in case.probes if probe.group == "rephrase"]
    return list(dict.fromkeys(map(_question, prompts)))


def _same_fact(edit: Edit, other: Edit, entry: Entry) -> Conflict:
    number, text = entry.number, f"{str(edit.prompt)!r} → {edit.target!r}"
    if comparable(edit.target) == comparable(other.target):
        return Conflict(
            Problem.DUPLICATE,
            (number,),
            f"{text} is there already: edit {number} by {entry.author} of {entry.created}. If it "
            "does not hold any more (easyedit ledger check), make it anew in its place with "
            "--supersede (supersede=True).",
        )
    return Conflict(
        Problem.CONTRADICTION,
        (number,),
        f"{text} contradicts edit {number} by {entry.author} of {entry.created}, which says "
        f"{other.target!r}. Put it in that one's place with --supersede (supersede=True), or undo "
        f"that one first (easyedit ledger undo LEDGER {number}).",
    )


@dataclass(frozen=True, slots=True)
class _Step:
    """One edit as a step of a multi-hop question: from its subject to its target."""

    entry: Entry | None
    edit: Edit

    def __str__(self) -> str:
        which = "this edit" if self.entry is None else f"edit {self.entry.number}"
        return f"{self.edit.subject} → {self.edit.target} ({which})"


def _circles(cases: Sequence[Case], entries: Sequence[Entry]) -> list[Conflict]:
    """Chains of edits that lead from a new edit's target back to its subject, each circle once.

    A chain may go over other new edits. Never over the edit itself: it would begin where the
    chain ends.
    """
    new = [_Step(None, edit) for case in cases for edit in case.edits]
    steps: dict[str, list[_Step]] = defaultdict(list)
    for step in [*(_Step(entry, edit) for entry in entries for edit in entry.edits), *new]:
        if (subject := step.edit.subject_words) is not None:
            steps[_name(subject)].append(step)
    result: dict[frozenset[int], Conflict] = {}
    for first in new:
        subject, target = first.edit.subject_words, _name(first.edit.target)
        if subject is None or _name(subject) == target:
            continue
        chain = _way(steps, target, _name(subject))
        if chain:
            circle = [first, *chain]
            numbers = tuple(sorted({step.entry.number for step in chain if step.entry}))
            conflict = Conflict(Problem.CIRCLE, numbers, _circle_message(circle, numbers))
            result.setdefault(frozenset(map(id, circle)), conflict)
    return list(result.values())


def _way(steps: dict[str, list[_Step]], start: str, end: str) -> list[_Step]:
    """The shortest chain of steps from ``start`` to ``end``; empty where there is none."""
    chains: deque[tuple[str, list[_Step]]] = deque([(start, [])])
    visited = {start}
    while chains:
        place, chain = chains.popleft()
        for step in steps.get(place, ()):
            target = _name(step.edit.target)
            if target == end:
                return [*chain, step]
            if target not in visited:
                visited.add(target)
                chains.append((target, [*chain, step]))
    return []


def _circle_message(chain: Sequence[_Step], numbers: Sequence[int]) -> str:
    relations = {_relation(step.edit) for step in chain}
    undo = f"undo {' or '.join(f'edit {number}' for number in numbers)} first"
    alike = (
        "All say it in the same words, so at most one direction is true: "
        f"{undo if numbers else 'leave one of them out'}"
        if len(relations) == 1
        else "They say different things; if one is meant as the reverse of the other, let it pass"
    )
    return (
        f"The edits lead in a circle: {', '.join(map(str, chain))}. A question over several of "
        f"them comes back to where it began. {alike} (--allow circle, allow=['circle'], lets it "
        "pass)."
    )


def _relation(edit: Edit) -> str:
    """The prompt with a gap for its subject."""
    assert edit.subject is not None
    span = locate_subject(edit.prompt.text, edit.subject)
    text = f"{edit.prompt.text[: span.start]}\0{edit.prompt.text[span.end :]}"
    return comparable(text)


def _name(text: str) -> str:
    """A subject or a target as it is compared: without the article that opens it."""
    return re.sub(r"^(the|a|an) ", "", comparable(text))
