"""The metrics of one case, from what the model said before and after (METHODS: "Scores").

Accuracies are shares of target tokens that are the argmax under teacher forcing; probabilities are
geometric means per token. Teacher forcing overstates what free generation will say
(arXiv 2502.11177): read these numbers as what they are.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from easyeditor.edits import Case, Probe
from easyeditor.evaluate.observe import Observation


def _mean(values: Iterable[float]) -> float:
    kept = list(values)
    return sum(kept) / len(kept)


def _probability(seen: Observation, prompt: str, answer: str | None) -> float | None:
    return math.exp(seen[prompt, answer].mean_logprob) if answer else None


def _prefers(seen: Observation, prompt: str, winner: str, loser: str) -> float:
    return float(seen[prompt, winner].mean_logprob > seen[prompt, loser].mean_logprob)


def _by_name(case: Case, group: str) -> dict[str, list[Probe]]:
    found: dict[str, list[Probe]] = defaultdict(list)
    for probe in case.probes:
        if probe.group == group:
            found[probe.name or group].append(probe)
    return found


def summarise(case: Case, before: Observation, now: Observation) -> dict[str, Any]:
    """The ``pre`` (``now is before``) or ``post`` half of a classic metric dict.

    - ``rewrite_acc``, ``rephrase_acc``: token accuracy of the target on the prompt, the rephrases.
    - ``rewrite_prob``: probability of ``target_new`` and ``ground_truth`` on the prompt.
    - ``rewrite_success``, ``rephrase_success``: share with P(new) > P(true), where the true answer
      is known.
    - ``locality``: per name ``<name>_acc``, the share of argmax tokens the edit left as they were
      (only
      after an edit: before it, it is 1 by definition), and ``<name>_success``, the share with
      P(true) > P(new).
    - ``portability``: per name ``<name>_acc``, token accuracy on the reasoning prompts.
    """
    edit = case.edit
    out: dict[str, Any] = {
        "rewrite_acc": now[edit.prompt, edit.target].accuracy,
        "rewrite_prob": {
            "target_new": _probability(now, edit.prompt, edit.target),
            "ground_truth": _probability(now, edit.prompt, edit.ground_truth),
        },
    }
    if edit.ground_truth:
        out["rewrite_success"] = _prefers(now, edit.prompt, edit.target, edit.ground_truth)
    rephrases = _by_name(case, "rephrase").get("rephrase", [])
    if rephrases:
        out["rephrase_acc"] = _mean(now[p.prompt, edit.target].accuracy for p in rephrases)
        if edit.ground_truth:
            out["rephrase_success"] = _mean(
                _prefers(now, p.prompt, edit.target, edit.ground_truth) for p in rephrases
            )
    out["locality"] = {}
    for name, probes in _by_name(case, "locality").items():
        if now is not before:
            out["locality"][f"{name}_acc"] = _mean(
                _unchanged(before, now, probe) for probe in probes
            )
        # A neighbour whose true answer is the new target has no rival to be compared with.
        rivals = [p for p in probes if p.answers[0].strip() != edit.target.strip()]
        if rivals:
            out["locality"][f"{name}_success"] = _mean(
                _prefers(now, p.prompt, p.answers[0], edit.target) for p in rivals
            )
    out["portability"] = {
        f"{name}_acc": _mean(now[p.prompt, p.answers[0]].accuracy for p in probes)
        for name, probes in _by_name(case, "portability").items()
    }
    return out


def _unchanged(before: Observation, now: Observation, probe: Probe) -> float:
    pair = (probe.prompt, probe.answers[0])
    old, new = before[pair].argmax, now[pair].argmax
    return _mean(float(a == b) for a, b in zip(old, new, strict=True))
