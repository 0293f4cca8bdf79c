"""Prefixes put before a prompt, so that what is learnt does not hang on how a text begins.

Sampled from the model itself, as in ROME (arXiv 2202.05262, section 3.1, "prefix. prompt"),
with a generator of our own: no global random state is read or changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from easyeditor.lm.model import LM
from easyeditor.lm.sampling import sample

SEEDS = ("The", "Therefore", "Because", "I", "You")
TOP_K = 5


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
