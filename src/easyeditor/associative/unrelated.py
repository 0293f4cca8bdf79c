"""Prompts that no edit is about, and what a layer reads there: the scale of a router's radius.

They are beginnings of the texts that come with the package, cut at a random place, so nothing is
downloaded and no test set is looked at. What is read is of the unedited model.
"""

from __future__ import annotations

from itertools import islice

import torch
from torch import nn

from easyeditor.data.corpus import own_texts
from easyeditor.lm.caches import LMCache
from easyeditor.lm.forward.batching import row_batches
from easyeditor.lm.hooks import reading_inputs, stopping
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Row
from easyeditor.patches.stack import without_patches

SHORTEST, LONGEST = 4, 24
"""Tokens of an unrelated prompt."""
CHARACTERS = 400
"""Of a text that are tokenised for one."""
TOKENS = 512
"""Padded tokens per forward pass."""


def unrelated_rows(lm: LM, n: int, seed: int = 0) -> list[Row]:
    """``n`` prompts of 4 to 24 tokens, the same for equal arguments; fewer where texts run out."""
    texts = list(own_texts())
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for i in islice(torch.randperm(len(texts), generator=draw).tolist(), 2 * n):
        ids = lm.text.plain(texts[i][:CHARACTERS])
        if len(ids) <= SHORTEST:
            continue
        most = min(LONGEST, len(ids) - 1)
        cut = int(torch.randint(SHORTEST, most + 1, (), generator=draw))
        rows.append(Row(ids[:cut], (), cut - 1))
        if len(rows) == n:
            break
    return rows


def inputs_of(lm: LM, module: nn.Module, rows: list[Row]) -> list[torch.Tensor]:
    """What a linear layer reads at each prompt's tokens: per row ``(tokens, d_in)``, float32.

    In a decoder behind an encoder that is its first position alone.
    """
    result = [torch.empty(0)] * len(rows)
    with lm.at_rest(), torch.no_grad():
        for chunk in row_batches(rows, TOKENS, 1 << 30):
            batch = lm.pad([rows[i].ids[: rows[i].prompt_length] for i in chunk])
            with reading_inputs([module]) as inputs, stopping():
                lm.call(batch)
            assert inputs[0] is not None
            hidden = inputs[0].reshape(len(chunk), -1, inputs[0].shape[-1])
            for i, row in zip(chunk, hidden, strict=True):
                length = 1 if lm.encoder_decoder else rows[i].prompt_length
                result[i] = row[:length].float().clone()
    return result


UNRELATED_INPUTS: LMCache[tuple[str, int, int], list[torch.Tensor]] = LMCache(
    "the unedited model's inputs of a layer on unrelated prompts; by path, number and seed"
)


def unrelated_inputs(lm: LM, path: str, n: int, seed: int = 0) -> list[torch.Tensor]:
    """:func:`inputs_of` the unedited model's layer ``path`` on ``n`` unrelated prompts."""
    inputs, key = UNRELATED_INPUTS(lm), (path, n, seed)
    if key not in inputs:
        with without_patches(lm.model):
            inputs[key] = inputs_of(lm, lm.model.get_submodule(path), unrelated_rows(lm, n, seed))
    return inputs[key]


def nearest_distance_quantile(keys: torch.Tensor, share: float) -> float:
    """The ``share`` quantile of each key's Euclidean distance to its nearest other key."""
    distances = torch.cdist(keys, keys, compute_mode="donot_use_mm_for_euclid_dist")
    distances.fill_diagonal_(torch.inf)
    return float(distances.amin(1).quantile(share))
