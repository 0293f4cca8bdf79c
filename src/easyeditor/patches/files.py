"""Patches as files: safetensors with a JSON header that says what the edit is.

The header holds the edits, the method, its resolved hyper-parameters, versions and the fingerprint
of the model. No pickle: loading a patch runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from easyeditor.edits import Edit, to_json
from easyeditor.errors import PatchFormatError
from easyeditor.patches.fingerprint import Fingerprint
from easyeditor.patches.patch import Patch, PatchInfo
from easyeditor.patches.route import RoutePatch
from easyeditor.patches.weight import Dense, LowRank, Part, WeightPatch
from easyeditor.registry import Registry
from easyeditor.tensor_file import read_tensor_file, write_tensor_file

FORMAT = 1
KEY = "easyedit"
KINDS: dict[str, type] = {
    "method": str,
    "edits": list,
    "hyperparams": dict,
    "model": dict,
    "versions": dict,
    "seconds": dict,
}
ROUTES = Registry(
    "kind of patch",
    PatchFormatError,
    {
        "context": "easyeditor.patches.context:ContextPatch",
        "scope": "easyeditor.patches.scope:ScopePatch",
    },
)
"""Kinds of patches that change no weight; each file names its own."""


def save_patch(patch: Patch, path: str | Path) -> Path:
    """Write ``patch``; the file appears whole or not at all. Returns its path.

    Raises:
        OSError: the place cannot be written.
    """
    file = Path(path)
    tensors, own = _stored(patch)
    header = {"format": FORMAT, **own, **header_of(patch)}
    return write_tensor_file(file, tensors, KEY, header)


def _stored(patch: Patch) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of the file, and what its header says beside the description."""
    if isinstance(patch, RoutePatch):
        tensors, data = patch.stored()
        return tensors, {"kind": patch.kind, "data": data}
    assert isinstance(patch, WeightPatch)
    tensors = {}
    for name, parts in patch.entries.items():
        for i, part in enumerate(parts):
            fields = (
                {"u": part.u, "v": part.v} if isinstance(part, LowRank) else {"delta": part.delta}
            )
            for field, tensor in fields.items():
                tensors[f"{i}.{field}:{name}"] = tensor.detach().cpu().contiguous()
    return tensors, {"kind": "weights", "transposed": patch.transposed}


def header_of(patch: Patch) -> dict[str, Any]:
    """What a patch says of itself, as JSON types."""
    info = patch.info
    return {
        "method": info.method,
        "edits": [to_json(edit) for edit in info.edits],
        "hyperparams": dict(info.hyperparams),
        "model_name": info.model_name,
        "model": info.model.to_dict(),
        "versions": dict(info.versions),
        "seconds": dict(info.seconds),
    }


def load_patch(path: str | Path) -> Patch:
    """Read a patch file.

    Raises:
        PatchFormatError: no such file, truncated, not safetensors, or not written by EasyEdit.
    """
    file = Path(path)
    if not file.is_file():
        raise PatchFormatError(f"No patch file {str(path)!r}.")
    advice = "Save the patch again."
    header, tensors = read_tensor_file(file, KEY, "an EasyEdit patch", advice, PatchFormatError)
    try:
        return _build(json.loads(header), tensors)
    except PatchFormatError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise PatchFormatError(
            f"{file} has a header that does not fit its content: {error!r}."
        ) from None


def _check(name: str, parts: tuple[Part, ...]) -> None:
    for part in parts:
        tensors = (part.u, part.v) if isinstance(part, LowRank) else (part.delta,)
        if any(t.dim() != 2 or not t.is_floating_point() for t in tensors):
            raise ValueError(f"the change of {name} is no floating-point matrix")
        if isinstance(part, LowRank) and part.u.shape[1] != part.v.shape[0]:
            raise ValueError(f"the factors of {name} do not fit each other")
        if part.shape != parts[0].shape or not part.is_finite():
            raise ValueError(f"the change of {name} has several shapes, or is not finite")


def _build(header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Patch:
    if header["format"] != FORMAT:
        raise ValueError(f"format {header['format']}; this version reads format {FORMAT}")
    for name, kind in KINDS.items():
        if not isinstance(header[name], kind):
            raise TypeError(f"{name} is {header[name]!r}")
    samples = header["model"]["samples"]
    if not all(isinstance(sample, (int, float)) for sample in samples):
        raise TypeError(f"samples are {samples!r}")
    info = PatchInfo(
        method=header["method"],
        edits=tuple(Edit(**edit) for edit in header["edits"]),
        hyperparams=header["hyperparams"],
        model=Fingerprint.from_dict(header["model"]),
        model_name=header["model_name"],
        versions=header["versions"],
        seconds=header["seconds"],
    )
    if header["kind"] == "weights":
        return _weights(header, tensors, info)
    route: type[RoutePatch] = ROUTES.get(header["kind"])
    return route.restored(info, tensors, header["data"])


def _weights(
    header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], info: PatchInfo
) -> WeightPatch:
    fields: dict[str, dict[int, dict[str, torch.Tensor]]] = {}
    for key, tensor in tensors.items():
        label, _, name = key.partition(":")
        index, _, field = label.partition(".")
        fields.setdefault(name, {}).setdefault(int(index), {})[field] = tensor
    entries: dict[str, tuple[Part, ...]] = {
        name: tuple(
            Dense(parts[i]["delta"])
            if "delta" in parts[i]
            else LowRank(parts[i]["u"], parts[i]["v"])
            for i in sorted(parts)
        )
        for name, parts in sorted(fields.items())
    }
    if not entries:
        raise ValueError("it changes nothing")
    for name, parts in entries.items():
        _check(name, parts)
    if not isinstance(header["transposed"], bool):
        raise TypeError(f"transposed is {header['transposed']!r}")
    return WeightPatch(entries, info, header["transposed"])
