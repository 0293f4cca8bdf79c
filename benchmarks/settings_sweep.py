"""What a change of a setting does to the scores: ROME one edit at a time, MEMIT one batch.

Settings are chosen on other cases than those they are reported on, hence ``--first``. Each argument
is one line of the table: changes of the preset, none for the preset itself.

    python benchmarks/settings_sweep.py --method rome --data counterfact.json --first 100 --cases 50
        --text wikipedia.jsonl --tokens 100000 "" "v_lr=0.2" "v_lr=0.2 v_num_grad_steps=60"
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import common
from easyeditor import Case
from easyeditor.data.open import open_dataset
from easyeditor.evaluate.aggregate import summary
from easyeditor.evaluate.metrics import summarise
from easyeditor.evaluate.query import Replies, observe, observe_each
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.methods.memit import MEMIT, MEMITHyperParams
from easyeditor.methods.rome import ROMEHyperParams
from easyeditor.patches.stack import applied
from layer_sweep import edited

SCORES = ("S", "ES", "PS", "NS", "rewrite_acc", "rephrase_acc")


def rome(lm: LM, cases: Sequence[Case], changes: dict[str, Any]) -> Sequence[Replies]:
    """Every case on the model that holds its edit alone."""
    settings = ROMEHyperParams.preset("smollm2-135m", **changes)
    return observe_each(lm, cases, edited(lm, cases, settings))


def memit(lm: LM, cases: Sequence[Case], changes: dict[str, Any]) -> Sequence[Replies]:
    """All cases on the model that holds all edits."""
    settings = MEMITHyperParams.preset("smollm2-135m", **changes)
    patch = MEMIT(settings).edit(lm, [case.edit for case in cases]).patch
    with applied(lm.model, patch):
        return [observe(lm, cases)] * len(cases)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", choices=["rome", "memit"], default="rome")
    parser.add_argument("--data", default="worldfacts")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--text", default="self")
    parser.add_argument("--tokens", type=int, default=None)
    parser.add_argument("changes", nargs="+")
    args = parser.parse_args()
    lm = load("smollm2-135m", device="cpu")
    cases = list(open_dataset(args.data, size=args.first + args.cases))[args.first :]
    before = observe(lm, cases)
    unedited = summary([summarise(case, before, before) for case in cases])["NS"].value
    rows = []
    for line in args.changes:
        changes = {k: yaml.safe_load(v) for k, v in (w.split("=", 1) for w in line.split())}
        given = {**changes, "mom2_dataset": args.text, "mom2_n_tokens": args.tokens}
        seen = {"rome": rome, "memit": memit}[args.method](lm, cases, given)
        found = summary([summarise(c, before, after) for c, after in zip(cases, seen, strict=True)])
        rows.append({"changes": line, **{name: round(found[name].value, 4) for name in SCORES}})
        print(rows[-1], flush=True)
    common.write(
        f"settings_sweep_{args.method}",
        {
            "what": f"changes of {args.method}'s preset, {Path(args.data).name}, "
            f"records {args.first} to {args.first + args.cases - 1}",
            "moments": Path(args.text).name,
            "moment_tokens": args.tokens,
            "unedited_NS": unedited,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
