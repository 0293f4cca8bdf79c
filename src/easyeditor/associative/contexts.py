"""Prefixes that stand before a prompt while its value is optimised, for robustness to context.

Sampled from the unedited model, as in ROME (arXiv 2202.05262, section 3.1, "prefix. prompt"), with
a separate random generator: no global random state is read or changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from easyeditor.lm.model import LM
from easyeditor.lm.sampling import sample
from easyeditor.patches.stack import without_patches
from easyeditor.progress import bar

SEEDS = ("The", "Therefore", "Because", "I", "You")
TOP_K = 5
WRITTEN = (
    "It was late, and nobody was in the street.",
    "The train had left.",
    "Because of the rain, the game was put off until next week.",
    "I have read this twice.",
    "You will find the keys on the small table by the door.",
    "Therefore, the answer is short.",
    "The report of last year says nothing about it.",
    "Most people agree.",
    "As the table shows, prices rose in spring and fell in autumn.",
    "She opened the window.",
    "In the second part of the book, the story moves to the sea.",
    "We asked them again.",
    "According to the newspaper, the bridge will be closed in March.",
    "This is well known.",
    "When the lights went on, the music had already stopped.",
    "He did not say why.",
    "There are several ways to look at the question.",
    "The soup was cold.",
    "For many years the house at the corner stood empty.",
    "Here is one more.",
)
"""Prefixes for encoder-decoders, which are not trained to write freely."""


def context_prefixes(
    lm: LM, lengths: Sequence[tuple[int, int]], *, seed: int = 0
) -> tuple[str, ...]:
    """The empty prefix, then for each ``(tokens, count)`` that many sampled ones, ``"text. "``.

    An encoder-decoder, which is trained to fill in gaps and not to continue a text, gets as many
    fixed sentences. ``((5, 10), (10, 10))`` are ROME's 20. They are sampled from the unedited model
    whatever patches it carries, and not cached: equal models and settings give equal prefixes.
    """
    if lm.encoder_decoder:
        wanted = sum(count for _, count in lengths)
        return ("", *(f"{WRITTEN[i % len(WRITTEN)]} " for i in range(wanted)))
    generator = torch.Generator().manual_seed(seed)
    prefixes = [""]
    total = sum(n_tokens * count for n_tokens, count in lengths)
    with without_patches(lm.model), bar(total, "sampling contexts", "token") as progress:
        for n_tokens, count in (pair for pair in lengths if pair[1]):
            starts = [SEEDS[i % len(SEEDS)] for i in range(count)]
            sampled = sample(
                lm,
                starts,
                n_tokens,
                generator=generator,
                top_k=TOP_K,
                after_step=lambda tokens: progress.update(len(tokens)),
            )
            for ids in sampled:
                text = lm.tokenizer.decode(ids, skip_special_tokens=True)
                prefixes.append(" ".join(text.split()) + ". ")
    return tuple(prefixes)
