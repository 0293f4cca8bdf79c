"""The former place of the LoRA export, which is :mod:`easyeditor.export.lora` now.

Its names still lead there, by name, because a module imports only its own floor and those below.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MOVED = {
    "export_lora": "easyeditor.export.lora",
    "LoraExport": "easyeditor.export.lora",
    "lora_factors": "easyeditor.export.factors",
    "lora_rank": "easyeditor.export.factors",
    "DENSE_RANK": "easyeditor.export.factors",
}


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MOVED[name]), name)
