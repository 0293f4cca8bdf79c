"""A folder of safetensors files with some tensors replaced; every other byte is copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
BESIDE = (
    *("*.json", "*.jinja", "additional_chat_templates/*.jinja", "*.model", "*.txt", "*.tiktoken"),
    *("*.py", "LICEN[CS]E*", "NOTICE*"),
)
"""Files of a model's folder that belong to it beside its weights: not its card, which describes
the unedited model, nor the same weights in other formats."""
LEFT_OUT = ("easyedit-files.json", "trainer_state.json", "*.bin.index.json")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where the tensors of a checkpoint lie.

    Attributes:
        folder: of the model.
        files: ``{tensor: file}``, in the folder.
    """

    folder: Path
    files: Mapping[str, str]

    @classmethod
    def find(cls, where: str) -> Checkpoint | None:
        """The checkpoint that a model was loaded from; None where it is no safetensors.

        Args:
            where: what transformers loaded it by: a folder, or a hub name that is in the cache.
        """
        folder = Path(where)
        if not folder.is_dir():
            try:
                config = try_to_load_from_cache(where, "config.json")
            except ValueError:  # no name of a hub's: a folder that is gone
                return None
            if not isinstance(config, str):
                return None
            folder = Path(config).parent
        if (folder / INDEX).is_file():
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            files = dict(index["weight_map"])
        elif (folder / WEIGHTS).is_file():
            with safe_open(folder / WEIGHTS, "pt") as file:
                files = dict.fromkeys(file.keys(), WEIGHTS)
        else:
            return None
        return cls(folder, files)

    def read(self, tensor: str) -> torch.Tensor:
        """One tensor."""
        with safe_open(self.folder / self.files[tensor], "pt") as file:
            result: torch.Tensor = file.get_tensor(tensor)
            return result

    @property
    def bytes(self) -> int:
        """Of all files with tensors."""
        return sum((self.folder / name).stat().st_size for name in set(self.files.values()))

    @property
    def largest_file_bytes(self) -> int:
        """Of the largest file with tensors."""
        return max((self.folder / name).stat().st_size for name in set(self.files.values()))

    def copy(self, folder: Path, replaced: Mapping[str, torch.Tensor]) -> None:
        """Copy it into an existing folder, with some tensors replaced by others of their kind.

        Raises:
            ValueError: one has another shape or precision than the one it replaces.
        """
        names = {
            str(path.relative_to(self.folder))
            for pattern in BESIDE
            for path in self.folder.glob(pattern)
            if path.is_file() and not any(path.match(left) for left in LEFT_OUT)
        }
        for name in sorted(names | set(self.files.values())):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / name, folder / name)
        for name in sorted(set(self.files.values())):
            here = {key: t for key, t in replaced.items() if self.files[key] == name}
            if here:
                _overwrite(folder / name, here)


def _overwrite(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors over those of the same name, shape and precision in a safetensors file."""
    with safe_open(file, "pt") as opened:
        for name, tensor in tensors.items():
            old = opened.get_tensor(name)
            if (old.shape, old.dtype) != (tensor.shape, tensor.dtype):
                raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)}")
    with file.open("r+b") as out:
        length = int.from_bytes(out.read(8), "little")
        header: dict[str, Any] = json.loads(out.read(length))
        for name, tensor in tensors.items():
            out.seek(8 + length + header[name]["data_offsets"][0])
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            out.write(flat.view(torch.uint8).numpy().tobytes())
