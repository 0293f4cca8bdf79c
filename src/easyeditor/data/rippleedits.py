"""RippleEdits: what must follow from an edit, and what must not."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from easyeditor.data.conditional import question
from easyeditor.data.dataset import CaseDataset, case_id
from easyeditor.data.fields import Fields, as_written, probe
from easyeditor.edits import Case, ConditionalTest, Edit, Probe
from easyeditor.errors import DataError

FOLLOWS = (
    "Logical_Generalization",
    "Compositionality_I",
    "Compositionality_II",
    "Subject_Aliasing",
)
STAYS = ("Relation_Specificity", "Forgetfulness")
# The paper's page spells one criterion differently from its files.
SPELLINGS = {"Relation_Specificity": ("Relation_Specificity", "Relation_Specifity")}
VERB = re.compile(r"^(.*\b(?:is followed by|follows|is|are))\s+(\S.*)$", re.DOTALL)
LINKS = {"of", "in", "which", "is", "are", "has", "follows"}


class RippleEditsDataset(CaseDataset):
    """RippleEdits (Cohen et al. 2024): six criteria on the ripples of an edit.

    ``edit.prompt`` is a whole sentence ("The gender of X is male."); the target is its end: what
    the queries that ask for the target of the edit say it is, else what stands after the last verb.
    The previous fact gives the ground truth. Logical_Generalization, Compositionality_I and _II and
    Subject_Aliasing become ``portability/…``, Relation_Specificity and Forgetfulness
    ``locality/…``; all values and aliases are accepted answers, and a query without any is left
    out. ``tests`` holds the same queries as the paper counts them: a test rests on its condition
    queries, and asks one or several test queries of which one (``OR``) or all (``AND``) must be
    answered, each with every one of its answers, under any alias.

    The trap: the files name the subject only by its Wikidata id. It is taken to be what the edit
    shares with other queries about the same id, and is None where there are none.

    Args:
        path: the file.
        size: use only the first so many records.
        config: stored as an attribute, not used.
        conditions: also ask the condition queries that are not about the edited fact, as
            ``locality/Condition``: what the model must know for a test to count.
    """

    name = "rippleedits"
    title = "RippleEdits: six criteria on what follows and what stays"
    probes = (
        *(f"portability/{name}" for name in FOLLOWS),
        *(f"locality/{name}" for name in STAYS),
        "locality/Condition",
    )

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: int | None = None,
        config: Any = None,
        *,
        conditions: bool = False,
    ) -> None:
        super().__init__(path, size, config)
        self.conditions = conditions

    @classmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """It has an ``edit`` that is an object."""
        return isinstance(record.get("edit"), Mapping)

    def case(self, record: Fields, index: int) -> Case:
        """One record as a case."""
        change = record.object("edit")
        tests = {name: _tests(record, name) for name in (*STAYS, *FOLLOWS)}
        queries = [
            q for name in tests for test in tests[name] for q in test.objects("test_queries")
        ]
        sentence = _sentence(change)
        prompt, target = _split(sentence, _own_targets(change, queries))
        truth = None
        for name in ("previous_fact", "original_fact"):
            if name in change:
                before = _sentence(change.object(name))
                truth = before.removeprefix(prompt).strip() if before.startswith(prompt) else None
        edit = Edit(prompt, target, _subject(change, prompt, queries), truth)
        probes: list[Probe] = []
        for name, group in tests.items():
            kind = f"{'locality' if name in STAYS else 'portability'}/{name}"
            queries = [query for test in group for query in test.objects("test_queries")]
            probes += [item for query in queries for item in _probe(kind, query)]
        if self.conditions:
            probes = _conditions(change, tests) + probes
        conditional = [
            item
            for name, group in tests.items()
            for test in group
            for item in _conditional(name, test)
        ]
        name = case_id(record.raw, index) or str(index)
        return Case(name, edit, tuple(probes), tests=conditional)


def _conditional(name: str, test: Fields) -> list[ConditionalTest]:
    """A test with its conditions in a list; an empty list where no query has an answer."""
    questions, conditions = (
        tuple(item for query in test.objects(field) if (item := _question(name, query)))
        for field in ("test_queries", "condition_queries")
    )
    if not questions:
        return []
    enough = test.maybe("test_condition") or "OR"
    if enough not in ("OR", "AND"):
        raise DataError(f"{test.path('test_condition')} must be 'OR' or 'AND', not {enough!r}.")
    return [ConditionalTest(name, questions, conditions, any=enough == "OR")]


def _question(name: str, query: Fields) -> tuple[Probe, ...]:
    answers = [(a.text("value"), *a.texts("aliases")) for a in query.objects("answers")]
    return question(name, query.text("prompt"), answers)


def _tests(record: Fields, name: str) -> list[Fields]:
    for spelling in SPELLINGS.get(name, (name,)):
        if spelling in record:
            return record.objects(spelling)
    return []


def _sentence(fact: Fields) -> str:
    return fact.text("prompt").strip().removesuffix(".")


def _answers(query: Fields) -> tuple[str, ...]:
    texts = [
        text
        for answer in query.objects("answers")
        for text in (answer.text("value"), *answer.texts("aliases"))
    ]
    return tuple(dict.fromkeys(text for text in texts if text.strip()))


def _probe(kind: str, query: Fields) -> list[Probe]:
    return probe(kind, query.text("prompt"), _answers(query))


def _about_edit(change: Fields, query: Fields) -> bool:
    return all(query.raw.get(key) == change.raw.get(key) for key in ("subject_id", "relation"))


def _own_targets(change: Fields, queries: list[Fields]) -> list[str]:
    """What the queries for the edited fact itself (under an alias, say) call its target."""
    wanted = [change.raw.get("target_id")]
    return [
        answer
        for query in queries
        if _about_edit(change, query) and query.raw.get("target_ids") == wanted
        for answer in _answers(query)[:1]
    ]


def _split(sentence: str, targets: list[str]) -> tuple[str, str]:
    for target in targets:
        if sentence.endswith(f" {target}"):
            return sentence.removesuffix(target).rstrip(), target
    match = VERB.match(sentence)
    if not match:
        raise DataError(
            f"edit.prompt must be a sentence that ends in its target, as in 'The gender of X is "
            f"male.'; it reads {sentence!r}."
        )
    return match[1], match[2]


def _subject(change: Fields, prompt: str, queries: list[Fields]) -> str | None:
    """What most queries about the same entity share with the prompt, beyond a common start."""
    votes: Counter[str] = Counter()
    words = prompt.split(" ")
    for query in queries:
        same = query.raw.get("subject_id") == change.raw.get("subject_id")
        # A query for the edited fact itself writes the subject under an alias.
        if same and not _about_edit(change, query):
            other = query.text("prompt").split(" ")
            start = 0
            while start < min(len(words), len(other)) and words[start] == other[start]:
                start += 1
            votes[_shared(words[start:], other[start:])] += 1
    del votes[""]
    best = max(votes, key=lambda text: (votes[text], -len(text)), default=None)
    return as_written(best, prompt)


def _shared(these: list[str], those: list[str]) -> str:
    """The longest run of words both hold, without the words that tie a subject in."""
    best: list[str] = []
    for i in range(len(these)):
        for j in range(len(those)):
            k = 0
            while i + k < len(these) and j + k < len(those) and these[i + k] == those[j + k]:
                k += 1
            if k > len(best):
                best = these[i : i + k]
    while best and best[0] in LINKS:
        best = best[1:]
    while best and best[-1] in LINKS:
        best = best[:-1]
    return " ".join(best)


def _conditions(change: Fields, tests: Mapping[str, list[Fields]]) -> list[Probe]:
    return list(
        dict.fromkeys(
            item
            for group in tests.values()
            for test in group
            for query in test.objects("condition_queries")
            if not _about_edit(change, query)
            for item in _probe("locality/Condition", query)
        )
    )
