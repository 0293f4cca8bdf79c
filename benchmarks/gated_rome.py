"""GatedROME among the subjects of many other edits: what a full codebook does to its answers.

Edits of GatedROME meet in one place alone, the gate: a token may be nearer to another subject's key
than to its own, or near to one where no subject stands. So the codebook of a sequence that was
measured (``lifelong.py run one-by-one --methods GatedROME``) is filled up with entries of other
subjects, with their own keys and the searched vectors of the sequence in turn, and asked again:

    python benchmarks/gated_rome.py RUN --data counterfact_500.json --count 100 \\
        --others counterfact_500.json zsre.json --sizes 100 500 1000

RUN is the folder of that run. Each row is added to ``benchmarks/results/gated_rome.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from easyeditor.bench.observations import joined
from easyeditor.bench.run_dir import write_whole
from easyeditor.data.open import open_dataset
from easyeditor.editors.metric_recorder import CaseSummary
from easyeditor.edits import Edit
from easyeditor.evaluate.aggregate import summary
from easyeditor.evaluate.presets import preset
from easyeditor.evaluate.query import EvalOptions, observe
from easyeditor.methods.gated_rome.codebook import SubjectCodebook
from easyeditor.methods.gated_rome.gated_rome import GatedROME, GatedROMEHyperParams
from easyeditor.patches.files import load_patch
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.stack import applied
from lifelong import ANSWER_TOKENS, ASKED_TOKENS
from lifelong_rows import ROOT, estimates
from lifelong_targets import REWORDED, Target, embedded

RESULTS = ROOT / "benchmarks" / "results" / "gated_rome.json"


def other_edits(files: Sequence[str], known: set[str], n: int) -> list[Edit]:
    """``n`` edits of subjects that none before has."""
    found: list[Edit] = []
    for case in (case for file in files for case in open_dataset(file)):
        subject = (case.edit.subject or "").strip().casefold()
        if subject and subject not in known and len(found) < n:
            known.add(subject)
            found.append(case.edit)
    return found


def entries(target: Target, values: torch.Tensor, edits: Sequence[Edit]) -> list[SubjectCodebook]:
    """One codebook per edit: its own keys, a vector of ``values`` in turn."""
    settings = target.settings("GatedROME", 0)
    assert isinstance(settings, GatedROMEHyperParams)
    drafts = GatedROME(settings).drafts(target.lm, edits)
    return [draft.codebook(values[i % len(values)]) for i, draft in enumerate(drafts)]


def measured(target: Target, before: Path, patch: ModulePatch) -> dict[str, Any]:
    """The row of one codebook."""
    evaluation = preset(target.preset)
    options = EvalOptions(ANSWER_TOKENS, asked_tokens=ASKED_TOKENS, heldout=target.heldout)
    measures = evaluation.options(options)
    cases = evaluation.cases(target.lm, target.cases)
    lines = [json.loads(line) for line in before.read_text(encoding="utf-8").splitlines()]
    summaries = CaseSummary(cases, measures, joined(lines))
    with applied(target.lm.model, patch):
        after = observe(target.lm, cases, measures)
    numbers = summary([summaries.of(case, after) for case in cases])
    return {
        "scores": estimates(numbers),
        **target.elsewhere.of(patch),
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--others", nargs="+", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000])
    parser.add_argument("--able", type=Path, help="as of lifelong.py")
    parser.add_argument("--preset", default="wild", help="classic for a run with rewordings")
    given = parser.parse_args()
    target = embedded(given.data, given.count, able=given.able)
    target = replace(target, preset=given.preset)
    reworded = REWORDED if given.run.name.endswith(REWORDED) else ""
    newest = sorted(
        p for p in given.run.glob("GatedROME*/total-*.safetensors") if ".state" not in p.name
    )[-1]
    patch = load_patch(newest)
    assert isinstance(patch, ModulePatch)
    ((path, adapters),) = patch.adapters.items()
    codebook = SubjectCodebook.merge([a for a in adapters if isinstance(a, SubjectCodebook)])
    known = {str(case.edit.subject).strip().casefold() for case in target.cases}
    values = codebook.get_buffer("values")
    assert min(given.sizes) >= len(values), f"the run alone has {len(values)} edits"
    others = other_edits(given.others, known, max(given.sizes) - len(values))
    filled = entries(target, values, others)
    for size in given.sizes:
        began = time.perf_counter()
        whole = SubjectCodebook.merge([codebook, *filled[: size - len(values)]])
        crowded = ModulePatch({path: (whole.eval(),)}, patch.info)
        row = measured(target, given.run / "before.jsonl", crowded)
        row["keys"] = len(whole.get_buffer("keys"))
        stored = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        key = f"{target.data}|{given.count}|{len(whole.get_buffer('values'))}{reworded}"
        write_whole(RESULTS, json.dumps(stored | {key: row}, indent=1) + "\n")
        print(f"{key}: {time.perf_counter() - began:.0f} s {row}", flush=True)


if __name__ == "__main__":
    main()
