"""What a training leaves: one safetensors file, with a JSON header that says what it is for.

The header names the method, the settings of the training, the fingerprint of the model it was
trained beside, and versions. No pickle: loading an archive runs no code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from easyeditor.errors import ArchiveError
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.fingerprint import Fingerprint, fingerprint
from easyeditor.lm.model import LM
from easyeditor.patch_header import FingerprintRecord
from easyeditor.patches.patch import versions
from easyeditor.tensor_file import read_tensor_file, write_tensor_file

FORMAT = 1
KEY = "easyedit-archive"
NAME = "archive.safetensors"
PLACE = {"device", "results_dir", "report_to"}
"""Settings that say where a training ran, not what it learnt; they do not go into the file."""


@dataclass(frozen=True, slots=True)
class Archive:
    """A read archive: its place, its tensors and what its header says.

    Attributes:
        file: where it was read.
        method: whose it is.
        hyperparams: the settings of the training, layers resolved.
        model: fingerprint of the unedited model it was trained beside.
        model_name: what that model was loaded by.
        more: whatever the method added.
        tensors: by name, on the CPU.
    """

    file: Path
    method: str
    hyperparams: Mapping[str, Any]
    model: Fingerprint
    model_name: str
    more: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def check_method(self, method: str) -> None:
        """Make sure it is of this method.

        Raises:
            ArchiveError: it is of another.
        """
        if self.method != method:
            raise ArchiveError(
                f"The archive {self.file} was trained for {self.method}, not {method}. Give an "
                f"archive of {method}, or edit with {self.method}."
            )

    def check(self, lm: LM, method: str) -> None:
        """Make sure it is of this method and was trained beside this model.

        Raises:
            ArchiveError: it was not; says what differs.
        """
        self.check_method(method)
        why = self.model.differences(fingerprint(lm.model)).replace("the patch", "the archive")
        if why:
            raise ArchiveError(
                f"The archive {self.file} does not belong to this model: {why}. It was trained "
                f"beside {self.model_name or 'another model'}. Load that model, or train one "
                "beside this."
            )


def write_archive(
    folder: Path,
    lm: LM,
    method: str,
    hyperparams: HyperParams,
    tensors: Mapping[str, torch.Tensor],
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``folder/archive.safetensors``, whole or not at all; returns its path.

    Raises:
        OSError: the place cannot be written.
    """
    header = {
        "format": FORMAT,
        "method": method,
        "hyperparams": hyperparams.model_dump(mode="json", exclude=PLACE),
        "model": fingerprint(lm.model).to_dict(),
        "model_name": lm.name,
        "versions": versions(),
        "more": dict(more or {}),
    }
    return write_tensor_file(folder / NAME, tensors, KEY, header)


def read_archive(path: str | Path, method: str) -> Archive:
    """Read an archive, by its file or by the folder that holds it; ``method`` is for the advice.

    Raises:
        ArchiveError: no such file, truncated, not safetensors, or not an archive of ours.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / NAME
    if not file.is_file():
        raise ArchiveError(
            f"There is no archive {str(path)!r}. Give the file {NAME} that a training wrote, or "
            f"the folder it is in. To train one: easyedit train --method {method.lower()} --data "
            "FILE --model MODEL"
        )
    advice = "Copy it again, or train again."
    content = read_tensor_file(file, KEY, "an EasyEdit archive", advice, ArchiveError)
    try:
        return _build(file, content.header, content.tensors)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArchiveError(f"{file} has a header that is not an archive's: {error!r}.") from None


class _Header(BaseModel):
    """The header of an archive, typed before anything is built from it."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format: int
    method: str
    hyperparams: dict[str, Any]
    model: FingerprintRecord
    model_name: str
    versions: dict[str, str] = {}
    more: dict[str, Any]


def _build(file: Path, header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Archive:
    if header["format"] != FORMAT or isinstance(header["format"], bool):
        raise ValueError(f"format {header['format']}; this version reads format {FORMAT}")
    record = _Header.model_validate(header)
    return Archive(
        file,
        record.method,
        record.hyperparams,
        Fingerprint.from_dict(record.model.model_dump()),
        record.model_name,
        record.more,
        tensors,
    )


def check_count(archive: Archive, name: str, count: int) -> None:
    """Refuse a number of parts that the archive's tensors cannot bear out, before they are built.

    Raises:
        ArchiveError: there are fewer tensors than that.
    """
    if count > len(archive.tensors):
        raise ArchiveError(
            f"The archive {archive.file} says {name}={count}, and holds {len(archive.tensors)} "
            "tensors. Copy it again, or train again."
        )


def fill(module: torch.nn.Module, archive: Archive) -> None:
    """Load an archive's tensors into ``module``, all of them or none.

    Raises:
        ArchiveError: names or shapes differ, or a number is not finite.
    """
    wanted = module.state_dict()
    wrong = sorted(wanted.keys() ^ archive.tensors.keys())
    wrong += [
        f"{name} {tuple(tensor.shape)} instead of {tuple(wanted[name].shape)}"
        for name, tensor in archive.tensors.items()
        if name in wanted and tensor.shape != wanted[name].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ArchiveError(
            f"The archive {archive.file} does not fit its own header: {', '.join(wrong[:3])}{more}."
        )
    broken = [name for name, tensor in archive.tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise ArchiveError(
            f"The archive {archive.file} holds numbers that are not finite: {broken}."
        )
    module.load_state_dict(dict(archive.tensors))
