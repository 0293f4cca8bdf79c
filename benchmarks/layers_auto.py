"""What ``easyedit layers --auto`` chooses, against S of every layer on other facts.

For each model the sweep chooses on 16 facts, and then every layer is edited on facts that the sweep
did not see, with the search that was chosen (in the small models with every search). Resumable:
what is measured lies in ``--work``.

    python benchmarks/layers_auto.py smollm2-135m gpt2 gptj gptneo llama llama2 t5 [--facts 16]
        [--layers 0,1,2,3] [--method ROME] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import common
from easyeditor import Case
from easyeditor.bench.known_facts import facts_known_by
from easyeditor.bench.layer_choosing import FACTS, choose_layers
from easyeditor.bench.sweep import Candidate, LayerSweep
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.second_moments.corpus import SHIPPED

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "layers_auto.json"
ZOO = ("gpt2", "gptj", "gptneo", "llama", "llama2", "t5")


def subject(name: str, n: int, work: Path) -> tuple[LM, list[Case], list[Case], str]:
    """The model, facts for the sweep, other facts for the table, and text for the moments."""
    if name not in ZOO:
        lm = load(name, device="cpu", dtype="float32")
        facts = facts_known_by(lm, FACTS + n)
        return lm, facts[:FACTS], facts[FACTS:], SHIPPED
    sys.path.insert(0, str(ROOT / "tests"))
    from zoo import corpus_file, world
    from zoo import load as load_zoo

    lm = load_zoo(name)
    chosen_on = facts_known_by(lm, FACTS, world.cases("train"))
    return lm, chosen_on, facts_known_by(lm, n, world.cases("eval")), str(corpus_file(work))


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One model: the choice, and a row for every layer."""
    work: Path = args.work / f"{Path(name).stem}-{args.method}"
    work.mkdir(parents=True, exist_ok=True)
    lm, chosen_on, others, text = subject(name, args.facts, work)
    stored = work / "choice.json"
    if not stored.exists():
        start, cpu = time.perf_counter(), time.process_time()
        choice = choose_layers(lm, args.method, chosen_on, text=text, folder=work, keep=False)
        about = {
            "settings": choice.settings,
            "rows": choice.rows,
            "facts": choice.facts,
            "seconds": round(time.perf_counter() - start, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
        }
        stored.write_text(json.dumps(about))
    chosen = json.loads(stored.read_text())
    if not others:
        return {"model": Path(name).stem, "method": args.method, "chosen": chosen}
    table = LayerSweep(lm, args.method, others, text=text, fast=False, folder=work)
    own = Candidate(
        tuple(chosen["settings"]["layers"]),
        next(
            i
            for i, settings in enumerate(table.plan.searches)
            if all(chosen["settings"][key] == value for key, value in settings.items())
        ),
    )
    searches = range(len(table.plan.searches)) if name in ZOO else [own.search]
    windows = table.windows(everywhere=True)
    if args.layers and name not in ZOO:
        wanted = {int(layer) for layer in args.layers.split(",")}
        windows = [w for w in windows if w[0] in wanted or list(w) == chosen["settings"]["layers"]]
    table.collect_moments(windows)
    rows = {}
    for window in windows:
        for search in searches:
            row = table.row(Candidate(window, search), len(others))
            scores = {key: getattr(row, key) for key in ("S", "ES", "PS", "NS")}
            rows[Candidate(window, search)] = scores
            print(name, window, search, scores, flush=True)
    best = max(rows, key=lambda candidate: rows[candidate]["S"])
    return {
        "model": Path(name).stem,
        "method": args.method,
        "chosen": chosen,
        "facts": [case.id for case in others],
        "rows": [{"layers": list(c.layers), "search": c.search, **row} for c, row in rows.items()],
        "best": list(best.layers),
        "behind_best": round(100 * (rows[best]["S"] - rows[own]["S"]), 1),
    }


def table(results: list[dict[str, Any]]) -> str:
    """The table of docs/layers.md."""
    lines = [
        "| model | S by layer (best search) | chosen | S there | behind the best | CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        chosen, by_layer = result["chosen"], dict[int, float]()
        for row in result.get("rows", ()):
            layer = row["layers"][0]
            by_layer[layer] = max(by_layer.get(layer, 0.0), row["S"])
        scores = ", ".join(f"{100 * s:.1f}" for s in by_layer.values())
        layer, behind = chosen["settings"]["layers"][0], result.get("behind_best", 0.0)
        at = max(by_layer.values()) * 100 - behind if by_layer else chosen["rows"][-1]["S"] * 100
        lines.append(
            f"| {result['model']} | {scores} | {layer} | {at:.1f} | {behind} "
            f"| {chosen['cpu_seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", help="none: print the table")
    parser.add_argument("--facts", type=int, default=16, help="0: the choice alone")
    parser.add_argument("--layers", default="")
    parser.add_argument("--method", default="ROME")
    parser.add_argument("--work", type=Path, default=Path("layers_auto_work"))
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text())["models"] if RESULTS.exists() else []
    if not args.models:
        print(table(results))
    for name in args.models:
        result = measure(name, args)
        same = (result["model"], result["method"])
        results = [r for r in results if (r["model"], r["method"]) != same] + [result]
        common.write("layers_auto", {"what": "S by layer and what --auto chose", "models": results})


if __name__ == "__main__":
    main()
