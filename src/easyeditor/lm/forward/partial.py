"""Partial forward passes: only the blocks and tokens that a vector added at one token can change.

With causal attention a vector added to one layer's output at one token changes nothing before that
token and nothing below that layer. So the tokens before it are run once and leave their keys and
values in a cache; the rest is run once up to the layer; and each step starts from the stored hidden
states, in the model's own forward, with the lower blocks replaced by stubs.

:class:`FullForward` repeats everything and is exact for every model; :class:`PartialForward` must
give the same logits, which :func:`open_forward` checks once per model and site before it is used.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from easyeditor.lm.caches import LMCache
from easyeditor.lm.forward.activation_memory import BufferPool, low_memory_autograd
from easyeditor.lm.forward.cache_layers import NON_RECORDING, non_recording
from easyeditor.lm.forward.context import forward_generation
from easyeditor.lm.forward.prefix_cache import prefill
from easyeditor.lm.forward.shared_prefix import past_of
from easyeditor.lm.forward.stubs import stubbed
from easyeditor.lm.hooks import (
    added,
    adding,
    gathering,
    hidden_of,
    reading_output,
    rows_of,
    stopping,
)
from easyeditor.lm.image_tokens import has_image, whole_units
from easyeditor.lm.model import LM

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Site:
    """Where the vector is added: ``"block"``, the output of the whole block, or ``"down"``.

    That is the output of the MLP's down-projection itself (post-norms and residual multipliers
    come after it), or of the module of the block that ``path`` names. ``also`` names another one
    that gets a vector of its own; a row's vector is then both, one behind the other.
    """

    layer: int
    kind: Literal["down", "block"]
    path: str = ""
    also: str = ""

    def module(self, lm: LM) -> nn.Module:
        """The module whose output the vector is added to."""
        if self.path:
            return lm.model.get_submodule(self.path)
        if self.kind == "down":
            return lm.down_map(self.layer).module
        return lm.blocks[self.layer]

    def parts(self) -> list[Site]:
        """The places of the vectors, in their order: this one, and what ``also`` names."""
        second = Site(self.layer, "down", self.also)
        return [Site(self.layer, self.kind, self.path), *([second] if self.also else [])]

    @contextmanager
    def adding(
        self, lm: LM, rows: torch.Tensor, at: torch.Tensor, delta: torch.Tensor
    ) -> Iterator[None]:
        """A context: ``delta[rows]`` is added at the positions ``at`` of these rows.

        ``delta`` is ``(rows of the batch, width of all parts)``.
        """
        with ExitStack() as stack:
            parts = self.parts()
            for part, vectors in zip(parts, delta.chunk(len(parts), 1), strict=True):
                stack.enter_context(adding(part.module(lm), at, vectors, rows))
            yield

    @property
    def start(self) -> int:
        """The first block that has to run again."""
        return self.layer if self.kind == "down" else self.layer + 1


RESUMABLE: LMCache[tuple[Site, bool, bool, bool], bool] = LMCache(
    "whether a zero vector gives the plain logits; by site, prefix, images, images behind a prefix",
    forward_generation,  # adapters may change how the model can be run
)


@dataclass(frozen=True, slots=True)
class EditRow:
    """One token sequence of a search.

    Attributes:
        ids: its tokens.
        at: the position to whose hidden state the vector is added, in the column that is edited.
        reads: the positions whose logits are read; of a causal model none is before ``at``, as
            nothing changes there.
        decoder: of an encoder-decoder the targets that its decoder predicts, which ``reads`` are
            positions in; None for a causal model.
        also: later positions to whose hidden states the vector is added, too.
        fixed: vectors that are added all the while, each with its position before ``at``.
    """

    ids: tuple[int, ...]
    at: int
    reads: tuple[int, ...]
    decoder: tuple[int, ...] | None = None
    also: tuple[int, ...] = ()
    fixed: tuple[tuple[int, torch.Tensor], ...] = field(default=(), compare=False)

    @property
    def start(self) -> int:
        """The first position a step runs: in an encoder every token attends to every other.

        An image is run as a whole.
        """
        return whole_units(self.ids, self.at) if self.decoder is None else 0

    @property
    def past(self) -> int:
        """Number of tokens whose states are kept between steps."""
        return self.start if self.decoder is None else len(self.ids)

    def tokens(self, resume: bool) -> int:
        """Number of tokens run at every step."""
        return len(self.ids) + len(self.decoder or ()) - (self.start if resume else 0)


class DeltaForward(Protocol):
    """Forward passes of several rows, each with its own vector.

    Attributes:
        left: bytes that the last pass saved for its backward pass.
    """

    left: int

    @property
    def stored(self) -> int:
        """Bytes kept between steps."""
        ...

    def logits(self, delta: torch.Tensor) -> torch.Tensor:
        """``(rows, width)`` → ``(all reads, vocabulary)``, in the order of rows and reads."""
        ...

    def keep(self, rows: torch.Tensor) -> DeltaForward:
        """The rows with these indices, without computing stored states again."""
        ...


def _decoding(lm: LM, runs: Sequence[EditRow]) -> dict[str, Any]:
    """Further arguments of an encoder-decoder's forward pass: its decoder's tokens."""
    if not lm.encoder_decoder:
        return {}
    return {"decoder_input_ids": lm.decoder_inputs([run.decoder or () for run in runs])}


def _pairs(
    runs: Sequence[EditRow], of: Literal["at", "reads"], *, resumed: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and positions where vectors are added, or of all reads; ``resumed``: from ``start``."""
    positions = [run.reads if of == "reads" else (run.at, *run.also) for run in runs]
    pairs = [(i, at - runs[i].start * resumed) for i, some in enumerate(positions) for at in some]
    rows, at = zip(*pairs, strict=True) if pairs else ((), ())
    return torch.tensor(rows), torch.tensor(at)


@contextmanager
def _fixed(lm: LM, site: Site, runs: Sequence[EditRow], offsets: Sequence[int]) -> Iterator[None]:
    """A context: every row's fixed vectors are added; its tokens begin at its offset."""
    with ExitStack() as stack:
        for n in range(max(len(run.fixed) for run in runs)):
            rows = torch.tensor([i for i, run in enumerate(runs) if len(run.fixed) > n])
            pairs = [runs[i].fixed[n] for i in rows]
            at = torch.tensor([offsets[i] + p for i, (p, _) in zip(rows, pairs, strict=True)])
            delta = pairs[0][1].new_zeros(len(runs), len(pairs[0][1]))
            delta[rows] = torch.stack([vector for _, vector in pairs])
            stack.enter_context(site.adding(lm, rows, at, delta))
        yield


class FullForward:
    """Runs the whole forward pass with a hook at every step; exact for any architecture."""

    def __init__(
        self, lm: LM, site: Site, runs: Sequence[EditRow], pool: BufferPool | None = None
    ) -> None:
        self._lm, self._site, self._runs = lm, site, list(runs)
        self._pool = pool or BufferPool()
        self._batch = lm.pad([run.ids for run in runs])
        self._rows, self._at = _pairs(runs, "at", resumed=False)
        self._more = _decoding(lm, runs)
        self._index, self._positions = _pairs(runs, "reads", resumed=False)
        self.left = 0

    @property
    def stored(self) -> int:
        """See :class:`DeltaForward`."""
        return 0

    def logits(self, delta: torch.Tensor) -> torch.Tensor:
        """See :class:`DeltaForward`."""
        with (
            _fixed(self._lm, self._site, self._runs, [0] * len(self._runs)),
            self._site.adding(self._lm, self._rows, self._at, delta),
            gathering(self._lm.head, self._index, self._positions),
            low_memory_autograd(self._lm, self._pool) as stored,
        ):
            logits: torch.Tensor = self._lm.call(self._batch, **self._more).logits[0]
        self.left = stored.bytes
        return logits

    def keep(self, rows: torch.Tensor) -> FullForward:
        """See :class:`DeltaForward`."""
        stored = [self._runs[i] for i in rows.tolist()]
        return FullForward(self._lm, self._site, stored, self._pool)


class NotResumable(Exception):
    """The model's cache is not one of plain keys and values."""


class PartialForward:
    """Starts every step at the edited layer and token, from stored hidden states and cache.

    Raises:
        NotResumable: the model's cache is not a plain key/value cache.
    """

    def __init__(
        self, lm: LM, site: Site, runs: Sequence[EditRow], pool: BufferPool | None = None
    ) -> None:
        self._lm, self._site, self._runs = lm, site, list(runs)
        self._pool = pool or BufferPool()
        past = [run.ids[: run.start] for run in runs]
        suffix = self._batch = lm.pad_after(
            past, [run.ids[run.start :] for run in runs], width=max(map(len, past))
        )
        self._rows, self._at = _pairs(runs, "at", resumed=True)
        self._index, self._positions = _pairs(runs, "reads", resumed=True)
        self._more = _decoding(lm, runs)
        with torch.no_grad():
            if lm.encoder_decoder and not lm.in_encoder:  # what it read does not change
                encode = lm.model.get_encoder()
                self._more["encoder_outputs"] = encode(suffix.ids, attention_mask=suffix.mask)
            self._cache = self._run_prefix(past) if any(past) else None
            self._below = self._run_lower() if site.start else None
        self._drop_lower_cache()
        self.left = 0

    @property
    def stored(self) -> int:
        """See :class:`DeltaForward`."""
        tensors = self._past(self._site.start)
        if self._site.start:
            tensors.append(hidden_of(self._below))
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    def _run_prefix(self, past: Sequence[tuple[int, ...]]) -> Any:
        width = max(map(len, past))
        with _fixed(self._lm, self._site, self._runs, [width - len(ids) for ids in past]):
            fill = prefill if any(run.fixed for run in self._runs) else past_of
            cache = fill(self._lm, past)
        layers = cache.layers if type(cache) is DynamicCache else None
        if not layers or any(type(layer) not in NON_RECORDING for layer in layers):
            raise NotResumable
        return cache

    def _fresh(self) -> dict[str, Any]:
        """The cache arguments of one pass: copies, as a pass appends to its cache."""
        if self._cache is None:
            return dict(self._more)
        cache = copy.copy(self._cache)
        cache.layers = [non_recording(layer) for layer in self._cache.layers]
        return {"past_key_values": cache, "use_cache": True}

    def _run_lower(self) -> Any:
        below = self._lm.blocks[self._site.start - 1]
        with reading_output(below, stop=True) as result, stopping():
            self._lm.call(self._batch, **self._fresh())
        return result[0]

    def logits(self, delta: torch.Tensor) -> torch.Tensor:
        """See :class:`DeltaForward`."""
        site, lm = self._site, self._lm
        with ExitStack() as stack:
            if site.kind == "down":
                stack.enter_context(site.adding(lm, self._rows, self._at, delta))
                stored = self._below
            else:
                stored = added(self._below, self._at, delta, self._rows)
            if site.start:
                stack.enter_context(stubbed(lm.blocks, site.start, stored))
            stack.enter_context(gathering(lm.head, self._index, self._positions))
            cached = stack.enter_context(
                low_memory_autograd(lm, self._pool, self._past(site.layer + 1))
            )
            logits: torch.Tensor = lm.call(self._batch, **self._fresh()).logits[0]
        self.left = cached.bytes
        return logits

    def _past(self, start: int) -> list[torch.Tensor]:
        """Stored keys and values of the blocks from ``start`` on, in their order."""
        layers = [] if self._cache is None else self._cache.layers[start:]
        filled = [layer for layer in layers if layer.is_initialized]
        return [states for layer in filled for states in (layer.keys, layer.values)]

    def _drop_lower_cache(self) -> None:
        """Free keys and values of the blocks below; masks are made from their shapes alone."""
        for layer in [] if self._cache is None else self._cache.layers[: self._site.start]:
            if layer.is_initialized:
                layer.keys, layer.values = _hollow(layer.keys), _hollow(layer.values)

    def keep(self, rows: torch.Tensor) -> PartialForward:
        """See :class:`DeltaForward`."""
        stored = copy.copy(self)
        n = len(self._runs)
        stored._runs = [self._runs[i] for i in rows.tolist()]
        stored._index, stored._positions = _pairs(stored._runs, "reads", resumed=True)
        stored._rows, stored._at = _pairs(stored._runs, "at", resumed=True)
        stored._more = {name: rows_of(value, rows, n) for name, value in self._more.items()}
        stored._batch = self._batch.rows(rows)
        stored._below = rows_of(self._below, rows, n)
        if self._cache is not None:
            stored._cache = copy.copy(self._cache)
            stored._cache.layers = [copy.copy(layer) for layer in self._cache.layers]
            for layer in stored._cache.layers:
                if layer.is_initialized:
                    layer.keys = rows_of(layer.keys, rows, n)
                    layer.values = rows_of(layer.values, rows, n)
            stored._drop_lower_cache()
        return stored


def _hollow(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape that stores one number."""
    return tensor.new_zeros(()).expand(tensor.shape)


def open_forward(
    lm: LM,
    site: Site,
    runs: Sequence[EditRow],
    *,
    resume: bool = True,
    pool: BufferPool | None = None,
) -> DeltaForward:
    """A :class:`PartialForward` if it is exact for model and site, else a :class:`FullForward`.

    That is checked once per model and site, on the first rows: a zero vector must give the plain
    logits. Batches that share a ``pool`` must finish backward before the next forward.
    """
    if not resume:
        return FullForward(lm, site, runs, pool)
    # Without a prefix there is no cache, so that is a proof of its own.
    images = any(has_image(run.ids) for run in runs)
    behind = [run for run in runs if run.start and has_image(run.ids[run.start :])][:1]
    key = site, any(run.start for run in runs), images, bool(behind)
    proven = RESUMABLE(lm)
    if key not in proven:
        proven[key] = _agrees(lm, site, runs, behind)
        if not proven[key]:
            name = type(lm.model).__name__
            message = "%s cannot be resumed at layer %d; searching with whole forward passes."
            log.warning(message, name, site.layer)
    kind = PartialForward if proven[key] else FullForward
    return kind(lm, site, runs, pool)


def _agrees(lm: LM, site: Site, runs: Sequence[EditRow], also: Sequence[EditRow]) -> bool:
    # Between the shortest and the longest prefix lie all paddings of these runs. Behind a prefix
    # an image may need a mask of its own (Gemma 3).
    order = sorted(runs, key=lambda run: run.start or len(run.ids))
    sample = [order[0], order[-1], *also]
    width = 1 if site.path else lm.down_map(site.layer).d_out  # one zero stands for all
    zero = torch.zeros(len(sample), width * len(site.parts()), device=lm.device)
    try:
        with torch.no_grad():
            slow = FullForward(lm, site, sample).logits(zero).float().log_softmax(-1)
            fast = PartialForward(lm, site, sample).logits(zero).float().log_softmax(-1)
    except (NotResumable, AttributeError, IndexError, KeyError, TypeError, ValueError) as reason:
        log.debug("resuming %s: %r", type(lm.model).__name__, reason)
        return False
    if next(lm.model.parameters()).dtype == torch.float32:
        return torch.allclose(fast, slow, rtol=0, atol=1e-3)
    # In half precision the largest of 100,000 rounding errors says little; their mean square does.
    error = (fast - slow).square().mean().sqrt()
    return bool(error < 0.1 * slow.std())
