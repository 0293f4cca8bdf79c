"""The size of a model, and memory that is free here but not yet free for others."""

from __future__ import annotations

import ctypes
import sys

from easyeditor.lm.model import LM
from easyeditor.lm.weights import named_weights


def model_bytes(lm: LM) -> int:
    """What the weights take, wherever they lie."""
    return sum(p.numel() * p.element_size() for _, p in named_weights(lm.model))


def room(lm: LM, percent: int) -> int:
    """Bytes that work beside the model may take: so much of its size, and at least 32 MB."""
    return max(model_bytes(lm) * percent // 100, 32 * 2**20)


def give_back() -> None:
    """Hand freed memory back to the system where the C library keeps it (glibc).

    After many small pieces it keeps as much as was ever in use, and whoever comes next is then
    counted on top of it.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
