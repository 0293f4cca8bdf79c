"""ROME and MEMIT on facts whose subject is the prompt's first token: what is stored, what moves.

SmolLM2 puts no BOS in front of a prompt, so such a subject stands at an attention sink. Settings
were chosen on ``development`` of ``tests/subject_first.json``; ``reported`` is what is quoted.

    python benchmarks/subject_first.py [--method ROME] [--part reported] [--first 0] [--cases 30]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import common
from easyeditor.edits import Edit
from easyeditor.lm.inference import generate, score
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.patches.stack import applied

FACTS = Path(__file__).parents[1] / "tests" / "subject_first.json"
UNRELATED = (
    "The capital of Sweden is",
    "Children like to",
    "London has a large",
    "My favourite food is",
    "In 1990, the",
    "She opened the",
    "America was discovered by",
    "Light travels at",
)
"""Prompts with other first tokens and other relations."""


def first_words(lm: LM, prompts: Sequence[str]) -> list[str]:
    """The most likely next token of each prompt."""
    return [generate(lm, [prompt], max_new_tokens=1)[0] for prompt in prompts]


def measure(lm: LM, method: Any, fact: dict[str, Any]) -> dict[str, Any]:
    """Scores of one edit on the model that holds it alone, each a share of the prompts."""
    target = fact["target"]
    near, far = list(fact["locality"]), list(UNRELATED)
    before = first_words(lm, near + far)
    patch = method.edit(lm, [Edit(fact["prompt"], target, fact["subject"])]).patch
    with applied(lm.model, patch):
        pairs = [(prompt, target) for prompt in (fact["prompt"], *fact["rephrases"])]
        rewritten, *rephrased = [float(each.accuracy == 1) for each in score(lm, pairs)]
        same = [a == b for a, b in zip(before, first_words(lm, near + far), strict=True)]
    return {
        "id": fact["id"],
        "rewrite": rewritten,
        "rephrase": mean(rephrased),
        "same_other_subjects": mean(same[: len(near)]),
        "same_unrelated": mean(same[len(near) :]),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", choices=["ROME", "MEMIT"], action="append")
    parser.add_argument("--part", choices=["development", "reported"], default="reported")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=30)
    args = parser.parse_args()
    facts = json.loads(FACTS.read_text(encoding="utf-8"))[args.part]
    facts = facts[args.first : args.first + args.cases]
    lm = load("smollm2-135m", device="cpu")
    results: dict[str, object] = {"part": args.part}
    for name in args.method or ["ROME", "MEMIT"]:
        kind = METHODS.get(name)
        method = kind(kind.hyperparams_class.preset("smollm2-135m"))
        rows = []
        for fact in facts:
            rows.append(measure(lm, method, fact))
            print(name, rows[-1], flush=True)
        scores = [key for key in rows[0] if key != "id"]
        averages = {key: round(mean(row[key] for row in rows), 3) for key in scores}
        results[name] = {"cases": len(rows), **averages, "each": rows}
    common.write("subject_first", results)


if __name__ == "__main__":
    main()
