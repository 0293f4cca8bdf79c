"""The unedited weights of a model that carries patches, and what was written in their place.

They hang on the model itself. Whatever asks for an unedited weight (fingerprints, statistics, the
size of a change) reads it here, and needs to know nothing of patches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from easyeditor.lm.weights import WeightHandle

_ATTRIBUTE = "easyedit_originals"
SAMPLES = 64
"""Numbers of a written weight that are compared one by one."""
SUMS = 1024
"""Stretches of a written weight, each with a sum of its own: rows that change places are seen."""
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """What tells a weight that was written from any other: sums of its bits, and samples."""

    dtype: torch.dtype
    bits: torch.Tensor
    samples: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor) -> Written:
        """Of a weight as it is now."""
        flat = weight.detach().reshape(-1)
        whole = flat.view(_INTEGERS[flat.element_size()])
        length = max(1, whole.numel() // SUMS)
        end = whole.numel() // length * length
        sums = whole[:end].view(-1, length).sum(1, dtype=torch.int64)
        rest = whole[end:].sum(dtype=torch.int64)[None]
        stride = max(1, flat.numel() // SAMPLES)
        # Copies: on the CPU a view would follow the weight, and equal it always.
        return cls(flat.dtype, torch.cat([sums, rest]).cpu(), flat[::stride].cpu().clone())

    def is_still(self, weight: torch.Tensor) -> bool:
        """Whether ``weight`` is what was written; also after a move to another precision."""
        now = Written.of(weight)
        if now.dtype == self.dtype:
            return torch.equal(now.bits, self.bits) and torch.equal(now.samples, self.samples)
        return torch.equal(now.samples, self.samples.to(now.dtype))


@dataclass(slots=True, eq=False)
class EditedWeight:
    """One edited weight.

    Attributes:
        original: what lay there before the first change, see
            :class:`~easyeditor.lm.weights.WeightHandle`; None for what is no tensor.
        written: tells what was written in its place.
        change: what the kind of patch that changed it knows of its change.
    """

    original: torch.Tensor | None
    written: Written
    change: Any


@dataclass(frozen=True, slots=True)
class Step:
    """A change of the carried patches: some are taken off, others are put on top."""

    removed: tuple[Any, ...]
    added: tuple[Any, ...]


@dataclass(slots=True, eq=False)
class Journal:
    """What a model was before a change.

    Attributes:
        carried: the patches that its weights carried.
        weights: what every weight held that the change touches, ``{path: (handle, raw, record)}``;
            an entry is written before its weight is.
        lasting: whether the change is to last; a short one keeps what it needs to be taken back.
        step: what the change is, where that is known; saves comparing all patches.
    """

    carried: tuple[Any, ...] = ()
    weights: dict[str, tuple[WeightHandle, torch.Tensor | None, EditedWeight | None]] = field(
        default_factory=dict
    )
    lasting: bool = True
    step: Step | None = None


class Originals:
    """The edited weights of one model.

    Attributes:
        edited: by parameter path.
        carried: the patches that the weights carry, in order.
        journal: of the change that is being made; what is written without one is not put back.
    """

    def __init__(self) -> None:
        self.edited: dict[str, EditedWeight] = {}
        self.carried: tuple[Any, ...] = ()
        self.journal = Journal()

    def __deepcopy__(self, memo: dict[int, Any]) -> Originals:
        """The copy of a model shares the unedited weights, which are never written into."""
        twin = Originals()
        memo[id(self)] = twin
        twin.edited = {
            path: EditedWeight(edited.original, edited.written, edited.change.parts_only())
            for path, edited in self.edited.items()
        }
        twin.carried = self.carried
        return twin

    def write(
        self, path: str, handle: WeightHandle, raw: torch.Tensor | None, change: Any | None
    ) -> None:
        """Put ``raw`` in a weight's place; ``change`` None means that it is the unedited weight."""
        former = self.edited.get(path)
        self.journal.weights.setdefault(path, (handle, handle.raw, former))
        if change is None:
            handle.set_raw(raw)
            self.edited.pop(path, None)
            return
        original = handle.raw if former is None else former.original
        assert raw is not None
        record = EditedWeight(original, Written.of(raw), change)
        handle.set_raw(raw)
        self.edited[path] = record

    def put_back(self, journal: Journal) -> None:
        """Let every weight be what it was before a change; doing so twice does no harm."""
        for path, (handle, raw, record) in journal.weights.items():
            handle.set_raw(raw)
            if record is None:
                self.edited.pop(path, None)
            else:
                self.edited[path] = record
        self.carried = journal.carried

    def changed_outside(self, path: str, handle: WeightHandle) -> bool:
        """Whether somebody else has changed an edited weight since it was written."""
        edited = self.edited.get(path)
        if edited is None:
            return False
        now = handle.raw
        return now is None or not edited.written.is_still(now)


def originals_of(model: nn.Module) -> Originals:
    """The model's, made on first use."""
    originals: Originals = vars(model).setdefault(_ATTRIBUTE, Originals())
    return originals


def reset_originals(model: nn.Module) -> None:
    """Take the weights as they are now for the unedited ones."""
    vars(model)[_ATTRIBUTE] = Originals()


def unedited(model: nn.Module, path: str, handle: WeightHandle) -> torch.Tensor | None:
    """What lies, or lay before the patches, in a weight's place; see :class:`WeightHandle`."""
    known: Originals | None = vars(model).get(_ATTRIBUTE)
    edited = None if known is None else known.edited.get(path)
    return handle.raw if edited is None else edited.original
