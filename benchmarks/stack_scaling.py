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

TIMED = 100


class OneMatrix(nn.Module):
    """A model of one linear layer."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.down = nn.Linear(4 * width, width, bias=False, dtype=dtype)


class Stacked:
    """A model of one matrix with some patches applied."""

    def __init__(self, width: int, dtype: torch.dtype, size: int) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.model, self.width = OneMatrix(width, dtype), width
        with torch.no_grad():
            self.model.down.weight.normal_(std=0.02, generator=self.generator)
        self.clean = self.model.down.weight.detach().clone()
        edit = Edit("The Eiffel Tower is in", "Rome")
        self.info = PatchInfo("synthetic", (edit,), {}, fingerprint(self.model))
        self.patches = [self.patch() for _ in range(size)]
        for one in self.patches:
            one.apply(self.model, force=True)

    def patch(self) -> WeightPatch:
        """One of rank one."""
        u = torch.randn(4 * self.width, 1, generator=self.generator) * 0.01
        v = torch.randn(1, self.width, generator=self.generator) * 0.1
        return WeightPatch({"down.weight": (LowRank(u, v),)}, self.info)

    def undo_and_apply(self, choice: random.Random) -> tuple[float, float]:
        """Milliseconds to apply one patch and to undo one from a random place."""
        one = self.patches.pop(choice.randrange(len(self.patches)))
        start = time.process_time()
        one.revert(self.model)
        middle = time.process_time()
        one.apply(self.model, force=True)
        end = time.process_time()
        self.patches.append(one)
        return 1000 * (end - middle), 1000 * (middle - start)


def measure(width: int, dtype: torch.dtype, sizes: list[int]) -> dict[str, object]:
    """Median milliseconds to apply and to undo at each size, and the ratios."""
    choice = random.Random(0)
    stacks = {size: Stacked(width, dtype, size) for size in sizes}
    times: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
    for _ in range(TIMED):  # in turns, so that the machine's mood is the same for all
        for size, stack in stacks.items():
            times[size].append(stack.undo_and_apply(choice))
    medians = {
        size: [statistics.median(column) for column in zip(*rows, strict=True)]
        for size, rows in times.items()
    }
    result: dict[str, object] = {
        str(size): {"apply_ms": round(on, 3), "undo_ms": round(off, 3)}
        for size, (on, off) in medians.items()
    }
    first, last = medians[sizes[0]], medians[sizes[-1]]
    result["ratio_apply"] = round(last[0] / first[0], 3)
    result["ratio_undo"] = round(last[1] / first[1], 3)
    exact = True
    for stack in stacks.values():
        for one in choice.sample(stack.patches, len(stack.patches)):
            one.revert(stack.model)
        exact = exact and torch.equal(stack.model.down.weight.detach(), stack.clean)
    result["exact"] = exact
    print(width, dtype, result, flush=True)
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
