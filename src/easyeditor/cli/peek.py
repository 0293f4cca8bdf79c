"""What a patch file of weight changes holds, read with numpy: importing torch takes seconds."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from easyeditor.patch_header import MAX_HEADER_BYTES, PatchHeader, WeightsData, parsed_header

SHOWN = ("method", "edits", "hyperparams", "model_name", "model", "versions", "seconds")
TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64"}


def peek(file: Path) -> dict[str, Any] | None:
    """The header of a patch with ``matrices``: shape, rank and norm of the change of each weight.

    None for whatever is not plainly a whole patch of low-rank and dense changes: other kinds,
    former formats, damaged files. :func:`~easyeditor.patches.files.load_patch` reads those, or says
    what is wrong with them. The digest is checked as it is there.
    """
    try:
        return _read(file)
    except (ArithmeticError, LookupError, OSError, RecursionError, TypeError, ValueError):
        return None


def _read(file: Path) -> dict[str, Any] | None:
    content = np.memmap(file, dtype=np.uint8, mode="r")
    length = int.from_bytes(content[:8].tobytes(), "little")
    if length > min(MAX_HEADER_BYTES, len(content) - 8):
        return None
    table = json.loads(content[8 : 8 + length].tobytes())
    metadata = table.pop("__metadata__")
    text, body = metadata["easyedit"], content[8 + length :]
    header = parsed_header(text)
    typed = PatchHeader.model_validate(header)
    if typed.format != 2 or typed.kind != "weights":
        return None
    WeightsData.model_validate(typed.data)
    typed.edits_of()
    typed.model.checked()
    if metadata["sha256"] != _digest(text, table, body) or not _covered(table, len(body)):
        return None
    parts: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for key, entry in table.items():
        label, _, path = key.partition(":")
        if label != "extra":
            number, _, field = label.partition(".")
            parts.setdefault(path, {}).setdefault(number, {})[field] = _array(entry, body)
    matrices = {path: _row(list(numbered.values())) for path, numbered in sorted(parts.items())}
    if not matrices or not all(math.isfinite(row["norm"]) for row in matrices.values()):
        return None
    return {**{name: header[name] for name in SHOWN}, "matrices": matrices}


def _covered(table: dict[str, Any], size: int) -> bool:
    """Whether the tensors lie one behind the other and fill the file."""
    end = 0
    for begin, after in sorted(entry["data_offsets"] for entry in table.values()):
        if begin != end:
            return False
        end = after
    return bool(end == size)


def _digest(text: str, table: dict[str, Any], body: np.ndarray) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name in sorted(table):
        entry = table[name]
        begin, end = entry["data_offsets"]
        line = f"\0{name}\0torch.{TYPES[entry['dtype']]}\0{tuple(entry['shape'])}\0"
        digest.update(line.encode("utf-8", "surrogatepass"))
        digest.update(body[begin:end].data)
    return digest.hexdigest()


def _array(entry: dict[str, Any], body: np.ndarray) -> np.ndarray:
    begin, end = entry["data_offsets"]
    raw = body[begin:end].tobytes()
    if entry["dtype"] == "BF16":  # the upper half of a float32
        numbers = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        numbers = np.frombuffer(raw, TYPES[entry["dtype"]])
    return numbers.reshape(entry["shape"])


def _row(parts: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    low = [part for part in parts if set(part) == {"u", "v"}]
    dense = [part["delta"] for part in parts if set(part) == {"delta"}]
    if len(low) + len(dense) != len(parts):
        raise ValueError("another kind of part")
    shapes = {(len(part["u"]), part["v"].shape[1]) for part in low} | {d.shape for d in dense}
    (shape,) = shapes
    rank = sum(min(part["u"].shape[1], *shape) for part in low)
    rank += sum(min(shape) if len(shape) > 1 else 1 for _ in dense)
    return {"shape": list(shape), "rank": rank, "norm": round(_norm(low, dense), 5)}


def _norm(low: list[dict[str, np.ndarray]], dense: list[np.ndarray]) -> float:
    """Frobenius norm of the sum; of low-rank parts without making the matrix."""
    if not dense:
        u = np.concatenate([part["u"] for part in low], axis=1).astype(np.float64)
        v = np.concatenate([part["v"] for part in low], axis=0).astype(np.float64)
        return math.sqrt(max(0.0, float(((u.T @ u) * (v @ v.T)).sum())))
    whole = sum(part["u"].astype(np.float64) @ part["v"].astype(np.float64) for part in low)
    return float(np.linalg.norm(whole + sum(delta.astype(np.float64) for delta in dense)))
