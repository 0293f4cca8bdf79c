"""Changing a model for a while, and putting it back whatever interrupts that.

What is to be undone is written down before anything is changed, and undone twice: an exception
between any two lines, ``KeyboardInterrupt`` included, leaves at least one of the two whole. So an
``undo`` must do no harm when nothing was changed yet, or when it has run already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

Hook = Callable[..., Any]


@contextmanager
def restoring(undo: Callable[[], None]) -> Iterator[None]:
    """Whatever is changed inside is undone after; ``undo`` runs twice, and changes nothing anew."""
    try:
        try:
            yield
        finally:
            undo()
    finally:
        undo()


@contextmanager
def hooks_on(
    hooks: Sequence[tuple[nn.Module, Hook]], *, before: bool = False, with_kwargs: bool = False
) -> Iterator[None]:
    """Forward hooks on modules inside, pre-hooks with ``before``; none of them after."""

    def undo() -> None:
        for module, hook in hooks:
            remove_hook(module, hook)

    with restoring(undo):
        for module, hook in hooks:
            if before:
                module.register_forward_pre_hook(hook, with_kwargs=with_kwargs)
            else:
                module.register_forward_hook(hook, with_kwargs=with_kwargs)
        yield


def remove_hook(module: nn.Module, hook: Hook) -> None:
    """Take one hook off a module, if it is there."""
    flags: tuple[dict[int, bool], ...] = (
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
        module._forward_pre_hooks_with_kwargs,
    )
    hooks: dict[int, Hook]
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key in [key for key, present in hooks.items() if present is hook]:
            for flag in flags:
                flag.pop(key, None)
            del hooks[key]
