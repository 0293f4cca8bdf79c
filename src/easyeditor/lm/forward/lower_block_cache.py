"""Cache of the hidden states below the lowest edited block, per token sequence.

A training that changes only a model's last blocks runs the same sequences many times through blocks
that never change. Here each sequence passes them once; then the model's own forward runs with those
blocks replaced by stubs, as in :mod:`easyeditor.lm.forward.partial`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from easyeditor.lm.forward.context import has_adapters
from easyeditor.lm.forward.stubs import stubbed
from easyeditor.lm.hooks import hidden_of, reading_output, stopping, with_hidden
from easyeditor.lm.memory import room
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Row

STORED_PERCENT = 14
"""Hidden states may take so much of the model's size."""


class LowerBlockCache:
    """Logits of a causal model whose blocks below ``start`` do not change.

    Each sequence passes those blocks in a batch of its own, so its stored states do not depend on
    other sequences: a resumed training has the same bits. The trap: that makes the first pass over
    a set slower on an accelerator.
    """

    def __init__(self, lm: LM, start: int) -> None:
        self.lm, self.start = lm, start
        self._stored: dict[tuple[int, ...], torch.Tensor] = {}
        self._like: Any = None

    @staticmethod
    def bytes_for(lm: LM, rows: Iterable[Row]) -> int:
        """Bytes that the states of these rows take."""
        width = lm.model.get_input_embeddings().weight
        tokens = sum(len(ids) for ids in {row.ids[:-1] for row in rows})
        return int(tokens * width.shape[1] * width.element_size())

    def target_logits(self, rows: Sequence[Row]) -> torch.Tensor:
        """As :meth:`LM.target_logits`."""
        hidden = [self._below(row.ids[:-1]) for row in rows]
        stored = torch.nn.utils.rnn.pad_sequence(hidden, batch_first=True)
        with stubbed(self.lm.blocks, self.start, with_hidden(self._like, stored)):
            return self.lm.target_logits(rows)

    @torch.no_grad()
    def _below(self, ids: tuple[int, ...]) -> torch.Tensor:
        if ids not in self._stored:
            below = self.lm.blocks[self.start - 1]
            with reading_output(below, stop=True) as result, stopping():
                self.lm.call(self.lm.pad([ids]))
            self._like = result[0]
            self._stored[ids] = hidden_of(result[0])[0].clone()
        return self._stored[ids]

    def agrees(self, rows: Sequence[Row]) -> bool:
        """Whether it gives the plain logits on these rows; models with other states may not."""
        with self.lm.at_rest(), torch.no_grad():
            fast = self.target_logits(rows).float().log_softmax(-1)
            slow = self.lm.target_logits(rows).float().log_softmax(-1)
        full = next(self.lm.model.parameters()).dtype == torch.float32
        return torch.allclose(fast, slow, rtol=0, atol=1e-3 if full else 0.25)


def first_block(lm: LM, paths: Iterable[str]) -> int:
    """The lowest block that holds one of these parameters; 0 where nothing below can be stored.

    That is an encoder-decoder, whose decoder reads the encoder at every block, and parameters
    outside the blocks.
    """
    blocks = f"{lm.family.decoder.blocks}."
    if lm.encoder_decoder or not all(path.startswith(blocks) for path in paths):
        return 0
    return min(int(path.removeprefix(blocks).partition(".")[0]) for path in paths)


def logits_above(
    lm: LM, paths: Sequence[str], rows: Sequence[Row]
) -> Callable[[Sequence[Row]], torch.Tensor]:
    """``lm.target_logits`` for a training of these parameters on ``rows``.

    It starts from stored hidden states below the lowest of the parameters where they fit into
    memory and give the plain logits on the shortest and the longest row. Adapters decide by the
    whole pass, so nothing is stored for a model that carries any. Call it inside ``lm.at_rest()``.
    """
    start = first_block(lm, paths)
    fits = LowerBlockCache.bytes_for(lm, rows) <= room(lm, STORED_PERCENT)
    if not start or not fits or has_adapters(lm.model):
        return lm.target_logits
    cache = LowerBlockCache(lm, start)
    by_length = sorted(rows, key=lambda row: len(row.ids))
    try:
        exact = cache.agrees([by_length[0], by_length[-1]])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        exact = False  # a block that expects more than the one below hands on
    return cache.target_logits if exact else lm.target_logits
