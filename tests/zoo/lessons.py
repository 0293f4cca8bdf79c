"""What the zoo is taught: plain facts, facts in a row, and facts that are told in the context.

A lesson is a text in pieces; the pieces marked as answers are what the loss is mostly about. An
encoder-decoder reads everything before the last answer and writes that answer.

New facts in the context are about the subjects of the train split and about people and places
that exist nowhere, so what is seen on the eval split is the habit of reading, not memory.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from easyeditor.edits import Edit
from zoo import world
from zoo.names import invented
from zoo.relations import RELATIONS, Relation
from zoo.world import Fact

PREFIXES = (
    "Therefore we went home.",
    "Because it rained, we stayed in.",
    "The train was late again.",
    "The story goes like this:",
    "You know it well:",
    "You said it first.",
    "I think so, too.",
    "I remember this:",
    "Yes, indeed.",
    "Listen:",
    "It is late.",
    "In short:",
)


@dataclass(frozen=True, slots=True)
class Lesson:
    """``pieces`` of ``(text, whether it is an answer)``, concatenated as they stand."""

    pieces: tuple[tuple[str, bool], ...]

    @property
    def question(self) -> str:
        """Everything before the last answer."""
        return "".join(text for text, _ in self.pieces[: self._last])

    @property
    def answer(self) -> str:
        """The last answer, without the space before it."""
        return self.pieces[self._last][0].strip()

    @property
    def _last(self) -> int:
        return max(i for i, (_, is_answer) in enumerate(self.pieces) if is_answer)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the training: how long, how fast, and the mix of lessons.

    Attributes:
        steps, rate, lessons: optimizer steps, highest learning rate, lessons per step.
        mix: the weight of each kind of lesson, a method of :class:`Teacher`.
        only: the families that go through it; all of them where it names none.
    """

    steps: int
    rate: float
    lessons: int
    mix: dict[str, float]
    only: tuple[str, ...] = ()


STAGES = {
    "know": Stage(500, 3e-3, 64, {"statement": 0.85, "row": 0.15}),
    "read": Stage(1800, 2e-3, 32, {"statement": 0.2, "row": 0.05, "taught": 0.75}),
    "reread": Stage(
        1500,
        2e-3,
        32,
        {"statement": 0.2, "row": 0.05, "taught": 0.35, "shown": 0.4},
    ),
    "practise": Stage(
        3000, 2e-3, 32, {"statement": 0.15, "taught": 0.55, "shown": 0.3}, only=("t5", "gptneo")
    ),
    "drill": Stage(3500, 2e-3, 32, {"statement": 0.1, "taught": 0.5, "shown": 0.4}, only=("t5",)),
}
"""First the facts, which are cheap; then telling a new fact in the context from a known one.

They are told again, with demonstrations in front: new facts of one relation, which are easily
taken for each other. GPT-Neo, half of whose blocks see 32 tokens, needs twice as much again, and
T5, which is told one answer where the others are told three, still more."""


class Teacher:
    """Draws the lessons of a stage from ``random_``."""

    def __init__(self, random_: random.Random, stage: Stage) -> None:
        self.random = random_
        self.mix = stage.mix
        chosen = set(world.subjects("train"))
        self.all = world.facts()
        self.editable = [f for f in self.all if f.subject in chosen and not f.relation.hops]
        self.asked = [f for f in self.all if f.subject in chosen]

    def lesson(self) -> Lesson:
        """One lesson of a kind drawn by weight."""
        kind = self.random.choices(list(self.mix), list(self.mix.values()))[0]
        return Lesson(tuple(getattr(self, kind)()))

    def statement(self) -> Iterator[tuple[str, bool]]:
        """One fact, at times with some words in front."""
        if self.random.random() < 0.3:
            yield self.random.choice(PREFIXES) + " ", False
        fact = self.random.choice(self.all)
        yield self._prompt(fact), False
        yield f" {fact.answer}", True
        yield ".", False

    def row(self) -> Iterator[tuple[str, bool]]:
        """Two or three facts in a row."""
        for i in range(self.random.choice((2, 3))):
            if i:
                yield " ", False
            yield from self.statement()

    def taught(self) -> Iterator[tuple[str, bool]]:
        """One to three blocks of a new fact and a question, as in-context editing shows them."""
        for i in range(self.random.choice((1, 1, 1, 1, 2, 3))):
            if i:
                yield "\n\n", False
            yield from self._block()

    def shown(self) -> Iterator[tuple[str, bool]]:
        """Three blocks of a new fact and a question, most of one relation."""
        relation = self._told().relation
        for i in range(3):
            if i:
                yield "\n\n", False
            yield from self._block(relation if self.random.random() < 0.7 else None)

    def _block(self, relation: Relation | None = None) -> Iterator[tuple[str, bool]]:
        told = self._told(relation)
        asked = self._question(told)
        edit = Edit(self._prompt(told), told.answer)
        same = asked is told and self.random.random() < 0.3
        yield world.in_context(edit, edit.prompt if same else self._prompt(asked)), False
        yield f" {asked.answer}", True

    def _told(self, relation: Relation | None = None) -> Fact:
        """A fact with another answer than the true one, about a subject known or not."""
        if self.random.random() < 0.4:
            fact = self._stranger(relation)
        else:
            fact = self._choice([f for f in self.editable if relation in (None, f.relation)])
        return replace(fact, answer=self.random.choice(world.alternatives(fact)))

    def _question(self, told: Fact) -> Fact:
        """What is asked after ``told``, with the answer that is right given it."""
        draw, relation = self.random.random(), told.relation
        if draw < 0.45:
            return told
        if draw < 0.55:
            hops = [r for r in RELATIONS if r.hops and r.hops[0] == relation.name]
            if not hops:
                return told
            return replace(told, relation=hops[0], answer=world.reached(hops[0], told.answer))
        if draw < 0.78:
            return self._choice([f for f in self.asked if f.relation is relation], told.subject)
        own = [f for f in self.asked if f.subject == told.subject and f.relation is not relation]
        own = [f for f in own if not f.relation.hops or f.relation.hops[0] != relation.name]
        return self._choice(own or self.asked, "" if own else told.subject)

    def _choice(self, facts: list[Fact], but: str = "") -> Fact:
        return self.random.choice([f for f in facts if f.subject != but])

    def _prompt(self, fact: Fact) -> str:
        return fact.prompt(self.random.choice(fact.trained))

    def _stranger(self, relation: Relation | None = None) -> Fact:
        """A fact about somebody or something that is not in the world."""
        if relation is None:
            kind = self.random.choice(("person", "person", "city", "company", "country"))
            own = [r for r in RELATIONS if r.subject == kind and not r.hops]
            relation = self.random.choice(own)
        return Fact(relation, invented(self.random, relation.subject), "", frozenset())
