"""Patches as files: safetensors with a JSON header that says what the edit is.

The header holds the edits, the method, its resolved hyper-parameters, versions and the fingerprint
of the model; a digest of everything is checked when a file is read. No pickle: loading a patch runs
no code.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from easyeditor.edits import to_json
from easyeditor.errors import PatchFormatError, PatchMismatchError
from easyeditor.lm.fingerprint import Fingerprint
from easyeditor.patch_header import PatchHeader
from easyeditor.patches.kinds import PATCHES
from easyeditor.patches.patch import Patch, PatchInfo
from easyeditor.patches.public import public_header
from easyeditor.tensor_file import content_digest, read_tensor_file, write_tensor_file

FORMAT = 2
"""Format 1 had no digest and no extras, and one orientation for all matrices of a patch."""
KEY = "easyedit"
EXTRA = "extra:"
"""Prefix of the names of a patch's extras among the file's tensors."""
DAMAGE = (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError)
"""What building from a header that does not fit its tensors may raise."""
ADVICE = "Copy it again, or save the patch again."


def save_patch(patch: Patch, path: str | Path, *, public: bool = False) -> Path:
    """Write ``patch``; the file appears whole or not at all. Returns its path.

    Args:
        patch: any.
        path: of the file.
        public: leave out places on this machine (:mod:`easyeditor.patches.public`), for a file that
            is passed on; the weights are the same.

    Raises:
        OSError: the place cannot be written.
    """
    tensors, data = patch.dump()
    tensors |= {f"{EXTRA}{name}": tensor for name, tensor in patch.extras.items()}
    header = {"format": FORMAT, "kind": patch.kind, "data": data, **header_of(patch)}
    if public:
        header = public_header(header)
    return write_tensor_file(Path(path), tensors, KEY, header)


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


def load_patch(path: str | Path, *, encoder: str | None = None) -> Patch:
    """Read a patch file.

    Args:
        path: of the file.
        encoder: the sentence encoder, a hub name or a folder, that the patch may use if it was made
            with it. A file alone is not followed to an encoder, which may bring code.

    Raises:
        PatchMismatchError: the patch was made with another encoder.
        PatchFormatError: no such file, truncated, damaged, not safetensors, or not written by
            EasyEdit.
    """
    file = Path(path)
    if not os.path.isfile(file):
        raise PatchFormatError(f"No patch file {str(path)[:200]!r}.")
    content = read_tensor_file(file, KEY, "an EasyEdit patch", ADVICE, PatchFormatError)
    try:
        version = content.header["format"]
        if version not in (1, FORMAT) or isinstance(version, bool):
            raise ValueError(f"format {version}; this version reads formats 1 and {FORMAT}")
        if version == FORMAT and not content.digest:
            raise ValueError("it has no digest")
        header = PatchHeader.model_validate(content.header)
        if header.format == 1:
            header = _as_format_2(header, content.tensors)
        # A file of format 1 has no digest, but is told from others by one all the same.
        text = json.dumps(content.header, sort_keys=True)
        digest = content.digest or content_digest(text, content.tensors)
        patch = _build(header, content.tensors, digest)
        return patch if encoder is None else patch.with_encoder(encoder)
    except (PatchFormatError, PatchMismatchError):
        raise
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        why = f"{place}: {problem['msg']}"
    except DAMAGE as error:
        why = f"{error!r}"
    raise PatchFormatError(
        f"{file} has a header that does not fit its content: {why[:300]}. {ADVICE}"
    )


def _as_format_2(header: PatchHeader, tensors: Mapping[str, torch.Tensor]) -> PatchHeader:
    """The header that this version would have written for a file of format 1."""
    if header.kind != "weights":
        return header
    if header.transposed is None:
        raise KeyError("transposed")
    paths = {name.partition(":")[2] for name in tensors}
    return header.model_copy(update={"data": {"in_out": [] if header.transposed else list(paths)}})


def _build(header: PatchHeader, tensors: Mapping[str, torch.Tensor], digest: str) -> Patch:
    info = PatchInfo(
        method=header.method,
        edits=header.edits_of(),
        hyperparams=header.hyperparams,
        model=Fingerprint.from_dict(header.model.model_dump()),
        model_name=header.model_name,
        versions=header.versions,
        seconds=header.seconds,
        digest=digest,
    )
    kind: type[Patch] = PATCHES.get(header.kind)
    extras = {n.removeprefix(EXTRA): t for n, t in tensors.items() if n.startswith(EXTRA)}
    content = {name: tensor for name, tensor in tensors.items() if not name.startswith(EXTRA)}
    return kind.load(info, content, header.data, extras)
