"""Safetensors files with a JSON header that says what is in them; no pickle, no code is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from easyeditor.errors import EasyEditError
from easyeditor.files import written_whole


def write_tensor_file(
    file: Path, tensors: Mapping[str, torch.Tensor], key: str, header: Mapping[str, Any]
) -> Path:
    """Write ``tensors`` with ``header`` under ``key``; whole or not at all. Returns the file.

    Raises:
        OSError: the place cannot be written.
    """
    # Cloned, so that tensors which share storage (tied embeddings) are written twice, not refused.
    kept = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with written_whole(file) as beside:
            save_file(kept, beside, metadata={key: json.dumps(header, ensure_ascii=False)})
    except SafetensorError as error:  # its own error, also for a full disk
        raise OSError(f"{file} cannot be written: {error}") from error
    return file


def read_tensor_file(
    file: Path, key: str, what: str, advice: str, error_class: type[EasyEditError]
) -> tuple[str, dict[str, torch.Tensor]]:
    """The header under ``key``, as text, and the tensors; ``what`` and ``advice`` go into errors.

    Raises:
        EasyEditError: of ``error_class``: truncated, not safetensors, or without such a header.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            header = (opened.metadata() or {}).get(key)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise error_class(
            f"{file} cannot be read as {what} ({error}): it is damaged or not safetensors. {advice}"
        ) from None
    if header is None:
        raise error_class(f"{file} is safetensors but not {what} (it has no {key!r} header).")
    return str(header), tensors
