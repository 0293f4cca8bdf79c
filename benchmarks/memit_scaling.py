"""MEMIT on the embedded model from 1 to 1000 edits in a batch: seconds per edit, peak memory.

Statistics are on disk. By default only the bare prompts are searched, so that a thousand edits take
minutes; ``--contexts`` searches the preset's contexts, too, and only multiplies the time.

    python benchmarks/memit_scaling.py [--sizes 1 10 100 1000] [--contexts]
"""

from __future__ import annotations

import argparse
from functools import partial

import common
from easyeditor.lm.loading import load
from easyeditor.methods.memit import MEMIT, MEMITHyperParams
from easyeditor.patches.weight import WeightPatch


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--contexts", action="store_true")
    args = parser.parse_args()
    lm = load("smollm2-135m", device="cpu")
    common.touch(lm.model)
    size = common.model_mb(lm.model)
    more = {} if args.contexts else {"context_template_length_params": ()}
    method = MEMIT(MEMITHyperParams.preset("smollm2-135m", batch_size=max(args.sizes), **more))
    state = method.initial_state(lm)
    method.edit(lm, common.made_up_edits(2), state)  # statistics, first calls
    told: dict[str, object] = {"model_mb": round(size), "contexts": "preset" if not more else 1}
    for n in args.sizes:
        edits = common.made_up_edits(n)
        outcome, seconds, extra = common.measured(partial(method.edit, lm, edits, state))
        patch = outcome.patch
        assert isinstance(patch, WeightPatch)
        parts = [part for entry in patch.entries.values() for part in entry]
        held = sum(4 * part.numbers for part in parts)
        told[str(n)] = {
            "seconds_per_edit": round(seconds / n, 3),
            "phases_per_edit": {k: round(v / n, 4) for k, v in patch.info.seconds.items()},
            "peak_extra_mb": round(extra),
            "peak_extra_share_of_model": round(extra / size, 2),
            "patch_mb": round(held / 2**20, 1),
        }
        print(n, told[str(n)], flush=True)
        del patch, outcome
    common.write("memit_scaling", told)


if __name__ == "__main__":
    main()
