"""Peak memory of an edit of a model of LLaMA-2-7B's shape in bfloat16, over its weights, on a CPU.

Random weights (13 GB; 17 GB of main memory are needed), few value steps and few tokens of text, as
what an edit holds does not hang on their number. Takes some minutes.

    python benchmarks/big_memory.py
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch

import common
from easyeditor.methods import METHODS
from gpu import Bench

STEPS, TOKENS = 3, 1000


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        text = " ".join(f"{edit.prompt} {edit.target}." for edit in common.made_up_edits(300))
        (folder / "text.txt").write_text("\n".join([text] * 3))
        bench = Bench("llama-2-7b", torch.device("cpu"), small=False)
        bench.text, bench.stats = folder / "text.txt", folder / "moments"
        for method, n in (("ROME", 1), ("FT", 1), ("MEMIT", 2)):
            changes = {"num_steps": STEPS} if method == "FT" else {}
            if method != "FT":
                changes = {"v_num_grad_steps": STEPS, "mom2_n_tokens": TOKENS}
            made = METHODS.get(method)(bench.settings(method, **changes))
            edits = common.made_up_edits(n)
            bench.measure(f"{method}_{n}_first", partial(made.edit, bench.lm, edits), n)
            if method != "FT":  # moments and their factors are on disk now
                bench.measure(f"{method}_{n}", partial(made.edit, bench.lm, edits), n)
    common.write("big_memory", {"weights_mb": round(bench.bytes / 2**20), **bench.told})


if __name__ == "__main__":
    main()
