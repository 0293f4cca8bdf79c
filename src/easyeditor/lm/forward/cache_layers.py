"""Layers of a key/value cache that a forward pass reads without adding to them."""

from __future__ import annotations

import copy
from typing import Any

from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


class _NonRecordingLayer(DynamicLayer):
    """Returns stored and new keys and values together, but stores only the former."""

    keys: Any
    values: Any

    def update(self, *args: Any, **more: Any) -> Any:
        past: tuple[Any, Any] = self.keys, self.values
        whole = super().update(*args, **more)
        self.keys, self.values = past
        return whole


class _NonRecordingWindowLayer(_NonRecordingLayer, DynamicSlidingWindowLayer):
    """The same for sliding-window attention."""


NON_RECORDING = {
    DynamicLayer: _NonRecordingLayer,
    DynamicSlidingWindowLayer: _NonRecordingWindowLayer,
}


def non_recording(layer: Any) -> Any:
    """A shallow copy of a cache layer that stores nothing new."""
    copied = copy.copy(layer)
    if layer.is_initialized:
        copied.__class__ = NON_RECORDING[type(layer)]
    return copied
