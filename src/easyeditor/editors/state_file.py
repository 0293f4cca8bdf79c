"""A method's state as a file beside its patch: ``edit.safetensors``, ``edit.state.safetensors``."""

from __future__ import annotations

import hashlib
from pathlib import Path

from easyeditor.edits import canonical_json
from easyeditor.errors import PatchFormatError
from easyeditor.methods.base import State
from easyeditor.patches.patch import Patch
from easyeditor.tensor_file import read_tensor_file, write_tensor_file

FORMAT = 2
"""Format 1 told edits by what Python prints of them, which changes with the classes."""
KEY = "easyedit-state"


def state_file(patch_file: str | Path) -> Path:
    """Where the state of the patch in ``patch_file`` lies."""
    file = Path(patch_file)
    return file.with_name(f"{file.name.removesuffix('.safetensors')}.state.safetensors")


def save_state(state: State | None, patch: Patch, patch_file: str | Path) -> None:
    """Write ``state`` beside the file of ``patch``; without a state, a file that is there goes.

    Raises:
        OSError: the place cannot be written.
    """
    file = state_file(patch_file)
    if state is None:
        file.unlink(missing_ok=True)
        return
    tensors, data = state.dump()
    header = {"format": FORMAT, "data": data, **_belongs_to(patch)}
    write_tensor_file(file, tensors, KEY, header)


def load_state(
    state_class: type[State] | None, patch: Patch, patch_file: str | Path
) -> State | None:
    """The state beside the file of ``patch``; None where there is none, or the method has none.

    Raises:
        PatchFormatError: it is damaged, or belongs to another patch.
    """
    file = state_file(patch_file)
    if state_class is None or not file.is_file():
        return None
    advice = "Delete it to go on from the method's initial state, or save the edit again."
    content = read_tensor_file(file, KEY, "a method's state", advice, PatchFormatError)
    try:
        header = content.header
        version = header["format"]
        if version not in (1, FORMAT) or isinstance(version, bool):
            raise ValueError(f"format {version}; this version reads formats 1 and {FORMAT}")
        belongs = _belongs_to(patch)
        if version == 1:
            del belongs["edits"]
        if any(header[name] != value for name, value in belongs.items()):
            raise PatchFormatError(f"{file} belongs to another patch than {patch_file}. {advice}")
        return state_class.load(content.tensors, header["data"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, PatchFormatError):
            raise
        raise PatchFormatError(
            f"{file} does not hold a method's state: {error!r}. {advice}"
        ) from None


def _belongs_to(patch: Patch) -> dict[str, str]:
    edits = hashlib.sha256(canonical_json(patch.info.edits).encode()).hexdigest()[:16]
    return {"method": patch.info.method, "model": patch.info.model.digest, "edits": edits}
