"""Autograd with less memory: saved tensors that follow from stored ones are recomputed.

A forward pass saves much that is stored elsewhere: keys and values are repeated for every query
head of a group, those of the prefix lie in the cache, and a gated MLP's activation follows from its
input. Such tensors are recomputed in the backward pass, from the same numbers by the same
operations, so every gradient has the same bits. Other saved tensors are copied into one buffer
pool; left in place, they fragment the heap to twice their size. Offloaded weights are read again
instead of being saved, which would bring the whole model into memory.

On SmolLM2-135M an edit's token takes 0.6 MB instead of 1.1 to 2.1.

What can be recomputed is recognised by private attributes of autograd's nodes (``SiluBackward0``,
``_saved_self``), which torch may change in any version: last checked with torch 2.13. So
:func:`recomputation_is_exact` compares gradients on a small graph once per process, and where they
differ, or the attributes are gone, plain autograd is used (more memory, the same gradients).
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from easyeditor.lm.model import LM
from easyeditor.lm.weights import WeightHandle, weight_handle

log = logging.getLogger(__name__)

POOL_BYTES = 64 * 2**20
"""Size of one buffer; pages that are not written to take no memory."""
ALIGNMENT_BYTES = 64
"""Tensors start at multiples of this."""

Recompute = Callable[[], torch.Tensor]
"""Computes a saved tensor again."""


class BufferPool:
    """Buffers for the saved tensors of one forward pass at a time, reused by the next pass."""

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []
        self._buffer, self._used = 0, 0
        self._lent: list[weakref.ref[torch.Tensor]] = []

    def clear(self) -> None:
        """Start over; if tensors of an earlier pass are still in use, in new buffers."""
        if any(ref() is not None for ref in self._lent):
            self._buffers = []
        self._buffer, self._used = 0, 0
        self._lent = []

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of the tensor, placed behind the last one."""
        size = tensor.numel() * tensor.element_size()
        while self._buffer < len(self._buffers) and self._used + size > len(
            self._buffers[self._buffer]
        ):
            self._buffer, self._used = self._buffer + 1, 0
        if self._buffer == len(self._buffers):
            self._buffers.append(torch.empty(max(POOL_BYTES, size), dtype=torch.uint8))
        place = self._buffers[self._buffer][self._used : self._used + size]
        place = place.view(tensor.dtype).as_strided(tensor.shape, _strides(tensor)).copy_(tensor)
        self._used += -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        self._lent.append(weakref.ref(place))
        return place


def _strides(tensor: torch.Tensor) -> tuple[int, ...]:
    """Strides of a copy; a transposed tensor stays one, as products would round differently."""
    if tensor.is_contiguous():
        return tensor.stride()
    return torch.empty_like(tensor, device="meta").stride()


class SavedTensors:
    """The saved tensors of one forward pass.

    Attributes:
        bytes: their size, without the weights.
    """

    def __init__(self, weights: set[int], pool: BufferPool) -> None:
        self.bytes = 0
        self._weights, self._pool = weights, pool
        self._counted: set[int] = set()
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], int, torch.Tensor]] = {}

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of the tensor without its graph; the same one if it is saved more than once."""
        if tensor.untyped_storage().data_ptr() in self._weights:
            return tensor.detach()
        result = self._known.get(id(tensor))
        if result is not None and result[0]() is tensor and result[1] == tensor._version:
            return result[2]
        stored = tensor.detach()
        if stored.device.type == "cpu":  # other devices' allocators leave no holes
            stored = self._pool.put(stored)
        self.bytes += stored.numel() * stored.element_size()
        self._known[id(tensor)] = (weakref.ref(tensor), tensor._version, stored)
        return stored

    def count(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself without its graph, as plain autograd saves it; only counted."""
        start = tensor.untyped_storage().data_ptr()
        if start not in self._weights and start not in self._counted:
            self._counted.add(start)
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor.detach()


@contextmanager
def low_memory_autograd(
    lm: LM, pool: BufferPool, past: Sequence[torch.Tensor] = ()
) -> Iterator[SavedTensors]:
    """A context: forward passes inside save less for backward; gradients have the same bits.

    Args:
        lm: the model that runs.
        pool: buffers that the saved tensors are copied into. The trap: passes that share a pool
            must finish their backward pass before the next forward pass, or new buffers are used.
        past: keys and values that are stored anyway, ``(rows, heads, length, width)``, in the
            order in which the pass reads them.
    """
    pool.clear()
    stored = SavedTensors({p.untyped_storage().data_ptr() for p in lm.model.parameters()}, pool)
    offloaded = _offloaded(lm)
    exact = recomputation_is_exact()

    def pack(tensor: torch.Tensor) -> torch.Tensor | Recompute:
        again = _weight(tensor, offloaded)
        if again is not None:
            return again
        return recomputing(tensor) if exact else stored.count(tensor)

    recomputing = _recomputing(stored, past)
    with saved_tensors_hooks(pack, _unpack):
        yield stored


def _unpack(packed: torch.Tensor | Recompute) -> torch.Tensor:
    return packed if isinstance(packed, torch.Tensor) else packed()


def _recomputing(
    stored: SavedTensors, past: Sequence[torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor | Recompute]:
    """A pack hook that saves only what does not follow from ``past`` and other saved tensors."""
    waiting = list(reversed(past))

    def pack(tensor: torch.Tensor) -> torch.Tensor | Recompute:
        again = _activation(tensor)
        if again is not None:
            return again
        if tensor.dim() != 4:
            return stored.keep(tensor)
        group = _repeats(tensor)
        few = tensor[:, ::group]
        known = waiting.pop() if waiting and _starts_with(few, waiting[-1]) else None
        if group == 1 and known is None:
            return stored.keep(tensor)
        new = stored.keep(few[:, :, 0 if known is None else known.shape[2] :])
        return lambda: _whole(known, new, group)

    return pack


@cache
def recomputation_is_exact() -> bool:
    """Whether gradients with recomputed tensors have the bits of plain autograd; checked once.

    The graph holds what is recognised: SiLU, both GELUs, heads repeated for a group of queries, and
    keys that begin with stored ones.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 16, generator=generator)
    past = torch.randn(2, 2, 2, 4, generator=generator)

    def gradients(delta: torch.Tensor) -> torch.Tensor:
        hidden = x + delta
        for activated in (
            torch.nn.functional.silu(hidden * 2),
            torch.nn.functional.gelu(hidden * 3),
            torch.nn.functional.gelu(hidden + 1, approximate="tanh"),
        ):
            hidden = hidden * activated
        queries = hidden.view(2, 3, 4, 4).transpose(1, 2)
        keys = torch.cat([past, queries[:, :2] * 2], 2)
        keys = keys[:, :, None].expand(2, 2, 2, 5, 4).reshape(2, 4, 5, 4)  # two queries a head
        attended = torch.nn.functional.scaled_dot_product_attention(queries, keys, keys)
        attended.square().sum().backward()  # type: ignore[no-untyped-call]
        assert delta.grad is not None
        return delta.grad

    try:
        with torch.inference_mode(False), torch.enable_grad():
            plain = gradients(torch.zeros_like(x, requires_grad=True))
            pack = _recomputing(SavedTensors(set(), BufferPool()), [past])
            with saved_tensors_hooks(pack, _unpack):
                exact = torch.equal(gradients(torch.zeros_like(x, requires_grad=True)), plain)
    except (AttributeError, RuntimeError, TypeError, ValueError, IndexError) as error:
        log.debug("recomputing saved tensors: %r", error)
        exact = False
    if not exact:
        log.warning(
            "Saved tensors cannot be recomputed with torch %s: searches take more memory.",
            torch.__version__,
        )
    return exact


_Place = tuple[dict[str, nn.Parameter | None], str, WeightHandle]


def _offloaded(lm: LM) -> list[_Place]:
    """Where offloaded weights appear while their module runs, and the handles that read them."""
    result = []
    for path, parameter in lm.model.named_parameters():
        if parameter.is_meta:
            owner, _, name = path.rpartition(".")
            parameters = lm.model.get_submodule(owner)._parameters
            result.append((parameters, name, weight_handle(lm.model, path)))
    return result


def _weight(tensor: torch.Tensor, places: Sequence[_Place]) -> Recompute | None:
    """Reads an offloaded weight, or a view of one, again; None for other tensors."""
    whole = tensor if tensor._base is None else tensor._base
    if not places or not isinstance(whole, nn.Parameter) or not whole.is_contiguous():
        return None
    storage = next((s for parameters, name, s in places if parameters.get(name) is whole), None)
    if storage is None:
        return None
    device, shape, stride = tensor.device, tensor.shape, tensor.stride()
    offset = tensor.storage_offset()

    def again() -> torch.Tensor:
        return storage.read_weight().to(device).contiguous().as_strided(shape, stride, offset)

    return again


def _activation(tensor: torch.Tensor) -> Recompute | None:
    """Recomputes the output of SiLU or GELU from its input, which is saved for its backward."""
    node: Any = tensor.grad_fn
    name = "" if node is None else node.name()
    if name == "SiluBackward0":
        return lambda: torch.nn.functional.silu(node._saved_self)
    if name == "GeluBackward0":
        kind = node._saved_approximate
        return lambda: torch.nn.functional.gelu(node._saved_self, approximate=kind)
    return None


def _repeats(tensor: torch.Tensor) -> int:
    """How often each head of keys or values is repeated, by the graph of ``repeat_kv``; else 1."""
    node: Any = tensor.grad_fn
    expanded = node
    for name in ("UnsafeViewBackward0", "CloneBackward0", "ExpandBackward0"):
        if node is None or node.name() != name:
            return 1
        expanded, node = node, node.next_functions[0][0]
    rows, heads, *rest = tensor.shape
    before = list(expanded._saved_self_sym_sizes)
    return heads // before[1] if before == [rows, before[1], 1, *rest] else 1


def _starts_with(tensor: torch.Tensor, past: torch.Tensor) -> bool:
    rows, heads, length, width = past.shape
    fits = tensor.shape[2] > length and tensor.shape == (rows, heads, tensor.shape[2], width)
    return fits and torch.equal(tensor[:, :, :length], past)


def _whole(past: torch.Tensor | None, new: torch.Tensor, group: int) -> torch.Tensor:
    """Keys or values of stored and new tokens, repeated for every query of a group."""
    whole = new if past is None else torch.cat([past, new], 2)
    return whole.repeat_interleave(group, 1) if group > 1 else whole
