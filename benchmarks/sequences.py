"""Edits one by one on the embedded model: what is left of them, and of everything else, at the end.

    python benchmarks/sequences.py ROME MEMIT "MEMIT protect_edits=true" AlphaEdit UltraEdit \
        --data counterfact_500.json --first 200 --count 100

Each row is one run of the cases in their order: rewrite and rephrase are shares of target tokens,
neighbours the share of their argmax tokens that are the unedited model's, all at the end. Seconds
are the median of one edit; the first and the last tenth show whether it grows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import yaml

import common
from easyeditor.data.open import open_dataset
from easyeditor.editors.session import EditSession
from easyeditor.edits import Case
from easyeditor.lm.inference import score
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS


def settings_of(text: str) -> tuple[str, dict[str, Any]]:
    """``"MEMIT layers=[3]"`` as the method's name and its changed settings."""
    name, *pairs = text.split()
    split = (pair.partition("=") for pair in pairs)
    return name, {key: yaml.safe_load(value) for key, _, value in split}


def shares(lm: LM, cases: Sequence[Case], unedited: Sequence[Any]) -> dict[str, float]:
    """Rewrite, rephrase and unchanged neighbours, each a mean over cases."""
    rewrite = [s.accuracy for s in score(lm, [(c.edit.prompt, c.edit.target) for c in cases])]
    rephrase = [
        statistics.mean(
            s.accuracy
            for s in score(lm, [(p.prompt, c.edit.target) for p in of_kind(c, "rephrase")])
        )
        for c in cases
    ]
    now = score(lm, neighbours(cases))
    same = [
        sum(a == b for a, b in zip(old.argmax, new.argmax, strict=True)) / len(new.argmax)
        for old, new in zip(unedited, now, strict=True)
    ]
    means = {"rewrite": rewrite, "rephrase": rephrase, "neighbours": same}
    return {name: round(100 * statistics.mean(values), 1) for name, values in means.items()}


def of_kind(case: Case, kind: str) -> list[Any]:
    """The probes of one group."""
    return [probe for probe in case.probes if probe.group == kind]


def neighbours(cases: Sequence[Case]) -> list[tuple[Any, str]]:
    """Every locality question with its answer."""
    return [
        (probe.prompt, answer)
        for case in cases
        for probe in of_kind(case, "locality")
        for answer in probe.answers[:1]
    ]


def run(lm: LM, text: str, cases: Sequence[Case], batch: int) -> dict[str, Any]:
    """One sequence."""
    name, changes = settings_of(text)
    kind = METHODS.get(name)
    method = kind(kind.hyperparams_class.for_model("smollm2-135m", **changes))
    unedited = score(lm, neighbours(cases))
    session = EditSession(lm, method)
    start = time.perf_counter()
    seconds, failed = [], []
    _ = session.state
    prepared = time.perf_counter() - start
    for i in range(0, len(cases), batch):
        chunk = cases[i : i + batch]
        attempt = session.attempt([case.edit for case in chunk], failures=True)
        seconds.append(attempt.seconds / len(chunk))
        failed += [case.id for case in chunk] if attempt.error else []
        session.keep(attempt)
    tenth = max(1, len(seconds) // 10)
    result = {
        "method": text,
        **shares(lm, cases, unedited),
        "seconds": round(statistics.median(seconds), 3),
        "last_over_first_tenth": round(
            statistics.median(seconds[-tenth:]) / statistics.median(seconds[:tenth]), 2
        ),
        "prepared": round(prepared, 1),
        "failed": failed,
    }
    session.put_back(None)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("methods", nargs="+", help="a method, with settings: 'MEMIT layers=[3]'")
    parser.add_argument("--data", required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    cases = list(open_dataset(args.data))[args.first : args.first + args.count]
    lm = load("smollm2-135m", device="cpu")
    rows = []
    for text in args.methods:
        rows.append(run(lm, text, cases, args.batch))
        print(json.dumps(rows[-1]), flush=True)
    if args.write:
        common.write(
            "sequences", {"cases": [case.id for case in cases], "batch": args.batch, "rows": rows}
        )


if __name__ == "__main__":
    main()
