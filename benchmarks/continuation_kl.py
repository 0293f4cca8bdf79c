"""What the divergence term behind the target does: text after an edit, and the price in scores.

ROME on facts of ``tests/facts.json``, each edited alone, in one search per setting. ``strong`` are
settings that leave a vector far larger than needed; ``preset`` are those of the embedded model and
``defaults`` those of a model without a preset. The factor was chosen on facts 40 to 49; facts 50 to
73 are reported.

    python benchmarks/continuation_kl.py [--facts 50:74] [--settings strong] [--factors 0,0.25]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import common

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from easyeditor import ROMEHyperParams
from easyeditor.edits import Case, Generate, Score
from easyeditor.evaluate.degeneration import FREE_TOKENS, examine
from easyeditor.lm.inference import continue_all, score
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.lm.sampling import greedy_tokens
from easyeditor.patches.batched import applied_per_row
from easyeditor.patches.stack import applied
from layer_sweep import edited
from test_quality import case_of

ALL = Path(__file__).parent.parent / "tests" / "facts.json"
SHORT = {"context_template_length_params": [[10, 2]]}
SETTINGS: dict[str, dict[str, Any]] = {
    "preset": {},
    "strong": SHORT | {"v_lr": 5.0, "clamp_norm_factor": 30.0, "v_weight_decay": 0.0,
                       "v_stop_nll": 0.001},
    "strong, short": {"context_template_length_params": [[10, 1]], "v_num_grad_steps": 10,
                      "v_lr": 5.0, "clamp_norm_factor": 30.0, "v_weight_decay": 0.0,
                      "v_stop_nll": 0.001},
    "strong, layer 12": SHORT | {"layers": [12], "v_lr": 5.0, "clamp_norm_factor": 30.0,
                                 "v_weight_decay": 0.0, "v_stop_nll": 0.001},
    "defaults": {"layers": [0.17], "v_num_grad_steps": 20, "v_weight_decay": 0.5,
                 "v_stop_nll": None, "context_template_length_params": [[5, 10], [10, 10]]},
}  # fmt: skip
READ = 8
"""Next-token distributions behind the target that are compared."""


def behind_target(lm: LM, rows: list[tuple[tuple[int, ...], int]]) -> list[torch.Tensor]:
    """Log-probabilities behind the target, for rows of ``(ids, position)``."""
    result = []
    with lm.at_rest(), torch.no_grad():
        for ids, start in rows:
            logits = lm.model(torch.tensor([ids], device=lm.device)).logits[0, start:]
            result.append(logits.float().log_softmax(-1))
    return result


def measure(lm: LM, cases: list[Case], settings: ROMEHyperParams) -> list[dict[str, Any]]:
    edits = [case.edit for case in cases]
    answers = [Generate(edit.prompt, FREE_TOKENS) for edit in edits]
    near = [[Generate(p.prompt, 1) for p in case.probes if p.group == "locality"] for case in cases]
    probes = [
        [Score(p.prompt, p.answers[0]) for p in case.probes if p.kind == "rephrase"]
        for case in cases
    ]
    queries = [query for case in near for query in case]
    of_near = [i for i, case in enumerate(near) for _ in case]
    wanted = [Score(edit.prompt, edit.target) for edit in edits]
    wanted += [query for case in probes for query in case]
    of_wanted = [*range(len(cases)), *(i for i, case in enumerate(probes) for _ in case)]
    rows = [lm.text.row(edit.prompt, edit.target) for edit in edits]
    following = greedy_tokens(lm, [row.ids for row in rows], READ - 1)
    read = [(row.ids + more, len(row.ids) - 1) for row, more in zip(rows, following, strict=True)]
    before, plain = continue_all(lm, answers, entropies=True), behind_target(lm, read)
    near_before = continue_all(lm, queries)
    patches = edited(lm, cases, settings)
    with applied_per_row(lm, patches):
        index = list(range(len(cases)))
        after = continue_all(lm, answers, patch_of_query=index, entropies=True)
        near_after = continue_all(lm, queries, patch_of_query=of_near)
        scores = score(lm, wanted, patch_of_query=of_wanted)
    result = []
    for i, case in enumerate(cases):
        with applied(lm.model, patches[i]):
            (now,) = behind_target(lm, [read[i]])
        kl = (plain[i].exp() * (plain[i] - now)).sum(-1)
        right = [s.accuracy == 1 for s, k in zip(scores, of_wanted, strict=True) if k == i]
        same = [
            a.ids == b.ids
            for a, b, k in zip(near_before, near_after, of_near, strict=True)
            if k == i
        ]
        answer = examine(lm, case.edit, before[i], after[i])
        result.append(
            {
                "id": case.id,
                "rewrite": float(right[0]),
                "rephrase": mean(right[1:]),
                "locality": mean(same),
                "kl": round(float(kl.mean()), 3),
                "faults": answer["faults"],
                "text": answer["text"],
            }
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--facts", default="50:74")
    parser.add_argument("--settings", action="append", choices=list(SETTINGS))
    parser.add_argument("--factors", default="0,0.25")
    parser.add_argument("--name", default="continuation_kl")
    args = parser.parse_args()
    first, end = map(int, args.facts.split(":"))
    cases = [case_of(fact) for fact in json.loads(ALL.read_text(encoding="utf-8"))[first:end]]
    lm = load("smollm2-135m", device="cpu")
    results: dict[str, Any] = {"case_ids": [case.id for case in cases]}
    for name in args.settings or ["strong", "preset"]:
        for factor in map(float, args.factors.split(",")):
            settings = ROMEHyperParams.preset(
                "smollm2-135m", **SETTINGS[name], continuation_kl_factor=factor
            ).resolved(lm.n_layers)
            rows = measure(lm, cases, settings)
            numbers = ("rewrite", "rephrase", "locality", "kl")
            averages = {key: round(mean(row[key] for row in rows), 3) for key in numbers}
            averages["flagged"] = round(mean(bool(row["faults"]) for row in rows), 3)
            results[f"{name}, factor {factor:g}"] = {**averages, "each": rows}
            print(name, factor, averages, flush=True)
            for row in rows:
                print(" ", row, flush=True)
    common.write(args.name, results)


if __name__ == "__main__":
    main()
