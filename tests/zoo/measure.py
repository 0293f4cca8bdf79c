"""How much of the world a model knows, and whether it reads what is told in the context."""

from __future__ import annotations

from collections.abc import Sequence

from easyeditor.edits import Case
from easyeditor.lm import LM
from easyeditor.lm.inference import score
from zoo import world

Pairs = Sequence[tuple[str, str]]


def right(lm: LM, pairs: Pairs) -> float:
    """Share of ``(prompt, answer)`` whose every answer token is the most probable one."""
    scores = score(lm, pairs)
    return sum(s.argmax == s.target for s in scores) / len(scores)


def told(cases: Sequence[Case], kind: str) -> list[tuple[str, str]]:
    """The probes of a kind, asked with the new fact in the context."""
    return [
        (world.in_context(case.edit, probe.prompt), probe.answers[0])
        for case in cases
        for probe in case.probes
        if probe.kind == kind
    ]


def report(lm: LM, every: int = 1) -> dict[str, float]:
    """Every share, on all of the world and of the eval split's cases, or on every n-th question."""
    cases = world.cases("eval")
    asked = {
        "facts_right": world.trained(),
        "held_out_right": world.held_out(),
        "context_followed": told(cases, "rephrase"),
        "context_hop": told(cases, "portability/one_hop"),
        "context_other_attribute_kept": told(cases, "locality/other_attribute"),
        "context_neighborhood_kept": told(cases, "locality/neighborhood"),
    }
    return {name: round(right(lm, pairs[::every]), 4) for name, pairs in asked.items()}
