"""ROME's value search, resumed against the plain loop: seconds, and losses at every step.

The plain loop is written here on its own, as the papers' code does it: every step runs the whole
model on the whole text of all 21 contexts, with a hook, and computes logits and log-probabilities
at every position. It shares nothing with the package's search but the tokens, so equal losses
are also a check of the search itself.

    python benchmarks/resumed_vs_plain.py [--edits 5] [--steps 20]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

import common
from easyeditor.associative.contexts import context_prefixes
from easyeditor.associative.microbatches import KL_PROMPT, context_rows_of
from easyeditor.associative.value_optimization import ValueOptions, optimize_values
from easyeditor.edits import Edit
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM

LAYER = 3
EIFFEL = Edit("The Eiffel Tower is located in the city of", "Rome", "The Eiffel Tower")


SITE = Site(LAYER, "down")


def plain_loop(
    lm: LM, edit: Edit, contexts: Sequence[str], search: ValueOptions, site: Site = SITE
) -> list[float]:
    """The losses of the textbook loop; one hook, whole forward passes, all logits."""
    rows = [
        lm.text.row(edit.prompt, edit.target, subject=edit.subject, prefix=context)
        for context in contexts
    ]
    kl_row = lm.text.row(KL_PROMPT.format(edit.subject), subject=edit.subject)
    batch = lm.pad([row.ids[:-1] for row in rows] + [kl_row.ids])
    at = torch.tensor([row.subject_last for row in rows] + [kl_row.subject_last])
    labels = torch.full_like(batch.ids, -100)
    for i, row in enumerate(rows):
        labels[i, row.prompt_length - 1 : len(row.ids) - 1] = torch.tensor(row.target)
    counts = (labels != -100).sum(1).clamp(min=1)
    module = site.module(lm)
    delta = torch.zeros(lm.projection(site.layer).d_out, requires_grad=True)
    seen: dict[str, torch.Tensor] = {}

    def hook(_module: object, _args: object, output: torch.Tensor) -> torch.Tensor:
        index = torch.arange(len(at))
        seen.setdefault("v0", output[0, at[0]].detach().clone())
        output = output.clone()
        output[index, at] = output[index, at] + delta
        return output

    adam = torch.optim.Adam([delta], lr=search.v_lr)
    handle = module.register_forward_hook(hook)
    losses: list[float] = []
    first = None
    try:
        for step in range(search.v_num_grad_steps):
            adam.zero_grad()
            logits = lm.model(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                position_ids=batch.positions,
                use_cache=False,
            ).logits
            logp = logits.log_softmax(-1)
            picked = logp.gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
            nll = -(picked * (labels != -100)).sum(1) / counts
            now = logp[-1, kl_row.subject_last]
            first = now.detach() if first is None else first
            kl = (first.exp() * (first - now)).sum()
            size = seen["v0"].norm()
            decay = search.v_weight_decay * delta.norm() / size**2
            loss = nll[:-1].mean() + search.kl_factor * kl + decay
            losses.append(loss.item())
            if losses[-1] < 0.05 or step == search.v_num_grad_steps - 1:
                break
            loss.backward()
            adam.step()
            limit = search.clamp_norm_factor * size
            with torch.no_grad():
                if delta.norm() > limit:
                    delta.mul_(limit / delta.norm())
    finally:
        handle.remove()
    return losses


def limit(lm: LM, edit: Edit, contexts: tuple[str, ...], search: ValueOptions, steps: int) -> float:
    """The ratio if every multiplication took the same time and nothing else took any."""
    lines = context_rows_of(lm, 0, edit, contexts, search.kl_factor)
    block = sum(p.numel() for p in lm.blocks[0].parameters())
    head = sum(p.numel() for p in lm.head.parameters())
    padded = len(lines) * max(len(line.run.ids) for line in lines)
    again = sum(line.run.tokens(True) for line in lines)
    past = sum(line.run.at for line in lines)
    reads = sum(len(line.run.reads) for line in lines)
    above = lm.n_layers - LAYER - 1
    plain = steps * padded * (block * (lm.n_layers + above) + 2 * head)
    resumed = steps * (again * block * (2 * above + 1) + 2 * reads * head)
    return plain / (resumed + past * block * lm.n_layers + again * block * LAYER)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--edits", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    lm = load("smollm2-135m", device="cpu")
    contexts = context_prefixes(lm, ((5, 10), (10, 10)))
    search = ValueOptions(args.steps, 0.5, 0.5, 4.0, 0.0625)
    edits = [EIFFEL, *common.made_up_edits(args.edits - 1)]
    optimize_values(
        lm, SITE, edits[:1], contexts, ValueOptions(1, 0.5, 0.5, 4.0, 0.0625)
    )  # warm up
    told = []
    for edit in edits:
        row: dict[str, Any] = {"prompt": edit.prompt}
        start = time.perf_counter()
        with lm.at_rest():
            plain = plain_loop(lm, edit, contexts, search)
        row["plain_s"] = time.perf_counter() - start
        start = time.perf_counter()
        within = optimize_values(lm, SITE, [edit], contexts, search)
        row["resumed_s"] = time.perf_counter() - start
        start = time.perf_counter()
        free = optimize_values(lm, SITE, [edit], contexts, search, memory=2**34)
        row["resumed_unbounded_memory_s"] = time.perf_counter() - start
        start = time.perf_counter()
        optimize_values(lm, SITE, [edit], contexts, search, resume=False, memory=2**34)
        row["plain_with_few_logits_s"] = time.perf_counter() - start
        row["steps"] = len(plain)
        row["worst_relative_loss"] = max(
            abs(a - b) / abs(b)
            for found in (within, free)
            for a, b in zip(found.losses[0], plain, strict=True)
        )
        row["limit_by_multiplications"] = limit(lm, edit, contexts, search, len(plain))
        row["ratio"] = row["plain_s"] / row["resumed_s"]
        row["ratio_unbounded_memory"] = row["plain_s"] / row["resumed_unbounded_memory_s"]
        told.append(row)
        print(row, flush=True)
    common.write(
        "resumed_vs_plain",
        {
            "what": "ROME value search, SmolLM2-135M, layer 3, 21 contexts, one edit at a time",
            "median_ratio": statistics.median(r["ratio"] for r in told),
            "median_ratio_unbounded_memory": statistics.median(
                r["ratio_unbounded_memory"] for r in told
            ),
            "worst_relative_loss": max(r["worst_relative_loss"] for r in told),
            "edits": told,
        },
    )


if __name__ == "__main__":
    main()
