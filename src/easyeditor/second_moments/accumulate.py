"""One pass over a text for all layers, stopping at the highest: the sums of ``k kᵀ``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import nn

from easyeditor.lm.hooks import reading_inputs, stopping
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Batch
from easyeditor.progress import bar
from easyeditor.second_moments.checkpoint import Checkpoint, Place
from easyeditor.second_moments.cost import CostEstimate
from easyeditor.second_moments.running_sum import Sums

BUDGET = 2048
"""Tokens per forward pass, about."""


def collected(
    lm: LM,
    layers: Sequence[int],
    text: Iterable[Sequence[int]],
    n_tokens: int,
    checkpoint: Checkpoint,
) -> Sums:
    """The sums of ``layers`` (ascending) over the first ``n_tokens`` tokens of ``text``.

    Goes on where the checkpoint says, and then has the bits it would have had in one go.
    """
    sums, modules = _start(lm, layers)
    place = checkpoint.restore(sums)
    rest = islice(text, place.sequences, None)
    cost = CostEstimate(
        f"Reading {n_tokens} tokens up to layer {layers[-1]} of {lm.name} for second moments",
        n_tokens - place.tokens,
        lm.device,
        "Fewer tokens are cheaper: mom2_n_tokens=N (easyedit moments --tokens N); 2 to 10 times "
        f"the width of a key ({lm.projection(layers[-1]).d_in}) are enough.",
    )
    with _bar(layers, n_tokens, place.tokens) as progress:
        for batch in _batches(rest, n_tokens - place.tokens):
            sums.add(_keys(lm, modules, batch))
            tokens = sum(map(len, batch))
            place = Place(place.sequences + len(batch), place.tokens + tokens)
            checkpoint.keep(sums, place)
            progress.update(tokens)
            cost.update(tokens)
    return sums


def growing(
    lm: LM,
    layers: Sequence[int],
    text: Iterable[Sequence[int]],
    n_tokens: int,
    sizes: Sequence[int],
) -> Iterator[Sums]:
    """What :func:`collected` sums, after each of ``sizes`` (ascending) keys; from one pass.

    A size that is not reached is left out.

    The trap: it is one object that grows.
    """
    sums, modules = _start(lm, layers)
    ahead = list(sizes)
    with _bar(layers, ahead[-1]) as progress:
        for batch in _batches(text, n_tokens):
            keys = _keys(lm, modules, batch)
            while ahead and sums.seen + len(keys[0]) >= ahead[0]:
                wanted = ahead.pop(0) - sums.seen
                sums.add([own[:wanted] for own in keys])
                keys = [own[wanted:] for own in keys]
                yield sums
            if not ahead:
                return
            sums.add(keys)
            progress.update(len(keys[0]))


def _start(lm: LM, layers: Sequence[int]) -> tuple[Sums, list[nn.Module]]:
    projections = [lm.projection(layer) for layer in layers]
    sums = Sums([p.d_in for p in projections], [p.device for p in projections])
    return sums, [p.module for p in projections]


def _bar(layers: Sequence[int], n_tokens: int, done: int = 0) -> Any:
    return bar(n_tokens, f"second moments of {len(layers)} layers", "token", done=done)


def _keys(
    lm: LM, modules: Sequence[nn.Module], sequences: Sequence[Sequence[int]]
) -> list[torch.Tensor]:
    """What goes into each module at every real token, ``(tokens, d_in)``, in the text's order."""
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
    """A batch, what else the call needs, and which of the edited column's positions are real.

    Where a decoder is edited the encoder reads the first half and the decoder the second.
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
        if size >= BUDGET or total >= n_tokens:
            yield batch
            batch, size = [], 0
        if total >= n_tokens:
            return
    if batch:
        yield batch
