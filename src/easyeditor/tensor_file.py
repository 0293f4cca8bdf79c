"""Safetensors files with a JSON header and a digest; no pickle, no code is run.

The header is JSON under a key of the file's metadata, and stands beside the SHA-256 of header and
tensors, which is checked when the file is read: one changed bit anywhere is found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from easyeditor.errors import EasyEditError
from easyeditor.files import written_whole
from easyeditor.patch_header import parsed_header

DIGEST = "sha256"
"""The key of the digest in the file's metadata."""


@dataclass(frozen=True, slots=True)
class TensorFile:
    """What a file holds: its header, its tensors on the CPU, and their digest.

    ``digest`` is empty for a file from before there were digests.
    """

    header: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    digest: str


def content_digest(header: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a header's text and of the tensors: names, precisions, shapes and numbers."""
    digest = hashlib.sha256(header.encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        line = f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0"
        digest.update(line.encode("utf-8", "surrogatepass"))
        numbers: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        digest.update(memoryview(numbers))
    return digest.hexdigest()


def write_tensor_file(
    file: Path, tensors: Mapping[str, torch.Tensor], key: str, header: Mapping[str, Any]
) -> Path:
    """Write ``tensors`` with ``header`` under ``key``; whole or not at all. Returns the file.

    Raises:
        OSError: the place cannot be written.
    """
    # Cloned, so that tensors which share storage (tied embeddings) are written twice, not refused.
    whole = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    text = json.dumps(header, ensure_ascii=False)
    metadata = {key: text, DIGEST: content_digest(text, whole)}
    try:
        with written_whole(file, parents=True) as beside:
            save_file(whole, beside, metadata=metadata)
            _sort_metadata(beside)
    except SafetensorError as error:  # its own error, also for a full disk
        raise OSError(f"{file} cannot be written: {error}") from error
    return file


def _sort_metadata(file: Path) -> None:
    """Write the metadata in the order of its keys: safetensors writes it in a random one.

    So equal contents are equal files, to the bit.
    """
    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:  # as written, and padded as safetensors pads it
            opened.seek(8)
            opened.write(text.ljust(size))


def read_tensor_file(
    file: Path, key: str, what: str, advice: str, error_class: type[EasyEditError]
) -> TensorFile:
    """The content of a file with a header under ``key``; ``what`` and ``advice`` go into errors.

    Raises:
        EasyEditError: of ``error_class``: truncated or damaged, not safetensors, without such a
            header, or with one that is no JSON object of bounded size and depth.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise error_class(
            f"{file} cannot be read as {what} ({error}): it is damaged or not safetensors. {advice}"
        ) from None
    text, digest = metadata.get(key), metadata.get(DIGEST, "")
    if text is None:
        raise error_class(f"{file} is safetensors but not {what} (it has no {key!r} header).")
    if digest and digest != content_digest(text, tensors):
        raise error_class(
            f"{file} is damaged: it is not what was written there (its SHA-256 differs). {advice}"
        )
    return TensorFile(_parsed(file, text, error_class), tensors, digest)


def _parsed(file: Path, text: str, error_class: type[EasyEditError]) -> dict[str, Any]:
    try:
        return parsed_header(text)
    except ValueError as error:
        raise error_class(f"{file} has a header that does not fit its content: {error}.") from None
