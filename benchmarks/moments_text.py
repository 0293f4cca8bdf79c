"""Which text the second moments come from: what it costs in seconds, and what it costs in scores.

ROME's preset for the embedded model with the moments of one text after another, each case edited
alone; the values are searched once, as they do not depend on the moments. Subjects that open a
prompt are edited without the prompt's other tokens. Resumable: rows that the results hold are not
measured again.

    python benchmarks/moments_text.py --data counterfact.json [--first 100 --cases 16] [--text FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import common
from easyeditor import ROMEHyperParams
from easyeditor.associative.keys import keys_at, subject_rows
from easyeditor.data.open import open_dataset
from easyeditor.evaluate.aggregate import summary
from easyeditor.evaluate.metrics import summarise
from easyeditor.evaluate.query import observe, observe_each
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.loading import load
from easyeditor.methods.locate import KeyMetrics
from easyeditor.methods.rome import solve_rank_one
from easyeditor.methods.value_search import values_of
from easyeditor.patches.weight import Part, weight_patch

SCORES = ("S", "ES", "PS", "NS", "rewrite_acc", "rephrase_acc")
LAYER = 3
WIDTHS = (4, 10)
"""Tokens in units of ``d_in``."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--first", type=int, default=100)
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--text", action="append", default=[])
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    out = args.out or Path(__file__).parent / "results" / "moments_text.json"
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    lm = load("smollm2-135m", device="cpu")
    cases = list(open_dataset(args.data, size=args.first + args.cases))[args.first :]
    before = observe(lm, cases)
    unedited = summary([summarise(case, before, before) for case in cases])["NS"].value
    d_in = lm.projection(LAYER).d_in
    wanted = [("self", 4), *(("shipped", n) for n in WIDTHS)]
    wanted += [(text, n) for text in args.text for n in WIDTHS[:1]]
    settings = ROMEHyperParams.preset("smollm2-135m")
    edits = [case.edit for case in cases]
    contexts = settings.contexts(lm)
    values = values_of(lm, Site(LAYER, "down"), edits, contexts, settings.replace(memory_mb=512))
    keys = [keys_at(lm, [LAYER], subject_rows(lm, edit, contexts))[LAYER].T for edit in edits]
    projection = lm.down_map(LAYER)
    for text, width in wanted:
        name = Path(text).name
        if any(row["text"] == name and row["tokens_per_d_in"] == width for row in rows):
            continue
        with tempfile.TemporaryDirectory() as folder:
            settings = settings.replace(
                mom2_dataset=text,
                mom2_n_tokens=width * d_in,
                stats_dir=None if text == "self" else folder,  # it is sampled for the preset, too
            )
            start = time.process_time()
            settings.second_moments(lm, [LAYER])
            seconds = time.process_time() - start
            metrics = KeyMetrics()
            metrics.prepare(lm, [LAYER], settings)
            metric = metrics.get(lm, LAYER, settings)
            patches = []
            for edit, of_edit, delta in zip(edits, keys, values.delta, strict=True):
                part = solve_rank_one(of_edit, delta, projection.weight, metric, settings)
                entries: dict[str, list[Part]] = {projection.path: [part]}
                patches.append(weight_patch(lm, "ROME", [edit], settings, entries, {}))
        replies = observe_each(lm, cases, patches)
        scores = summary(
            [summarise(case, before, after) for case, after in zip(cases, replies, strict=True)]
        )
        row = {"text": name, "tokens_per_d_in": width, "cpu_seconds": round(seconds, 1)}
        rows.append(row | {name: round(scores[name].value, 4) for name in SCORES})
        results = {
            "what": f"ROME's preset, layer 3, moments of several texts, {Path(args.data).name}, "
            f"records {args.first} to {args.first + args.cases - 1}",
            "unedited_NS": unedited,
            "rows": rows,
        }
        if args.out is None:
            common.write("moments_text", results)
        else:
            out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
