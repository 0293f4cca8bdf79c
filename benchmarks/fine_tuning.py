"""Fine-tuning methods side by side: each edit alone, and all of them in one batch.

Beside the teacher-forced scores, what the model *writes* after the edited prompt: ``begins`` is the
share of answers that begin with the target, ``stops`` of those that are the target and no more
(up to the end-of-sequence token, at most ``--tokens`` tokens; one full stop is allowed). Settings
are chosen on other records than those reported, hence ``--first``. An argument is a row:
``LABEL:METHOD setting=value …`` on top of the preset.

    python benchmarks/fine_tuning.py --data counterfact_500.json --cases 30 "FT-M:FT" "LoRA:LoRA"
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import common
from easyeditor import Case
from easyeditor.data.open import open_dataset
from easyeditor.evaluate.aggregate import averages, summary
from easyeditor.evaluate.metrics import summarise
from easyeditor.evaluate.query import observe, observe_each, texts_of
from easyeditor.evaluate.replies import EvalOptions, Replies
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.patches.patch import Patch
from easyeditor.patches.stack import applied

SCORES = ("S", "ES", "PS", "NS")


def written(cases: Sequence[Case], replies: Sequence[Replies], tokens: int) -> dict[str, float]:
    """Shares of the answers that begin with the target, and of those that are the target."""
    options = EvalOptions(answer_tokens=tokens)
    begins = stops = 0
    for case, reply in zip(cases, replies, strict=True):
        answers = texts_of(case, reply, options)["answers"]
        text = answers[str(case.edit.prompt)].strip().casefold()
        target = case.edit.target.strip().casefold()
        begins += text.startswith(target)
        stops += text.removesuffix(".").strip() == target.removesuffix(".")
    return {"begins": begins / len(cases), "stops": stops / len(cases)}


def scores(
    cases: Sequence[Case], before: Replies, after: Sequence[Replies], tokens: int
) -> dict[str, float]:
    """The row of one method."""
    metrics = [summarise(case, before, reply) for case, reply in zip(cases, after, strict=True)]
    mean: Mapping[str, Any] = averages([{"post": metric} for metric in metrics])["post"]
    result = {
        "rewrite": mean["rewrite_acc"],
        "rephrase": mean.get("rephrase_acc"),
        **written(cases, after, tokens),
    }
    for name, value in mean.get("locality", {}).items():
        if name.endswith("_acc"):
            result[f"locality/{name.removesuffix('_acc')}"] = value
    listed = summary(metrics)
    result |= {name: listed[name].value for name in SCORES if name in listed}
    return {name: round(float(value), 4) for name, value in result.items() if value is not None}


def numbers(patch: Patch) -> int:
    """How many numbers a patch of weights holds."""
    entries = getattr(patch, "entries", {})
    return sum(part.numbers for parts in entries.values() for part in parts)


def row(
    lm: LM, line: str, cases: Sequence[Case], tokens: int, halves: Sequence[str]
) -> dict[str, Any]:
    """One method's row: ``alone``, ``batch`` or both."""
    label, *words = line.split()
    changes = {k: yaml.safe_load(v) for k, v in (word.split("=", 1) for word in words)}
    label, _, name = label.partition(":")
    method_class = METHODS.get(name or label)
    settings = method_class.hyperparams_class.preset("smollm2-135m", **changes)
    method, options = method_class(settings), EvalOptions(answer_tokens=tokens)
    before = observe(lm, cases, options)
    result: dict[str, Any] = {"label": label, "changes": changes}
    if "alone" in halves:
        start = time.perf_counter()
        patches = [method.edit(lm, case.edits).patch for case in cases]
        seconds = (time.perf_counter() - start) / len(cases)
        measured = scores(cases, before, observe_each(lm, cases, patches, options), tokens)
        result["alone"] = {**measured, "seconds": round(seconds, 2)}
        result["kB"] = round(numbers(patches[0]) * 4 / 1024)
    if "batch" in halves:
        start = time.perf_counter()
        patch = method.edit(lm, [edit for case in cases for edit in case.edits]).patch
        seconds = (time.perf_counter() - start) / len(cases)
        with applied(lm.model, patch):
            measured = scores(cases, before, [observe(lm, cases, options)] * len(cases), tokens)
        result["batch"] = {**measured, "seconds": round(seconds, 2)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="worldfacts")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--name", default="fine_tuning")
    parser.add_argument("--halves", default="alone,batch")
    parser.add_argument("rows", nargs="+")
    args = parser.parse_args()
    lm = load("smollm2-135m", device="cpu")
    cases = list(open_dataset(args.data, size=args.first + args.cases))[args.first :]
    options = EvalOptions(answer_tokens=args.tokens)
    before = observe(lm, cases, options)
    unedited = scores(cases, before, [before] * len(cases), args.tokens)
    print(json.dumps({"label": "unedited", **unedited}), flush=True)
    rows = []
    for line in args.rows:
        rows.append(row(lm, line, cases, args.tokens, args.halves.split(",")))
        common.write(
            args.name,
            {
                "what": f"{Path(args.data).name}, records {args.first} to "
                f"{args.first + args.cases - 1}, smollm2-135m, float32",
                "ids": [case.id for case in cases],
                "unedited": unedited,
                "rows": rows,
            },
        )


if __name__ == "__main__":
    main()
