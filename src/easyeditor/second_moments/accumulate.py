"""Accumulates ``Σ k kᵀ`` over a text: one forward pass serves all layers, up to the highest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import nn

from easyeditor.lm.hooks import reading_inputs, stopping
from easyeditor.lm.memory import releasing_memory
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Batch
from easyeditor.progress import bar
from easyeditor.second_moments.checkpoint import Checkpoint, TextPosition
from easyeditor.second_moments.cost import CostEstimate
from easyeditor.second_moments.running_sum import RunningSums

TOKENS_PER_PASS = 2048
"""A batch is complete once it has so many tokens."""


@releasing_memory
def accumulated(
    lm: LM,
    layers: Sequence[int],
    text: Iterable[Sequence[int]],
    n_tokens: int,
    checkpoint: Checkpoint,
) -> RunningSums:
    """``Σ k kᵀ`` of ``layers`` (ascending) over the first ``n_tokens`` tokens of ``text``.

    Resumes from the checkpoint, with the bits of an uninterrupted pass.
    """
    sums, modules = _start(lm, layers)
    position = checkpoint.restore(sums)
    rest = islice(text, position.sequences, None)
    cost = CostEstimate(
        f"Reading {n_tokens} tokens up to layer {layers[-1]} of {lm.name} for second moments",
        n_tokens - position.tokens,
        lm.device,
        "Fewer tokens are cheaper: mom2_n_tokens=N (easyedit moments --tokens N); 2 to 10 times "
        f"the width of a key ({lm.projection(layers[-1]).d_in}) are enough.",
    )
    with _bar(layers, n_tokens, position.tokens) as progress:
        for batch in _batches(rest, n_tokens - position.tokens):
            sums.add(_keys(lm, modules, batch))
            tokens = sum(map(len, batch))
            position = TextPosition(position.sequences + len(batch), position.tokens + tokens)
            checkpoint.write_if_due(sums, position)
            progress.update(tokens)
            cost.update(tokens)
    return sums


def accumulated_by_size(
    lm: LM,
    layers: Sequence[int],
    text: Iterable[Sequence[int]],
    n_tokens: int,
    sizes: Sequence[int],
) -> Iterator[RunningSums]:
    """The sums of :func:`accumulated` after each of ``sizes`` (ascending) tokens, from one pass.

    A size that the text does not reach is left out. The trap: every item is the same object, which
    later tokens are added to.
    """
    sums, modules = _start(lm, layers)
    ahead = list(sizes)
    with _bar(layers, ahead[-1]) as progress:
        for batch in _batches(text, n_tokens):
            keys = _keys(lm, modules, batch)
            while ahead and sums.seen + len(keys[0]) >= ahead[0]:
                wanted = ahead.pop(0) - sums.seen
                sums.add([of_layer[:wanted] for of_layer in keys])
                keys = [of_layer[wanted:] for of_layer in keys]
                yield sums
            if not ahead:
                return
            sums.add(keys)
            progress.update(len(keys[0]))


def _start(lm: LM, layers: Sequence[int]) -> tuple[RunningSums, list[nn.Module]]:
    projections = [lm.projection(layer) for layer in layers]
    sums = RunningSums([p.d_in for p in projections], [p.device for p in projections])
    return sums, [p.module for p in projections]


def _bar(layers: Sequence[int], n_tokens: int, done: int = 0) -> Any:
    return bar(n_tokens, f"second moments of {len(layers)} layers", "token", done=done)


def _keys(
    lm: LM, modules: Sequence[nn.Module], sequences: Sequence[Sequence[int]]
) -> list[torch.Tensor]:
    """The input of each module at every token that is no padding, ``(tokens, d_in)``, in order."""
    batch, more, real = _fed(lm, sequences)
    with lm.at_rest(), torch.inference_mode():
        with reading_inputs(modules) as inputs, stopping():
            lm.call(batch, **more)
        result = []
        for keys in inputs:
            assert keys is not None
            result.append(keys.reshape(-1, keys.shape[-1])[real.to(keys.device)])
    return result


def _fed(lm: LM, sequences: Sequence[Sequence[int]]) -> tuple[Batch, dict[str, Any], torch.Tensor]:
    """The batch, further arguments of the call, and a mask of the positions without padding.

    The mask is that of the column whose keys are read. If that is the decoder of an
    encoder-decoder, the encoder reads the first half of each sequence and the decoder the second.
    """
    if not lm.encoder_decoder or lm.in_encoder:
        batch = lm.pad(sequences)
        return batch, {}, batch.mask.bool().flatten()
    halves = [(s[: len(s) // 2], s[len(s) // 2 :]) for s in sequences]
    read = lm.pad([second for _, second in halves]).mask.bool().flatten()
    decoder = lm.decoder_inputs([second for _, second in halves])
    return lm.pad([first for first, _ in halves]), {"decoder_input_ids": decoder}, read


def _batches(sequences: Iterable[Sequence[int]], n_tokens: int) -> Iterator[list[Sequence[int]]]:
    batch: list[Sequence[int]] = []
    size = total = 0
    if n_tokens < 1:
        return
    for sequence in sequences:
        cut = sequence[: n_tokens - total]
        batch.append(cut)
        size += len(cut)
        total += len(cut)
        if size >= TOKENS_PER_PASS or total >= n_tokens:
            yield batch
            batch, size = [], 0
        if total >= n_tokens:
            return
    if batch:
        yield batch
