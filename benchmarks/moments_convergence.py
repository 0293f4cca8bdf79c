"""How many tokens second moments need: spectrum and scores of edits, 0.5 to 10 tokens per width.

    python benchmarks/moments_convergence.py [--method rome] [--facts 8]

What ``easyedit moments --convergence --json`` tells, with the machine's name. Moments are collected
anew, in a folder of their own.
"""

from __future__ import annotations

import argparse
import tempfile

import common
from easyeditor.bench.convergence import convergence, known_facts
from easyeditor.lm.loading import load
from easyeditor.methods import METHODS
from easyeditor.methods.locate import LocateHyperParams


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", default="rome")
    parser.add_argument("--facts", type=int, default=8)
    args = parser.parse_args()
    kind = METHODS.get(METHODS.canonical(args.method))
    lm = load("smollm2-135m", device="cpu")
    cases = known_facts(lm, args.facts)
    with tempfile.TemporaryDirectory() as folder:
        settings = kind.hyperparams_class.preset("smollm2-135m", stats_dir=folder)
        assert isinstance(settings, LocateHyperParams)
        rows = []
        for row in convergence(lm, settings, cases):
            rows.append(row.plain())
            print(rows[-1], flush=True)
    what = f"{kind.name}'s preset for smollm2-135m, text sampled from the model"
    common.write(
        "moments_convergence", {"what": what, "edits": [case.id for case in cases], "rows": rows}
    )


if __name__ == "__main__":
    main()
