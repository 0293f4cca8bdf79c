"""The patches a model carries, and the bits it had before.

The stack lives on the model itself, so it can be neither lost nor confused with another model's.
Where a weight lies (in memory, offloaded, quantized) is :mod:`easyeditor.lm.weights`'s to know; it
is put in place of another, never written into, as that one may be shared with an edited copy.
Edited weights are always rebuilt from the unedited ones plus the patches that remain, summed in
float32 or better and rounded once: undoing in any order is exact, and undoing everything puts back
what lay there before. Nothing is ever subtracted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from easyeditor.errors import PatchMismatchError, PatchStateError
from easyeditor.lm.weights import WeightHandle, weight_handle

_ATTRIBUTE = "easyedit_stack"


class Change(Protocol):
    """What the stack needs to know of a weight patch."""

    @property
    def entries(self) -> Mapping[str, Any]:
        """``{parameter path: …}``."""
        ...

    @property
    def transposed(self) -> bool:
        """Whether the model stores these matrices ``(d_out, d_in)``."""
        ...

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """``{parameter path: (d_in, d_out)}``."""
        ...

    def add_to(self, path: str, weight: torch.Tensor) -> None:
        """Add the change of ``path`` to ``weight`` in place."""
        ...


class PatchStack:
    """The patches applied to one model, oldest first.

    Attributes:
        patches: what is applied now.
        saved: ``{parameter path: what lay there}`` of every matrix the patches touch, see
            :class:`~easyeditor.lm.weights.WeightHandle`: a tensor, or None for what is no tensor.
    """

    def __init__(self) -> None:
        self.patches: list[Change] = []
        self.saved: dict[str, torch.Tensor | None] = {}

    def fork(self) -> PatchStack:
        """A stack for a model that shares weights with this one."""
        other = PatchStack()
        other.patches = list(self.patches)
        other.saved = dict(self.saved)
        return other


def stack_of(model: nn.Module) -> PatchStack:
    """The model's stack; made on first use."""
    stack = getattr(model, _ATTRIBUTE, None)
    if stack is None:
        stack = PatchStack()
        set_stack(model, stack)
    assert isinstance(stack, PatchStack)
    return stack


def set_stack(model: nn.Module, stack: PatchStack) -> None:
    """Give the model this stack."""
    setattr(model, _ATTRIBUTE, stack)


def is_patched(model: nn.Module) -> bool:
    """Whether any patch is applied."""
    return bool(getattr(model, _ATTRIBUTE, None) and stack_of(model).patches)


def unedited(model: nn.Module, path: str, storage: WeightHandle) -> torch.Tensor | None:
    """What lies, or lay before the patches, in a weight's storage."""
    saved = stack_of(model).saved if is_patched(model) else {}
    return saved.get(path, storage.content)


def push(model: nn.Module, patch: Change) -> None:
    """Apply ``patch`` on top.

    Raises:
        PatchStateError: it is applied already.
        PatchMismatchError: the model lacks a parameter, or has it in another shape.
        UnsupportedModelError: a weight is stored in a way that cannot be read.
    """
    stack = stack_of(model)
    if any(applied is patch for applied in stack.patches):
        raise PatchStateError("This patch is applied to the model already; undo it first.")
    storages = _storages(model, patch)
    for path, storage in storages.items():
        if path not in stack.saved:
            stack.saved[path] = storage.content
    stack.patches.append(patch)
    try:
        _rebuild(stack, storages)
        _reroute(model, stack)
    except BaseException:
        del stack.patches[-1]
        _rebuild(stack, storages)
        _reroute(model, stack)
        raise


def pop(model: nn.Module, patch: Change) -> None:
    """Take ``patch`` off, wherever in the stack it is.

    Raises:
        PatchStateError: it is not applied to this model.
    """
    stack = stack_of(model)
    where = [i for i, applied in enumerate(stack.patches) if applied is patch]
    if not where:
        raise PatchStateError(
            "This patch is not applied to this model, so there is nothing to undo. "
            f"Applied now: {len(stack.patches)} patches."
        )
    del stack.patches[where[0]]
    _rebuild(stack, _storages(model, patch))
    _reroute(model, stack)


def collapse(model: nn.Module, old: Sequence[Change], new: Change) -> None:
    """Let ``new`` stand for ``old``, the topmost patches; it must hold the same parts in order."""
    stack = stack_of(model)
    count = len(old)
    assert [id(p) for p in stack.patches[len(stack.patches) - count :]] == [id(p) for p in old]
    stack.patches[len(stack.patches) - count :] = [new]
    _reroute(model, stack)


@contextmanager
def applied(model: nn.Module, patch: Change) -> Iterator[None]:
    """The model carries ``patch`` inside and its former weights after, whatever happens.

    Nested uses must be left in reverse order.
    """
    stack = stack_of(model)
    storages = _storages(model, patch)
    former = {path: storage.content for path, storage in storages.items()}
    new = [path for path in storages if path not in stack.saved]
    push(model, patch)
    try:
        yield
    finally:
        stack.patches = [applied for applied in stack.patches if applied is not patch]
        for path, storage in storages.items():
            storage.put(former[path])
        for path in new:
            del stack.saved[path]
        _reroute(model, stack)


def _storages(model: nn.Module, patch: Change) -> dict[str, WeightHandle]:
    known = {name for name, _ in model.named_parameters()}
    found = {path: weight_handle(model, path) for path in patch.entries if path in known}
    for path, shape in patch.shapes.items():
        stored = shape[::-1] if patch.transposed else shape
        if path not in found or found[path].shape != stored:
            has = found[path].shape if path in found else "no such weight"
            raise PatchMismatchError(
                f"The patch changes {path} of shape {shape} (d_in, d_out); the model has {has}"
                f"{', stored (d_out, d_in)' * (path in found and patch.transposed)}."
            )
    return found


def _rebuild(stack: PatchStack, storages: Mapping[str, WeightHandle]) -> None:
    for path, storage in storages.items():
        acting = [patch for patch in stack.patches if path in patch.entries]
        if not acting:
            storage.put(stack.saved.pop(path))
            continue
        original = storage.read(stack.saved[path])
        wide = torch.promote_types(original.dtype, torch.float32)
        total = original.to(wide, copy=True)
        for patch in acting:
            patch.add_to(path, total)
        storage.put(total.to(storage.dtype))


def _reroute(model: nn.Module, stack: PatchStack) -> None:
    """Let the model be asked through the patches that change no weight, if there are any."""
    from easyeditor.patches.route import route  # which stands on this module

    route(model, stack.patches)
