"""CPU seconds of one edit on a model that carries 10 and 1,000 earlier edits.

The earlier edits are synthetic: patches of rank one with random keys, in the form that the method
writes and later reads. The timed ones are real, each undone afterwards; the median counts, in CPU
seconds, so that other work does not.

    python benchmarks/lifelong_scaling.py [--methods AlphaEdit UltraEdit] [--sizes 10 1000]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch

import common
from easyeditor.associative.protected_keys import keys_as_extras
from easyeditor.editors.session import EditSession
from easyeditor.edits import Edit
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.patches.parts import LowRank
from easyeditor.patches.patch import Patch
from easyeditor.patches.weight import WeightPatch

LIMIT = 1.3


def earlier(lm: LM, like: WeightPatch, n: int, seed: int) -> list[Patch]:
    """``n`` patches of the form of ``like``, with random keys and next to no change."""
    draw = torch.Generator().manual_seed(seed)
    patches: list[Patch] = []
    for i in range(n):
        edit = Edit(f"Earlier fact {i} is", "known", subject=f"fact {i}")
        entries, keys = {}, {}
        for path, (d_in, d_out) in like.shapes.items():
            u = 1e-6 * torch.randn(d_in, 1, generator=draw)
            entries[path] = (LowRank(u, torch.randn(1, d_out, generator=draw)),)
            if f"keys:{path}" in like.extras:
                stored = like.extras[f"keys:{path}"]
                noise = torch.randn(stored.shape, generator=draw)
                owner = torch.zeros(len(stored), dtype=torch.long)
                keys[path] = (noise * stored.square().mean().sqrt(), owner)
        info = like.info.with_edits([edit])
        patches.append(WeightPatch(entries, info, keys_as_extras([edit], keys), like.in_out))
    return patches


def measured(lm: LM, name: str, sizes: list[int], timed: int) -> dict[str, Any]:
    """Median CPU seconds at each size, and the ratio of the largest to the smallest."""
    kind = METHODS.get(name)
    session = EditSession(lm, kind(kind.hyperparams_class.for_model("smollm2-135m")))
    edits = common.made_up_edits(timed + 2)
    like = session.attempt(edits[:1]).patch
    assert isinstance(like, WeightPatch)
    carried: list[Patch] = []
    seconds: dict[int, float] = {}
    for size in sorted(sizes):
        for patch in earlier(lm, like, size - len(carried), size):
            patch.apply(lm.model, force=True)
            carried.append(patch)
        session.attempt(edits[1:2])  # what was computed for the size before is extended
        times = []
        for edit in edits[2:]:
            start = time.process_time()
            session.attempt([edit])
            times.append(time.process_time() - start)
        seconds[size] = round(statistics.median(times), 3)
        print(name, size, seconds[size], flush=True)
    for patch in reversed(carried):
        patch.revert(lm.model)
    ratio = seconds[max(sizes)] / seconds[min(sizes)]
    return {"method": name, "seconds": seconds, "ratio": round(ratio, 2), "limit": LIMIT}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--methods", nargs="+", default=["UltraEdit", "AlphaEdit"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[10, 1000])
    parser.add_argument("--timed", type=int, default=8)
    args = parser.parse_args()
    lm = load("smollm2-135m", device="cpu")
    rows = [measured(lm, name, args.sizes, args.timed) for name in args.methods]
    for row in rows:
        print(json.dumps(row))
    common.write(
        "lifelong_scaling", {"what": "CPU seconds of one edit by earlier edits", "rows": rows}
    )


if __name__ == "__main__":
    main()
