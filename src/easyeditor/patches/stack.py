"""The patches a model carries, and the bits it had before.

The stack lives on the model itself, so it can be neither lost nor confused with another model's.
A parameter is given another tensor, never written into: its storage may be shared with an edited
copy. Edited weights are always rebuilt from the saved original bits plus the patches that remain,
summed in float32 or better and rounded once: undoing in any order is exact, and undoing everything
puts the saved tensor back. Nothing is ever subtracted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from easyeditor.errors import PatchMismatchError, PatchStateError

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
        saved: ``{parameter path: its original bits}`` of every matrix the patches touch.
    """

    def __init__(self) -> None:
        self.patches: list[Change] = []
        self.saved: dict[str, torch.Tensor] = {}

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


def originals(model: nn.Module) -> dict[str, torch.Tensor]:
    """Original bits of the matrices that are edited now."""
    return stack_of(model).saved if is_patched(model) else {}


def push(model: nn.Module, patch: Change) -> None:
    """Apply ``patch`` on top.

    Raises:
        PatchStateError: it is applied already.
        PatchMismatchError: the model lacks a parameter, or has it in another shape.
    """
    stack = stack_of(model)
    if any(applied is patch for applied in stack.patches):
        raise PatchStateError("This patch is applied to the model already; undo it first.")
    parameters = _parameters(model, patch)
    for path, parameter in parameters.items():
        if path not in stack.saved:
            stack.saved[path] = parameter.data
    stack.patches.append(patch)
    try:
        _rebuild(model, stack, parameters)
        _reroute(model, stack)
    except BaseException:
        del stack.patches[-1]
        _rebuild(model, stack, parameters)
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
    _rebuild(model, stack, _parameters(model, patch))
    _reroute(model, stack)


def exchange(model: nn.Module, old: Sequence[Change], new: Change) -> None:
    """Let ``new`` stand for ``old``, the topmost patches; it must hold the same parts in order."""
    stack = stack_of(model)
    count = len(old)
    assert [id(p) for p in stack.patches[len(stack.patches) - count :]] == [id(p) for p in old]
    stack.patches[len(stack.patches) - count :] = [new]
    _reroute(model, stack)


@contextmanager
def carrying(model: nn.Module, patch: Change) -> Iterator[None]:
    """The model carries ``patch`` inside and its former tensors after, whatever happens.

    Nested uses must be left in reverse order.
    """
    stack = stack_of(model)
    parameters = _parameters(model, patch)
    former = {path: parameter.data for path, parameter in parameters.items()}
    unedited = [path for path in parameters if path not in stack.saved]
    push(model, patch)
    try:
        yield
    finally:
        stack.patches = [applied for applied in stack.patches if applied is not patch]
        for path, parameter in parameters.items():
            parameter.data = former[path]
        for path in unedited:
            del stack.saved[path]
        _reroute(model, stack)


def _parameters(model: nn.Module, patch: Change) -> dict[str, nn.Parameter]:
    named = dict(model.named_parameters())
    for path, shape in patch.shapes.items():
        parameter = named.get(path)
        stored = shape[::-1] if patch.transposed else shape
        if parameter is None or tuple(parameter.shape) != stored:
            has = "no such weight" if parameter is None else tuple(parameter.shape)
            raise PatchMismatchError(
                f"The patch changes {path} of shape {shape} (d_in, d_out); the model has {has}"
                f"{', stored (d_out, d_in)' * (parameter is not None and patch.transposed)}."
            )
    return {path: named[path] for path in patch.entries}


def _rebuild(model: nn.Module, stack: PatchStack, parameters: dict[str, nn.Parameter]) -> None:
    for path, parameter in parameters.items():
        original = stack.saved[path]
        acting = [patch for patch in stack.patches if path in patch.entries]
        if acting:
            total = original.float() if original.dtype != torch.float64 else original.clone()
            total = total.clone() if total is original else total
            for patch in acting:
                patch.add_to(path, total)
            parameter.data = total.to(parameter.dtype)
        else:
            parameter.data = original.to(parameter.device, parameter.dtype)
            del stack.saved[path]


def _reroute(model: nn.Module, stack: PatchStack) -> None:
    """Let the model be asked through the patches that change no weight, if there are any."""
    from easyeditor.patches.route import route  # which stands on this module

    route(model, stack.patches)
