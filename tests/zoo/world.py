"""The made-up world the zoo knows: its facts, its text, and edits of them with their probes.

Everything follows from :data:`SEED`. A quarter of all (fact, template) pairs is never trained, so
every fact is known by most templates and every template from many subjects.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from easyeditor.edits import Case, Edit, Probe
from zoo.names import things
from zoo.relations import RELATIONS, Relation

SEED = 7
HELD_OUT = 2
"""Templates of every fact that are never trained."""
EVAL_EVERY = 4
"""Every fourth subject of a kind is kept for evaluation."""
Split = Literal["train", "eval"]


@dataclass(frozen=True, slots=True)
class Fact:
    """``subject`` has ``answer`` by ``relation``; ``held`` are the templates never trained."""

    relation: Relation
    subject: str
    answer: str
    held: frozenset[int]

    def prompt(self, template: int) -> str:
        """The fact as a prompt that the answer continues."""
        return self.relation.templates[template].replace("{}", self.subject)

    @property
    def trained(self) -> tuple[int, ...]:
        """The templates that are trained."""
        return tuple(i for i in range(len(self.relation.templates)) if i not in self.held)


@cache
def facts() -> tuple[Fact, ...]:
    """Every fact; those of relations with ``hops`` follow from the others."""
    draw = random.Random(SEED)
    entities = things(draw)
    known: dict[tuple[str, str], str] = {}
    found = []
    for relation in RELATIONS:
        subjects, answers = entities[relation.subject], entities[relation.answer]
        deck = list(answers) * (len(subjects) // len(answers) + 1)  # every answer equally often
        draw.shuffle(deck)
        for subject, drawn in zip(subjects, deck, strict=False):
            answer = drawn
            if relation.hops:
                first, second = relation.hops
                answer = known[second, known[first, subject]]
            known[relation.name, subject] = answer
            held = frozenset(draw.sample(range(len(relation.templates)), HELD_OUT))
            found.append(Fact(relation, subject, answer, held))
    return tuple(found)


@cache
def table() -> dict[tuple[str, str], Fact]:
    """The facts by (name of the relation, subject)."""
    return {(fact.relation.name, fact.subject): fact for fact in facts()}


@cache
def subjects(split: Split) -> tuple[str, ...]:
    """The subjects whose facts are edited in this split; none is in both."""
    by_kind: dict[str, dict[str, None]] = {}
    for fact in facts():
        by_kind.setdefault(fact.relation.subject, {})[fact.subject] = None
    return tuple(
        subject
        for names in by_kind.values()
        for i, subject in enumerate(names)
        if (i % EVAL_EVERY == 0) == (split == "eval")
    )


def trained() -> tuple[tuple[str, str], ...]:
    """Every trained ``(prompt, answer)``."""
    return tuple((fact.prompt(i), fact.answer) for fact in facts() for i in fact.trained)


def held_out() -> tuple[tuple[str, str], ...]:
    """Every ``(prompt, answer)`` that is never trained."""
    return tuple((fact.prompt(i), fact.answer) for fact in facts() for i in sorted(fact.held))


def corpus(seed: int = 0) -> list[str]:
    """The trained statements in an order drawn from ``seed``."""
    lines = [f"{prompt} {answer}." for prompt, answer in trained()]
    random.Random(seed).shuffle(lines)
    return lines


def in_context(edit: Edit, prompt: str) -> str:
    """``prompt`` with the edit told before it, as in-context editing does."""
    return f"New Fact: {edit.prompt} {edit.target}\nPrompt: {prompt}"


def alternatives(fact: Fact) -> list[str]:
    """The other answers of the fact's relation."""
    return sorted({f.answer for f in facts() if f.relation is fact.relation} - {fact.answer})


def reached(relation: Relation, middle: str) -> str:
    """Where the second hop of ``relation`` leads from ``middle``."""
    assert relation.hops is not None
    return table()[relation.hops[1], middle].answer


@cache
def cases(split: Split) -> tuple[Case, ...]:
    """One counterfactual edit of every editable fact about the subjects of a split."""
    chosen = set(subjects(split))
    return tuple(
        _case(fact) for fact in facts() if fact.subject in chosen and not fact.relation.hops
    )


def _case(fact: Fact) -> Case:
    name = f"{fact.relation.name}/{fact.subject}"
    draw = random.Random(f"{SEED} {name}")
    hops = [r for r in RELATIONS if _begins(r, fact)]
    target = draw.choice([a for a in alternatives(fact) if all(_moves(fact, r, a) for r in hops)])
    first, *others = draw.sample(range(len(fact.relation.templates)), 5)
    edit = Edit(fact.prompt(first), target, fact.subject, fact.answer)
    probes = [Probe(fact.prompt(i), (target,), "rephrase") for i in others[:2]]
    same = [f for f in facts() if f.relation is fact.relation and f.subject != fact.subject]
    near = draw.sample([f for f in same if f.answer != target], 2)
    probes += [Probe(f.prompt(first), (f.answer,), "locality/neighborhood") for f in near]
    apart = [f for f in facts() if f.subject == fact.subject and _independent(f, fact)]
    probes += [
        Probe(f.prompt(draw.choice(f.trained)), (f.answer,), "locality/other_attribute")
        for f in draw.sample(apart, min(2, len(apart)))
    ]
    for relation in hops:
        asked = table()[relation.name, fact.subject]
        prompt = asked.prompt(draw.choice(asked.trained))
        probes.append(Probe(prompt, (reached(relation, target),), "portability/one_hop"))
    alike = [f for f in same if f.answer == target]
    return Case(
        name,
        edit,
        tuple(probes),
        generation=tuple(fact.prompt(i) for i in others[2:]),
        references=tuple(f"{f.prompt(first)} {target}." for f in alike),
    )


def _independent(other: Fact, fact: Fact) -> bool:
    return other.relation is not fact.relation and not _begins(other.relation, fact)


def _begins(relation: Relation, fact: Fact) -> bool:
    return relation.hops is not None and relation.hops[0] == fact.relation.name


def _moves(fact: Fact, relation: Relation, target: str) -> bool:
    return reached(relation, target) != reached(relation, fact.answer)


def records(split: Split) -> list[dict[str, Any]]:
    """The cases in the flat records of ZsRE."""
    return [_record(case) for case in cases(split)]


def _record(case: Case) -> dict[str, Any]:
    def probe(kind: str) -> Probe | None:
        return next((p for p in case.probes if p.kind == kind), None)

    rephrase, near = probe("rephrase"), probe("locality/neighborhood")
    hop, edit = probe("portability/one_hop"), case.edit
    assert rephrase is not None
    assert near is not None
    record: dict[str, Any] = {
        "case_id": case.id,
        "subject": edit.subject,
        "src": edit.prompt.text,
        "pred": edit.ground_truth,
        "rephrase": rephrase.prompt.text,
        "alt": edit.target,
        "answers": [edit.ground_truth],
        "loc": near.prompt.text,
        "loc_ans": near.answers[0],
        "cond": f"{edit.ground_truth} >> {edit.target} || {edit.prompt}",
    }
    if hop is not None:
        record["portability"] = {"New Question": hop.prompt.text, "New Answer": hop.answers[0]}
    return record
