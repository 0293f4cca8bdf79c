"""The size of a model, and memory that is free here but not yet free for others."""

from __future__ import annotations

import ctypes
import sys

from easyeditor.lm.model import LM


def model_bytes(lm: LM) -> int:
    """What the weights take."""
    return sum(p.numel() * p.element_size() for p in lm.model.parameters())


def give_back() -> None:
    """Hand freed memory back to the system where the C library keeps it (glibc).

    After many small pieces it keeps as much as was ever in use, and whoever comes next is then
    counted on top of it.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
