"""Which model a patch belongs to: its architecture and a sample of its unedited weights.

A hash would change with the precision the model is loaded in, so samples are stored and compared
with the tolerance of bfloat16. Matrices a stack has edited are read from their saved originals:
the fingerprint of a model does not change when patches are applied to it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from easyeditor.patches.stack import originals

PER_PARAMETER = 2


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Class of the model, digest of its parameters' names and shapes, and some of its weights."""

    architecture: str
    shapes: str
    samples: tuple[float, ...]

    @property
    def digest(self) -> str:
        """One short string, exact for one precision; names caches."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]

    def differences(self, other: Fingerprint) -> str:
        """Why ``other`` is another model, or an empty string."""
        if self.architecture != other.architecture:
            return f"it is a {other.architecture}, the patch was made for a {self.architecture}"
        if self.shapes != other.shapes:
            return "its weights have other names or shapes"
        mine, its = torch.tensor(self.samples), torch.tensor(other.samples)
        off = (mine - its).abs() > 0.02 * mine.abs().clamp(min=1e-3)
        if off.any():
            return f"{int(off.sum())} of {len(mine)} sampled weights differ"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """For the header of a file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Fingerprint:
        """From the header of a file."""
        return cls(data["architecture"], data["shapes"], tuple(data["samples"]))


def fingerprint(model: nn.Module) -> Fingerprint:
    """The fingerprint of the *unedited* model; the sampled positions depend on the shapes only."""
    named = sorted(model.named_parameters())
    saved = originals(model)
    shapes = hashlib.sha256()
    for name, parameter in named:
        shapes.update(f"{name}:{tuple(parameter.shape)};".encode())
    samples: list[float] = []
    for name, parameter in named:
        flat = saved.get(name, parameter.detach()).reshape(-1)
        stride = max(1, flat.numel() // PER_PARAMETER)
        samples += flat[stride // 2 :: stride][:PER_PARAMETER].float().tolist()
    rounded = tuple(float(f"{value:.6g}") for value in samples)
    return Fingerprint(type(model).__name__, shapes.hexdigest()[:32], rounded)
