"""The metrics of one case, from what the model said before and after (METHODS: "Scores").

Accuracies are shares of target tokens that are the argmax under teacher forcing; probabilities are
geometric means per token. Teacher forcing overstates what free generation will say
(arXiv 2502.11177): read these numbers as what they are, and ``generation`` beside them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from easyeditor.edits import Case, Probe, Prompt
from easyeditor.evaluate.generation_metrics import (
    Consistency,
    contains,
    equals,
    natural_answer,
    ngram_entropy,
)
from easyeditor.evaluate.query import Measures, Replies, open_prompts


def _mean(values: Iterable[float]) -> float:
    kept = list(values)
    return sum(kept) / len(kept)


def _probability(seen: Replies, prompt: Prompt, answer: str | None) -> float | None:
    return math.exp(seen[prompt, answer].mean_logprob) if answer else None


def _compare(seen: Replies, pairs: Iterable[tuple[Prompt, str, str]]) -> dict[str, float]:
    """Share of ``(prompt, winner, loser)`` with P(winner) > P(loser), and the mean difference."""
    gaps = [
        math.exp(seen[prompt, winner].mean_logprob) - math.exp(seen[prompt, loser].mean_logprob)
        for prompt, winner, loser in pairs
    ]
    return {"success": _mean(float(gap > 0) for gap in gaps), "diff": _mean(gaps)} if gaps else {}


def by_name(case: Case, group: str) -> dict[str, list[Probe]]:
    """The case's probes of one group, by the part of their kind after the slash."""
    found: dict[str, list[Probe]] = defaultdict(list)
    for probe in case.probes:
        if probe.group == group:
            found[probe.name or group].append(probe)
    return found


def summarise(
    case: Case,
    before: Replies,
    now: Replies,
    measures: Measures | None = None,
    consistency: Consistency | None = None,
) -> dict[str, Any]:
    """The ``pre`` (``now is before``) or ``post`` half of a classic metric dict.

    - ``rewrite_acc``, ``rephrase_acc``: token accuracy of the target on the prompt, the rephrases.
    - ``rewrite_prob``: probability of ``target_new`` and ``ground_truth`` on the prompt.
    - ``rewrite_success``, ``rephrase_success`` (efficacy and paraphrase score): share with
      P(new) > P(true), where the true answer is known; ``…_diff``: mean of P(new) − P(true).
    - ``locality``: per name ``<name>_acc``, the share of argmax tokens the edit left as they were
      (only after an edit: before it, it is 1 by definition), ``<name>_success`` (neighbourhood
      score), the share with P(true) > P(new), and ``<name>_diff``.
    - ``portability``: per name ``<name>_acc``, token accuracy on the reasoning prompts.
    - ``generation``, ``fluency``, ``consistency``, ``perplexity``: as far as they were measured.
    """
    edit = case.edit
    out: dict[str, Any] = {
        "rewrite_acc": _mean(now[own.prompt, own.target].accuracy for own in case.edits),
        "rewrite_prob": {
            "target_new": _probability(now, edit.prompt, edit.target),
            "ground_truth": _probability(now, edit.prompt, edit.ground_truth),
        },
    }
    rephrases = by_name(case, "rephrase").get("rephrase", [])
    if rephrases:
        out["rephrase_acc"] = _mean(now[p.prompt, p.answers[0]].accuracy for p in rephrases)
    if edit.ground_truth:
        for name, prompts in (
            ("rewrite", [edit.prompt]),
            ("rephrase", [p.prompt for p in rephrases]),
        ):
            rivals = [(prompt, edit.target, edit.ground_truth) for prompt in prompts]
            out |= {f"{name}_{k}": v for k, v in _compare(now, rivals).items()}
    out["locality"] = {}
    for name, probes in by_name(case, "locality").items():
        if now is not before:
            out["locality"][f"{name}_acc"] = _mean(_unchanged(before, now, p) for p in probes)
        # A neighbour whose true answer is the new target has no rival to be compared with.
        rivals = [
            (p.prompt, p.answers[0], edit.target)
            for p in probes
            if p.answers[0].strip() != edit.target.strip()
        ]
        out["locality"] |= {f"{name}_{k}": v for k, v in _compare(now, rivals).items()}
    out["portability"] = {
        f"{name}_acc": _mean(now[p.prompt, p.answers[0]].accuracy for p in probes)
        for name, probes in by_name(case, "portability").items()
    }
    if now.answers:
        out["generation"] = _generation(case, now)
    if now.continuations:
        written = [now.continuations[p] for p in open_prompts(case, measures or Measures())]
        out["fluency"] = _mean(ngram_entropy(text) for text in written)
        if consistency is not None and case.references:
            out["consistency"] = consistency(written, case.references)
    if now.perplexity is not None:
        out["perplexity"] = now.perplexity
    return out


def _generation(case: Case, now: Replies) -> dict[str, float]:
    """Free answers up to where they end by themselves: do they hold, or are they, the answer?"""
    asked: dict[str, list[tuple[Prompt, tuple[str, ...]]]] = {
        "rewrite": [(case.edit.prompt, (case.edit.target,))],
        "rephrase": [(p.prompt, p.answers) for p in case.probes if p.group == "rephrase"],
        "portability": [(p.prompt, p.answers) for p in case.probes if p.group == "portability"],
    }
    out = {}
    for name, pairs in asked.items():
        told = [(natural_answer(now.answers[p], now.chat), accepted) for p, accepted in pairs]
        if told:
            out[f"{name}_acc"] = _mean(float(contains(text, wanted)) for text, wanted in told)
            out[f"{name}_exact"] = _mean(float(equals(text, wanted)) for text, wanted in told)
    return out


def _unchanged(before: Replies, now: Replies, probe: Probe) -> float:
    pair = (probe.prompt, probe.answers[0])
    old, new = before[pair].argmax, now[pair].argmax
    return _mean(float(a == b) for a, b in zip(old, new, strict=True))
