"""``WeightPatch``: what an edit is — changes to a few matrices, each in a few numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from easyeditor.edits import Edit
from easyeditor.errors import DivergedError, PatchMismatchError
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.model import LM
from easyeditor.patches.fingerprint import Fingerprint, fingerprint
from easyeditor.patches.stack import pop, push


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """``u @ v`` is added: ``u`` ``(d_in, r)``, ``v`` ``(r, d_out)``, float32."""

    u: torch.Tensor
    v: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_in, d_out)``."""
        return self.u.shape[0], self.v.shape[1]

    def is_finite(self) -> bool:
        """Whether every number is."""
        return bool(self.u.isfinite().all() and self.v.isfinite().all())

    def dense(self, device: torch.device | None = None) -> torch.Tensor:
        """The whole change, ``(d_in, d_out)`` float32, multiplied out on ``device``."""
        return self.u.to(device) @ self.v.to(device)


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """``delta`` ``(d_in, d_out)``, float32, is added."""

    delta: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_in, d_out)``."""
        return self.delta.shape[0], self.delta.shape[1]

    def is_finite(self) -> bool:
        """Whether every number is."""
        return bool(self.delta.isfinite().all())

    def dense(self, device: torch.device | None = None) -> torch.Tensor:
        """The whole change, ``(d_in, d_out)`` float32, on ``device``."""
        return self.delta.to(device)


Part = LowRank | Dense


@dataclass(frozen=True, slots=True)
class About:
    """What a patch file says of itself.

    Attributes:
        method: the method's name.
        edits: what it was asked to do.
        hyperparams: all of them, layers resolved to absolute numbers.
        model: fingerprint of the unedited model.
        model_name: what the model was loaded by.
        versions: of EasyEdit, torch and transformers.
        seconds: per phase.
    """

    method: str
    edits: tuple[Edit, ...]
    hyperparams: Mapping[str, Any]
    model: Fingerprint
    model_name: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class WeightPatch:
    """Changes to weight matrices: ``{parameter path: parts}``, each part in ``(d_in, d_out)``.

    Several parts are added one after the other, in float32, and the sum is rounded once to the
    model's precision. Two patches are equal only if they are the same object, so that the same
    edit made twice can be undone once.
    """

    entries: Mapping[str, tuple[Part, ...]]
    about: About
    transposed: bool = True
    """Whether the model stores these matrices ``(d_out, d_in)``, as ``nn.Linear`` does."""

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """``{path: (d_in, d_out)}``."""
        return {path: parts[0].shape for path, parts in self.entries.items()}

    def dense(self, path: str) -> torch.Tensor:
        """The whole change of one matrix, ``(d_in, d_out)`` float32."""
        return torch.stack([part.dense() for part in self.entries[path]]).sum(0)

    def add_to(self, path: str, weight: torch.Tensor) -> None:
        """Add the change to ``weight`` in place, in the orientation the model stores."""
        for part in self.entries[path]:
            change = part.dense(weight.device).to(weight.dtype)
            weight.add_(change.T if self.transposed else change)

    def check(self, model: nn.Module) -> None:
        """Make sure the patch was made for this model.

        Raises:
            PatchMismatchError: it was not; says what differs.
        """
        why = self.about.model.differences(fingerprint(model))
        if why:
            raise PatchMismatchError(
                f"This patch does not belong to this model: {why}. It was made for "
                f"{self.about.model_name or 'another model'}. Load that model, or force it "
                "(force=True, --force) if you know that the weights correspond."
            )

    def apply(self, model: nn.Module, *, force: bool = False) -> None:
        """Change ``model`` in place; :meth:`revert` puts its bits back.

        Raises:
            PatchMismatchError: made for another model (with ``force``: only if shapes differ).
            PatchStateError: applied already.
        """
        if not force:
            self.check(model)
        push(model, self)

    def revert(self, model: nn.Module) -> None:
        """Take this patch off, whatever was applied after it; other patches stay.

        Raises:
            PatchStateError: it is not applied to this model.
        """
        pop(model, self)


def versions() -> dict[str, str]:
    """Of what an edit's bits may depend on."""
    return {name: _version(name) for name in ("easyeditor", "torch", "transformers")}


_version = cache(version)  # which reads a file each time


def weight_patch(
    lm: LM,
    method: str,
    edits: Sequence[Edit],
    hyperparams: HyperParams,
    entries: Mapping[str, Sequence[Part]],
    seconds: Mapping[str, float],
) -> WeightPatch:
    """The patch a method found, with everything a reader of its file will ask.

    Raises:
        DivergedError: a number in it is not finite.
    """
    for path, parts in entries.items():
        for part in parts:
            if not part.is_finite():
                raise DivergedError(
                    f"{method} found a change of {path} that is not finite; the model is "
                    "unchanged. Load it in float32 or bfloat16, or use gentler settings."
                )
    about = About(
        method=method,
        edits=tuple(edits),
        hyperparams=hyperparams.model_dump(mode="json"),
        model=fingerprint(lm.model),
        model_name=lm.name,
        versions=versions(),
        seconds={phase: round(spent, 4) for phase, spent in seconds.items()},
    )
    kept = {path: tuple(parts) for path, parts in entries.items()}
    return WeightPatch(kept, about, transposed=not lm.family.conv1d)


def merged(patches: Sequence[WeightPatch]) -> WeightPatch:
    """One patch that does what ``patches`` do in this order, bit for bit."""
    if len(patches) == 1:
        return patches[0]
    entries: dict[str, tuple[Part, ...]] = {}
    seconds: dict[str, float] = {}
    for patch in patches:
        for path, parts in patch.entries.items():
            entries[path] = entries.get(path, ()) + parts
        for phase, spent in patch.about.seconds.items():
            seconds[phase] = seconds.get(phase, 0.0) + spent
    first = patches[0]
    about = About(
        method=first.about.method,
        edits=tuple(edit for patch in patches for edit in patch.about.edits),
        hyperparams=first.about.hyperparams,
        model=first.about.model,
        model_name=first.about.model_name,
        versions=first.about.versions,
        seconds=seconds,
    )
    return WeightPatch(entries, about, first.transposed)


def compacted(patches: Sequence[WeightPatch]) -> WeightPatch:
    """:func:`merged` with one part per matrix, low-rank while that takes fewer numbers.

    For long sequences: what is applied and saved stays small. The trap: the parts are summed
    before they meet the weights, so the last bit may differ from applying them one by one.
    """
    whole = merged(patches)
    entries = {path: (_one_part(parts),) for path, parts in whole.entries.items()}
    return WeightPatch(entries, whole.about, whole.transposed)


def _one_part(parts: Sequence[Part]) -> Part:
    if len(parts) == 1:
        return parts[0]
    low = [part for part in parts if isinstance(part, LowRank)]
    d_in, d_out = parts[0].shape
    if len(low) == len(parts) and sum(p.u.shape[1] for p in low) * (d_in + d_out) < d_in * d_out:
        return LowRank(torch.cat([p.u for p in low], 1), torch.cat([p.v for p in low]))
    total = parts[0].dense().clone()
    for part in parts[1:]:
        total += part.dense()
    return Dense(total)
