"""Prefixes put before a prompt, so that what is learnt does not hang on how a text begins.

Sampled from the model itself, as in ROME (arXiv 2202.05262, section 3.1, "prefix. prompt"),
with a generator of our own: no global random state is read or changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from easyeditor.errors import DivergedError
from easyeditor.lm.model import LM

SEEDS = ("The", "Therefore", "Because", "I", "You")
TOP_K = 5


def sample(
    lm: LM,
    starts: Sequence[str],
    n_tokens: int,
    *,
    generator: torch.Generator,
    top_k: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[tuple[int, ...]]:
    """Sample ``n_tokens`` after each start; the start's tokens are part of the result.

    ``progress`` is told how many tokens each step has made.
    """
    rows = [lm.text.plain(start) for start in starts]
    batch = lm.pad(rows, left=True)
    ids, mask, positions = batch.ids, batch.mask, batch.positions
    made = [list(row) for row in rows]
    more: dict[str, object] = {"use_cache": True}
    with lm.at_rest(), torch.inference_mode():
        for _ in range(n_tokens):
            out = lm.call(type(batch)(ids, mask, positions), **more)
            logits = out.logits[:, -1].float().cpu()
            if top_k is not None:
                floor = logits.topk(top_k).values[:, -1:]
                logits = logits.masked_fill(logits < floor, float("-inf"))
            if logits.isnan().any():
                raise DivergedError(
                    "The model's own predictions are not numbers, so nothing can be sampled from "
                    "it; it is unchanged. Load it in float32 or bfloat16, and check its weights."
                )
            chosen = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            for row, token in zip(made, chosen[:, 0].tolist(), strict=True):
                row.append(token)
            if progress is not None:
                progress(len(made))
            ids = chosen.to(ids.device)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            positions = positions[:, -1:] + 1
            more = {"use_cache": True, "past_key_values": out.past_key_values}
    return [tuple(row) for row in made]


def context_prefixes(
    lm: LM, lengths: Sequence[tuple[int, int]], *, seed: int = 0
) -> tuple[str, ...]:
    """The empty prefix, then for each ``(tokens, count)`` that many sampled ones, ``"text. "``.

    ``((5, 10), (10, 10))`` are ROME's 20. They are sampled once per model and settings: a later
    edit sees the prefixes of the model as it was first met.
    """
    key = ("contexts", tuple(map(tuple, lengths)), seed)
    if key not in lm.memo:
        generator = torch.Generator().manual_seed(seed)
        prefixes = [""]
        for n_tokens, count in lengths:
            starts = [SEEDS[i % len(SEEDS)] for i in range(count)]
            for ids in sample(lm, starts, n_tokens, generator=generator, top_k=TOP_K):
                text = lm.tokenizer.decode(ids, skip_special_tokens=True)
                prefixes.append(" ".join(text.split()) + ". ")
        lm.memo[key] = tuple(prefixes)
    found: tuple[str, ...] = lm.memo[key]
    return found
