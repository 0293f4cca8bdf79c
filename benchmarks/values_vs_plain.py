"""MEMIT's values of a batch, resumed and searched together, against the plain one-by-one loop.

The plain loop (resumed_vs_plain.py) runs the whole model on every context of one edit after the
other, with all logits, at every step, as the papers' code does. Three comparisons in one run, the
plain loop always with the published rule (25 steps, stop at a loss below 0.05):

- the same settings on both sides: the same mathematics, step for step;
- ours with the preset's rule: an edit stops once its mean −log p is below ``v_stop_nll``;
- ours with ``v_stop_argmax``: it stops once the target is the argmax in every context.

    python benchmarks/values_vs_plain.py [--edits 20] [--plain 5]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import common
from easyeditor.associative.contexts import context_prefixes
from easyeditor.associative.value_optimization import OptimizedValues, optimize_values
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.loading import load
from easyeditor.methods.memit import MEMITHyperParams
from resumed_vs_plain import plain_loop


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--edits", type=int, default=20, help="of the batch")
    parser.add_argument("--plain", type=int, default=5, help="of them, searched the plain way")
    parser.add_argument("--memory-mb", type=int, help="for the search; else 14 %% of the model")
    args = parser.parse_args()
    lm = load("smollm2-135m", device="cpu")
    common.touch(lm.model)
    settings = MEMITHyperParams.preset("smollm2-135m").resolved(lm.n_layers)
    site = Site(int(settings.layers[-1]), "block")
    contexts = context_prefixes(lm, settings.context_template_length_params)
    published = replace(settings.search(), v_stop_nll=None)
    edits = common.made_up_edits(args.edits)
    memory = args.memory_mb and args.memory_mb * 2**20
    optimize_values(
        lm, site, edits[:1], contexts, replace(published, v_num_grad_steps=1)
    )  # warm up

    began = time.perf_counter()
    with lm.at_rest():
        plain = [plain_loop(lm, edit, contexts, published, site) for edit in edits[: args.plain]]
    per_edit = (time.perf_counter() - began) / args.plain
    told: dict[str, object] = {
        "what": f"MEMIT value search, SmolLM2-135M, {len(contexts)} contexts, seconds per edit",
        "plain": {"edits": args.plain, "seconds_per_edit": per_edit, "steps": _steps(plain)},
    }
    rules = {
        "same_settings": published,
        "preset": settings.search(),
        "stop_at_argmax": replace(settings.search(), v_stop_argmax=True),
    }
    for name, search in rules.items():
        began = time.perf_counter()
        found: OptimizedValues = optimize_values(lm, site, edits, contexts, search, memory=memory)
        seconds = (time.perf_counter() - began) / len(edits)
        told[name] = {
            "edits": len(edits),
            "seconds_per_edit": seconds,
            "steps": _steps(found.losses),
            "ratio": per_edit / seconds,
        }
        if name == "same_settings":
            told["worst_relative_loss"] = max(
                abs(a - b) / abs(b)
                for ours, theirs in zip(found.losses, plain, strict=False)
                for a, b in zip(ours, theirs, strict=True)
            )
        print(name, told[name], flush=True)
    common.write("values_vs_plain", told)


def _steps(losses: list[list[float]]) -> float:
    return sum(map(len, losses)) / len(losses)


if __name__ == "__main__":
    main()
