"""ROME's layer against its scores: the trade-off that a preset is chosen from.

A layer needs a value search per case and the questions of every case on the model that holds only
its edit. Both are done for all cases together. The first cases are also edited and measured one at
a time, as a check.

    python benchmarks/layer_sweep.py --data counterfact.json [--cases 50] [--layers 1,3,5]
        [--text wikipedia.jsonl --tokens 100000] [--out docs/pictures]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
from easyeditor import BaseEditor, Case, ROMEHyperParams
from easyeditor.bench.drawing import png
from easyeditor.bench.plots import layer_plot
from easyeditor.data.open import open_dataset
from easyeditor.evaluate.aggregate import flatten, summary
from easyeditor.evaluate.bootstrap import Estimate
from easyeditor.evaluate.metrics import summarise
from easyeditor.evaluate.query import observe, observe_each
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.methods.rome import ROME
from easyeditor.patches.patch import Patch


def edited(lm: LM, cases: Sequence[Case], settings: ROMEHyperParams) -> list[Patch]:
    """The patch of every case, each from the unedited model; one search for all."""
    outcomes = ROME(settings.replace(memory_mb=512)).edit_each(lm, [case.edit for case in cases])
    return [outcome.patch for outcome in outcomes]


def check(lm: LM, cases: Sequence[Case], settings: ROMEHyperParams, fast: Sequence[Any]) -> float:
    """Largest difference of a metric from editing and measuring the cases one at a time."""
    editor = BaseEditor.from_pretrained(lm.model, lm.tokenizer, settings)
    alone = editor.edit_cases(cases, keep_original_weight=True, verbose=False).metrics
    pairs = [(flatten(m["post"]), flatten(f)) for m, f in zip(alone, fast, strict=False)]
    return max(abs(slow[name] - quick[name]) for slow, quick in pairs for name in slow)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="worldfacts")
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--layers", default="0,1,2,3,4,5,8,11,15,20,25")
    parser.add_argument("--text", default="self")
    parser.add_argument("--tokens", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    lm = load("smollm2-135m", device="cpu")
    cases = list(open_dataset(args.data, size=args.cases))
    before = observe(lm, cases)
    unedited = summary([summarise(case, before, before) for case in cases])
    points: dict[int, dict[str, Estimate]] = {}
    told = {}
    worst = 0.0
    for layer in (int(part) for part in args.layers.split(",")):
        settings = ROMEHyperParams.preset(
            "smollm2-135m", layers=[layer], mom2_dataset=args.text, mom2_n_tokens=args.tokens
        )
        seen = observe_each(lm, cases, edited(lm, cases, settings))
        metrics = [summarise(case, before, after) for case, after in zip(cases, seen, strict=True)]
        if not points:
            worst = check(lm, cases[:2], settings, metrics)
        points[layer] = summary(metrics)
        told[str(layer)] = {
            name: [round(points[layer][name].value, 4), points[layer][name].n]
            for name in ("S", "ES", "PS", "NS", "rewrite_acc", "rephrase_acc")
        }
        print(layer, told[str(layer)], flush=True)
    common.write(
        "layer_sweep",
        {
            "what": f"ROME's preset by layer, {len(cases)} cases of {Path(args.data).name}",
            "case_ids": [case.id for case in cases],
            "moments": Path(args.text).name,
            "moment_tokens": args.tokens,
            "unedited_NS": unedited["NS"].value,
            "worst_difference_from_one_at_a_time": worst,
            "layers": told,
        },
    )
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        picture = layer_plot(points, unedited=unedited)
        (args.out / "layers.png").write_bytes(png(picture))


if __name__ == "__main__":
    main()
