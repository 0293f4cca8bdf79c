"""Seconds to apply and to undo one of N patches on one matrix, from N = 10 to N = 4000.

The patches have rank one. They are undone from random places; the same number of operations is
timed at every N, and the median counts (CPU seconds, so that other work does not). The ratio of the
largest N to the smallest is what the stack promises to keep near one.

    python benchmarks/stack_scaling.py [--sizes 10 100 1000 4000] [--width 64 192]
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch
from torch import nn

import common
from easyeditor.edits import Edit
from easyeditor.lm.fingerprint import fingerprint
from easyeditor.patches.parts import LowRank
from easyeditor.patches.patch import PatchInfo
from easyeditor.patches.weight import WeightPatch

TIMED = 40


class OneMatrix(nn.Module):
    """A model of one linear layer."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.down = nn.Linear(4 * width, width, bias=False, dtype=dtype)


def measure(width: int, dtype: torch.dtype, sizes: list[int]) -> dict[str, object]:
    """Median milliseconds to apply and to undo at each size."""
    model = OneMatrix(width, dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.down.weight.normal_(std=0.02, generator=generator)
    clean = model.down.weight.detach().clone()
    edit = Edit("The Eiffel Tower is in", "Rome")
    info = PatchInfo("synthetic", (edit,), {}, fingerprint(model))

    def patch() -> WeightPatch:
        u = torch.randn(4 * width, 1, generator=generator) * 0.01
        v = torch.randn(1, width, generator=generator) * 0.1
        return WeightPatch({"down.weight": (LowRank(u, v),)}, info)

    applied: list[WeightPatch] = []
    result: dict[str, object] = {}
    choice = random.Random(0)
    medians = []
    for size in sizes:
        while len(applied) < size:
            applied.append(patch())
            applied[-1].apply(model, force=True)
        on, off = [], []
        for _ in range(TIMED):
            one = applied.pop(choice.randrange(len(applied)))
            start = time.process_time()
            one.revert(model)
            middle = time.process_time()
            one.apply(model, force=True)
            off.append(1000 * (middle - start))
            on.append(1000 * (time.process_time() - middle))
            applied.append(one)
        medians.append((statistics.median(on), statistics.median(off)))
        result[str(size)] = {
            "apply_ms": round(medians[-1][0], 3),
            "undo_ms": round(medians[-1][1], 3),
        }
        print(width, dtype, size, result[str(size)], flush=True)
    result["ratio_apply"] = round(medians[-1][0] / medians[0][0], 3)
    result["ratio_undo"] = round(medians[-1][1] / medians[0][1], 3)
    for one in choice.sample(applied, len(applied)):
        one.revert(model)
    result["exact"] = torch.equal(model.down.weight.detach(), clean)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000, 4000])
    parser.add_argument("--width", type=int, nargs="+", default=[64, 192])
    args = parser.parse_args()
    results = {
        f"{4 * width} x {width}, {str(dtype).removeprefix('torch.')}": measure(
            width, dtype, args.sizes
        )
        for width in args.width
        for dtype in (torch.float32, torch.bfloat16)
    }
    common.write("stack_scaling", results)


if __name__ == "__main__":
    main()
