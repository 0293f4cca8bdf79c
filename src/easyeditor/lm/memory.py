"""The size of a model in bytes, and returning freed memory to the operating system."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from easyeditor.lm.model import LM
from easyeditor.lm.weights import named_weights

P = ParamSpec("P")
R = TypeVar("R")


def model_bytes(lm: LM) -> int:
    """Bytes of the weights, wherever they are stored."""
    return sum(p.numel() * p.element_size() for _, p in named_weights(lm.model))


def room(lm: LM, percent: int) -> int:
    """Memory budget of work beside the model in bytes: ``percent`` of its size, at least 32 MB."""
    return max(model_bytes(lm) * percent // 100, 32 * 2**20)


def releasing_memory(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: return freed heap memory to the operating system after each call."""

    @wraps(function)
    def wrapper(*args: P.args, **options: P.kwargs) -> R:
        try:
            return function(*args, **options)
        finally:
            give_back()

    return wrapper


def give_back() -> None:
    """Return freed heap memory to the operating system (glibc's ``malloc_trim``).

    After many small allocations glibc keeps as much as was ever in use, and what is allocated next
    comes on top of it.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
