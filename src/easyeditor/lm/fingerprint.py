"""Which model a patch belongs to: its architecture and a sample of its unedited weights.

A hash would change with the precision the model is loaded in, so samples are stored and compared
with the tolerance of bfloat16. Edited weights are read as they were before
(:mod:`easyeditor.lm.originals`): the fingerprint of a model does not change when patches are
applied to it. Nor with where the weights lie: an offloaded model has the plain one's. A quantized
model has its names and shapes, and is recognised by what is not quantized (embeddings, norms,
head), so that a patch made on one of the two applies to the other.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from easyeditor.errors import UnsupportedModelError
from easyeditor.lm.originals import unedited
from easyeditor.lm.weights import named_weights, weight_handle
from easyeditor.patch_header import FingerprintRecord

PER_PARAMETER = 2
_SAMPLED = "easyedit_samples"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Class of the model, digest of its parameters' names and shapes, and some of its weights.

    ``packed`` are the places in ``samples`` that hold numbers of quantized weights: they tell
    caches apart, and are compared with no other model's.
    """

    architecture: str
    shapes: str
    samples: tuple[float, ...] = field(repr=False)
    packed: tuple[int, ...] = field(default=(), repr=False)

    @property
    def digest(self) -> str:
        """One short string, exact for one precision; names caches."""
        result = {k: v for k, v in asdict(self).items() if k != "packed"}
        return hashlib.sha256(json.dumps(result).encode()).hexdigest()[:16]

    def differences(self, other: Fingerprint) -> str:
        """Why ``other`` is another model, or an empty string."""
        if self.architecture != other.architecture:
            return f"it is a {other.architecture}, the patch was made for a {self.architecture}"
        if self.shapes != other.shapes:
            return "its weights have other names or shapes"
        if len(self.samples) != len(other.samples):
            return f"{len(other.samples)} weights of it were sampled, not {len(self.samples)}"
        mine, its = torch.tensor(self.samples), torch.tensor(other.samples)
        off = (mine - its).abs() > 0.02 * mine.abs().clamp(min=1e-3)
        off[[*self.packed, *other.packed]] = False
        if off.any():
            return f"{int(off.sum())} of {len(mine)} sampled weights differ"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """For the header of a file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Fingerprint:
        """From the header of a file.

        Raises:
            ValueError: it holds no fingerprint.
        """
        record = FingerprintRecord.model_validate(data).checked()
        return cls(record.architecture, record.shapes, tuple(record.samples), tuple(record.packed))


def fingerprint(model: nn.Module) -> Fingerprint:
    """The fingerprint of the *unedited* model; the sampled positions depend on the shapes only."""
    shapes = hashlib.sha256()
    samples: list[float] = []
    packed: list[int] = []
    for name, parameter in sorted(named_weights(model)):
        shape, values, exact = _sample(model, name, parameter)
        shapes.update(f"{name}:{shape};".encode())
        if not exact:
            packed += range(len(samples), len(samples) + len(values))
        samples += values
    rounded = tuple(float(f"{value:.6g}") for value in samples)
    return Fingerprint(type(model).__name__, shapes.hexdigest()[:32], rounded, tuple(packed))


def _sample(
    model: nn.Module, name: str, parameter: nn.Parameter
) -> tuple[tuple[int, ...], list[float], bool]:
    """A weight's shape, some of its unedited numbers, and whether they are the weight's own."""
    try:
        storage = weight_handle(model, name)
    except UnsupportedModelError:  # nothing can edit it, but patches that change no weight apply
        return tuple(parameter.shape), _few(parameter.detach()), False
    known: dict[str, list[float]] = vars(model).setdefault(_SAMPLED, {})
    values = known.get(name) if parameter.is_meta else None
    if values is None:
        values = _few(storage.numbers(unedited(model, name, storage)))
        if parameter.is_meta:  # each reading of an offloaded weight may read a whole file
            known[name] = values
    return storage.shape, values, storage.exact


def _few(numbers: torch.Tensor) -> list[float]:
    flat = numbers.reshape(-1)
    stride = max(1, flat.numel() // PER_PARAMETER)
    values: list[float] = flat[stride // 2 :: stride][:PER_PARAMETER].float().tolist()
    return values
