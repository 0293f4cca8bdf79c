"""Scores of each method on facts the embedded model knows (``tests/facts.json``), with case ids.

    python benchmarks/quality.py [--facts 40] [--set ROME.v_stop_nll=0.05]...

ROME and FT edit one fact at a time from the original weights; MEMIT makes all edits in one batch.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import yaml

import common

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from easyeditor.editors.base import BaseEditor
from easyeditor.evaluate.aggregate import averages
from easyeditor.lm.loading import load
from easyeditor.methods import METHODS
from test_quality import case_of


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--facts", type=int, default=40)
    parser.add_argument("--methods", default="ROME,MEMIT,FT")
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    file = Path(__file__).parent.parent / "tests" / "facts.json"
    cases = [case_of(fact) for fact in json.loads(file.read_text())[: args.facts]]
    lm = load("smollm2-135m", device="cpu")
    told: dict[str, object] = {"cases": [case.id for case in cases]}
    for name in args.methods.split(","):
        kind = METHODS.get(name)
        changes = {
            key.partition(".")[2]: yaml.safe_load(value)
            for key, _, value in (item.partition("=") for item in args.set)
            if key.startswith(f"{name}.")
        }
        editor = BaseEditor(lm, kind.hyperparams_class.preset("smollm2-135m", **changes))
        batch = name == "MEMIT"
        start = time.perf_counter()
        result = editor.edit_cases(
            cases,
            keep_original_weight=True,
            verbose=False,
            batch=batch,
            evaluate_when="end" if batch else "each",
        )
        told[name] = {
            "settings": editor.hparams.model_dump(mode="json"),
            "seconds": time.perf_counter() - start,
            "not_taken": [m["case_id"] for m in result.metrics if m["post"]["rewrite_acc"] < 1],
            **averages(result.metrics),
        }
        print(name, json.dumps({**told[name], "settings": changes}), flush=True)  # type: ignore[dict-item]
    if not args.set:
        common.write("quality", told)


if __name__ == "__main__":
    main()
