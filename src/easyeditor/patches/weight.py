"""``WeightPatch``: an edit that is a change of a few weights, each in a few numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any, ClassVar

import torch
from torch import nn

from easyeditor.edits import Edit
from easyeditor.errors import DivergedError, PatchMismatchError, PatchStateError
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.model import LM
from easyeditor.lm.originals import Originals, Step
from easyeditor.lm.weights import WeightHandle, weight_handle
from easyeditor.patch_header import WeightsData
from easyeditor.patches.experts import per_expert
from easyeditor.patches.parts import (
    Dense,
    LowRank,
    Rows,
    WeightPart,
    of_linear_layer,
    one_part,
    part_of,
    stored_transposed,
)
from easyeditor.patches.patch import Patch, PatchInfo, merged_extras, merged_info
from easyeditor.patches.weight_sum import WeightSum

__all__ = [
    "Dense",
    "LowRank",
    "Part",
    "Rows",
    "WeightPatch",
    "one_part",
    "smallest_part",
    "weight_patch",
]

Part = WeightPart


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WeightPatch(Patch):
    """Changes of weights: ``{parameter path: parts}``.

    The parts of all patches on a weight are added to the unedited weight in float32 or better, and
    the sum is rounded once to the model's precision; see :mod:`easyeditor.patches.weight_sum`.

    Attributes:
        entries: per weight its parts, in the order in which they are added.
        in_out: the matrices that the model stores ``(d_in, d_out)``, as ``Conv1D`` does. Only
            an export without the model needs it; applying a patch asks the model.
        no_linear: the matrices that belong to no linear layer (embeddings), for the same.
    """

    entries: Mapping[str, tuple[Part, ...]]
    info: PatchInfo
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)
    in_out: frozenset[str] = frozenset()
    no_linear: frozenset[str] = frozenset()
    kind: ClassVar[str] = "weights"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """``{path: shape}``, of a matrix ``(d_in, d_out)``."""
        return {path: parts[0].shape for path, parts in self.entries.items()}

    def dense(self, path: str) -> torch.Tensor:
        """The whole change of one weight, float32; of a matrix ``(d_in, d_out)``."""
        return torch.stack([part.dense() for part in self.entries[path]]).sum(0)

    @classmethod
    def install(
        cls, model: nn.Module, patches: Sequence[WeightPatch], originals: Originals
    ) -> None:
        """See :class:`~easyeditor.patches.patch.Patch`.

        Raises:
            PatchMismatchError: the model lacks a weight, or has it in another shape.
            PatchStateError: a weight was changed outside the stack.
            UnsupportedModelError: a weight is stored in a way that cannot be read.
        """
        wanted, journal = tuple(patches), originals.journal
        step = journal.step if originals.carried is journal.carried else None
        if step is None:
            step = _step(originals.carried, wanted)
        handles = _handles(model, step.added)
        for path in dict.fromkeys(path for patch in step.removed for path in patch.entries):
            handles.setdefault(path, weight_handle(model, path))
        for path, handle in handles.items():
            _update(model, path, handle, wanted, step, originals)
        for path, edited in originals.edited.items():  # let go of patches of other weights
            if path not in handles and isinstance(edited.change, WeightSum):
                edited.change.patches = wanted
        originals.carried = wanted

    @classmethod
    def merge(cls, patches: Sequence[WeightPatch], compact: bool = False) -> WeightPatch:
        """See :class:`~easyeditor.patches.patch.Patch`; the parts of a weight stay apart."""
        entries: dict[str, tuple[Part, ...]] = {}
        for patch in patches:
            for path, parts in patch.entries.items():
                entries[path] = entries.get(path, ()) + parts
        if compact:
            entries = {path: (one_part(parts),) for path, parts in entries.items()}
        in_out = frozenset().union(*(patch.in_out for patch in patches))
        no_linear = frozenset().union(*(patch.no_linear for patch in patches))
        return cls(entries, merged_info(patches), merged_extras(patches), in_out, no_linear)

    def dump(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """See :class:`~easyeditor.patches.patch.Patch`."""
        tensors = {
            f"{i}.{name}:{path}": tensor
            for path, parts in self.entries.items()
            for i, part in enumerate(parts)
            for name, tensor in part.tensors().items()
        }
        data = {"in_out": sorted(self.in_out)}
        return tensors, {**data, "no_linear": sorted(self.no_linear)} if self.no_linear else data

    @classmethod
    def load(
        cls,
        info: PatchInfo,
        tensors: Mapping[str, torch.Tensor],
        data: Mapping[str, Any],
        extras: Mapping[str, torch.Tensor],
    ) -> WeightPatch:
        """See :class:`~easyeditor.patches.patch.Patch`."""
        fields: dict[str, dict[int, dict[str, torch.Tensor]]] = {}
        for key, tensor in tensors.items():
            label, _, path = key.partition(":")
            index, _, name = label.partition(".")
            fields.setdefault(path, {}).setdefault(int(index), {})[name] = tensor
        entries = {
            path: tuple(part_of(numbered[i]) for i in sorted(numbered))
            for path, numbered in sorted(fields.items())
        }
        if not entries:
            raise ValueError("it changes nothing")
        for path, parts in entries.items():
            if any(part.shape != parts[0].shape for part in parts):
                raise ValueError(f"the change of {path} has several shapes")
            if not all(part.is_finite() for part in parts):
                raise ValueError(f"the change of {path} is not finite")
        stored, paths = WeightsData.model_validate(data), frozenset(entries)
        in_out, no_linear = frozenset(stored.in_out), frozenset(stored.no_linear)
        return cls(entries, info, extras, in_out & paths, no_linear & paths)

    def rows(self) -> list[dict[str, Any]]:
        """See :class:`~easyeditor.patches.patch.Patch`."""
        return [
            {
                "weight": path,
                "shape": list(parts[0].shape),
                "rank": sum(part.rank for part in parts),
                "norm": round(float(self.dense(path).norm()), 5),
            }
            for path, parts in self.entries.items()
        ]


def _step(old: tuple[WeightPatch, ...], new: tuple[WeightPatch, ...]) -> Step:
    """How to come from one sequence of patches to another: all after a common start."""
    start = _common(old, new)
    return Step(old[start:], new[start:])


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Length of the common start of two sequences of objects."""
    same = list(map(is_, one, other))
    return same.index(False) if False in same else len(same)


def _handles(model: nn.Module, patches: Sequence[WeightPatch]) -> dict[str, WeightHandle]:
    """Where the weights that some patches change lie, in shapes that fit."""
    if not patches:
        return {}
    known = {name for name, _ in model.named_parameters()}
    paths = dict.fromkeys(path for patch in patches for path in patch.entries)
    handles = {path: weight_handle(model, path) for path in paths if path in known}
    for patch in patches:
        for path, shape in patch.shapes.items():
            turned = path in handles and _turned(model, path)
            stored = shape[::-1] if turned and len(shape) == 2 else shape
            if path not in handles or handles[path].shape != stored:
                has = handles[path].shape if path in handles else "no such weight"
                raise PatchMismatchError(
                    f"The patch changes {path} of shape {shape} (d_in, d_out); the model has {has}"
                    f"{', stored (d_out, d_in)' * turned}."
                )
    return handles


def _turned(model: nn.Module, path: str) -> bool:
    owner, _, name = path.rpartition(".")
    return stored_transposed(model.get_submodule(owner), name)


def _update(
    model: nn.Module,
    path: str,
    handle: WeightHandle,
    wanted: tuple[WeightPatch, ...],
    step: Step,
    originals: Originals,
) -> None:
    """Write one weight with the parts of the wanted patches."""
    edited = originals.edited.get(path)
    former: WeightSum = WeightSum(path, _turned(model, path)) if edited is None else edited.change
    removed = [part for patch in step.removed for part in patch.entries.get(path, ())]
    added = [part for patch in step.added for part in patch.entries.get(path, ())]
    if len(removed) == len(added) and all(map(is_, removed, added)):
        former.patches = wanted  # other patches with the same parts
        return
    if edited is not None and originals.changed_outside(path, handle):
        raise PatchStateError(
            f"{path} was changed outside the stack (by an optimiser's step or load_state_dict, "
            f"perhaps) while {len(originals.carried)} patches were applied, and undoing or adding "
            "one would undo that change. Of easyeditor.patches.outside, adopt_weights(model) makes "
            "the weights as they are now the unedited ones, and discard_changes(model) undoes the "
            "change."
        )
    if former.count + len(added) == len(removed):
        assert edited is not None
        originals.write(path, handle, edited.original, None)
        return
    original = handle.read(handle.raw if edited is None else edited.original)
    new = former.changed(wanted, removed, added, original, give_away=originals.journal.lasting)
    originals.write(path, handle, new.weight(original).to(handle.dtype), new)


def smallest_part(u: torch.Tensor, v: torch.Tensor) -> Part:
    """``u v`` as a part: low-rank while that takes fewer numbers than the whole matrix.

    Args:
        u: ``(d_in, r)``.
        v: ``(r, d_out)``.
    """
    low = LowRank(u.float().contiguous(), v.float().contiguous())
    rank, (d_in, d_out) = u.shape[1], low.shape
    return low if rank * (d_in + d_out) < d_in * d_out else Dense((u @ v.to(u)).float())


def weight_patch(
    lm: LM,
    method: str,
    edits: Sequence[Edit],
    hyperparams: HyperParams,
    entries: Mapping[str, Sequence[Part]],
    seconds: Mapping[str, float],
    extras: Mapping[str, torch.Tensor] | None = None,
) -> WeightPatch:
    """The patch that a method computed, with its description.

    Raises:
        DivergedError: a number in it is not finite.
    """
    entries = {p: [per_expert(lm.model, p, part) for part in parts] for p, parts in entries.items()}
    for path, parts in entries.items():
        if not all(part.is_finite() for part in parts):
            raise DivergedError(
                f"{method} found a change of {path} that is not finite; the model is unchanged. "
                "Load it in float32 or bfloat16, or use gentler settings."
            )
    info = PatchInfo.of(lm, method, edits, hyperparams, seconds)
    in_out = frozenset(
        path
        for path, parts in entries.items()
        if len(parts[0].shape) == 2 and not _turned(lm.model, path)
    )
    no_linear = frozenset(path for path in in_out if not of_linear_layer(lm.model, path))
    whole = {path: tuple(parts) for path, parts in entries.items()}
    return WeightPatch(whole, info, dict(extras or {}), in_out, no_linear)
