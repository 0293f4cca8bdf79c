"""Answers to one case before and after an edit, as lines that are shown side by side."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from easyeditor.edits import Case, Prompt

if TYPE_CHECKING:
    from easyeditor.lm.forward.batching import TokenScores
    from easyeditor.lm.model import LM


def shown(prompt: Prompt) -> str:
    """A prompt for people: the names of its images, then its text."""
    names = [f"[{os.path.basename(image.path)}]" for image in prompt.images]
    return " ".join([*names, prompt.text])


def shown_apart(prompts: Iterable[Prompt]) -> dict[Prompt, str]:
    """:func:`shown` of every prompt; those that would look alike say in what they differ.

    A digest of the whole prompt stands behind each text that several of these prompts share, so
    that no two of them have one text; the trap: it depends on all of them.
    """
    distinct = list(dict.fromkeys(prompts))
    times = Counter(map(shown, distinct))
    return {
        prompt: shown(prompt)
        if times[shown(prompt)] == 1
        else f"{shown(prompt)} [{_digest(prompt)}]"
        for prompt in distinct
    }


def _digest(prompt: Prompt) -> str:
    value = prompt.to_json()
    if isinstance(value, dict) and prompt.images:
        value["images"] = [image.sha256 for image in prompt.images]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def compared(case: Case) -> list[tuple[str, Prompt, str, str | None]]:
    """``(kind, prompt, new answer, old answer)`` of every line that is shown of a case."""
    edit = case.edit
    rows = [("prompt", edit.prompt, edit.target, edit.ground_truth)]
    for probe in case.probes:
        if probe.group == "rephrase":
            rows.append(("rephrase", probe.prompt, edit.target, edit.ground_truth))
        elif probe.group == "locality":
            rows.append(("neighbour", probe.prompt, edit.target, probe.answers[0]))
        else:
            rows.append((probe.name or probe.group, probe.prompt, probe.answers[0], None))
    return rows


def snapshot(
    lm: LM, case: Case, *, max_new_tokens: int
) -> tuple[dict[tuple[Prompt, str], TokenScores], dict[Prompt, str]]:
    """Scores and free continuations of everything :func:`compared` names."""
    from easyeditor.lm.inference import generate, score

    rows = compared(case)
    pairs = list(dict.fromkeys((p, a) for _, p, new, old in rows for a in (new, old) if a))
    prompts = list(dict.fromkeys(p for _, p, _, _ in rows))
    scores = dict(zip(pairs, score(lm, pairs), strict=True))
    texts = dict(zip(prompts, generate(lm, prompts, max_new_tokens), strict=True))
    return scores, texts


def _probability(
    scores: Mapping[tuple[Prompt, str], TokenScores], prompt: Prompt, answer: str | None
) -> float | None:
    return math.exp(scores[prompt, answer].mean_logprob) if answer else None


def before_after(case: Case, before: Any, after: Any) -> list[dict[str, Any]]:
    """One dict per line of :func:`compared`, from two snapshots.

    ``kind``, ``prompt``, ``new``, ``old``, and ``before`` and ``after`` with ``p_new`` and
    ``p_old`` (geometric means per token; None without an old answer) and ``continuation``.
    """
    lines = []
    names = shown_apart(prompt for _, prompt, _, _ in compared(case))
    for kind, prompt, new, old in compared(case):
        line: dict[str, Any] = {"kind": kind, "prompt": names[prompt], "new": new, "old": old}
        for when, (scores, texts) in (("before", before), ("after", after)):
            line[when] = {
                "p_new": _probability(scores, prompt, new),
                "p_old": _probability(scores, prompt, old),
                "continuation": texts[prompt],
            }
        lines.append(line)
    return lines
