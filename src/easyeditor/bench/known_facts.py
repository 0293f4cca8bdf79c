"""Facts that a model itself knows, as edits with rewordings and neighbours.

Only what a model says can be changed in it, so settings are chosen on facts that it was asked for
and answered.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from easyeditor.data.open import open_dataset
from easyeditor.edits import Case, Edit, Probe
from easyeditor.errors import BenchError
from easyeditor.lm.inference import score
from easyeditor.lm.model import LM
from easyeditor.progress import bar

CASES_PER_PASS = 48
FEWEST = 4
"""Facts without which nothing can be chosen."""
NEIGHBOURS = 3
"""Prompts of other facts that stand for neighbours, where a case has none."""
NEIGHBOURHOOD = "locality/neighborhood"


def facts_known_by(
    lm: LM, n: int, cases: Iterable[Case] | None = None, *, seed: int = 0
) -> list[Case]:
    """Up to ``n`` cases whose present answer is the model's first choice, token by token.

    They come in an order drawn from ``seed``, so the first n and the next ones are disjoint
    samples. Each has a subject, a present answer, rewordings and neighbours as far as the file has
    them, and nothing else. Cases without neighbours get prompts of other cases instead.

    Args:
        lm: the model that is asked.
        n: how many at most.
        cases: where to look; by default ``worldfacts``, which ships with the package.
        seed: of the order.

    Raises:
        BenchError: the model knows fewer than four.
    """
    named = "the shipped facts" if cases is None else "the given facts"
    pool = [
        case
        for case in (open_dataset("worldfacts") if cases is None else cases)
        if case.edit.subject and case.edit.ground_truth
    ]
    random.Random(seed).shuffle(pool)
    usable = [_reduced(case, pool) for case in pool]
    known: list[Case] = []
    with bar(len(usable), "asking what the model knows", "fact") as progress:
        for start in range(0, len(usable), CASES_PER_PASS):
            known += _answered(lm, usable[start : start + CASES_PER_PASS])
            progress.update(len(usable[start : start + CASES_PER_PASS]))
            if len(known) >= n:
                break
    if len(known) < min(n, FEWEST):
        raise BenchError(
            f"{lm.name} answers {len(known)} of {named} ({len(pool)} have a subject and a present "
            f"answer), and a choice needs {FEWEST}. Give a file of edits whose ground_truth it "
            "knows: --edits FILE."
        )
    return known[:n]


def _answered(lm: LM, cases: Sequence[Case]) -> list[Case]:
    replies = score(lm, [(case.edit.prompt, str(case.edit.ground_truth)) for case in cases])
    return [case for case, reply in zip(cases, replies, strict=True) if reply.accuracy == 1]


def _reduced(case: Case, pool: Sequence[Case]) -> Case:
    """The case with the probes that the criterion reads, and no others."""
    near = [p for p in case.probes if p.group == "locality" and p.answers[0] != case.edit.target]
    near = [probe for probe in near if probe.kind == NEIGHBOURHOOD] or near
    if not near:
        others = [o.edit for o in pool if _apart(o.edit, case.edit)][:NEIGHBOURS]
        near = [Probe(o.prompt, (str(o.ground_truth),), NEIGHBOURHOOD) for o in others]
    rephrases = [probe for probe in case.probes if probe.group == "rephrase"]
    return Case(case.id, case.edit, (*rephrases, *near))


def _apart(other: Edit, edit: Edit) -> bool:
    return other.subject != edit.subject and other.ground_truth != edit.target
