"""``WeightPatch``: what an edit is — changes to a few matrices, each in a few numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from easyeditor.edits import Edit
from easyeditor.errors import DivergedError
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.model import LM
from easyeditor.patches.patch import P, Patch, PatchInfo, merged, merged_info


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


@dataclass(frozen=True, slots=True, eq=False)
class WeightPatch(Patch):
    """Changes to weight matrices: ``{parameter path: parts}``, each part in ``(d_in, d_out)``.

    Several parts are added one after the other, in float32, and the sum is rounded once to the
    model's precision.
    """

    entries: Mapping[str, tuple[Part, ...]] = field()  # which a property of the base would give
    info: PatchInfo = field()
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

    @classmethod
    def concatenated(cls, patches: Sequence[WeightPatch]) -> WeightPatch:
        """See :class:`Patch`; the parts of a matrix stay apart."""
        entries: dict[str, tuple[Part, ...]] = {}
        for patch in patches:
            for path, parts in patch.entries.items():
                entries[path] = entries.get(path, ()) + parts
        return cls(entries, merged_info(patches), patches[0].transposed)


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
    info = PatchInfo.of(lm, method, edits, hyperparams, seconds)
    kept = {path: tuple(parts) for path, parts in entries.items()}
    return WeightPatch(kept, info, transposed=not lm.family.conv1d)


def compacted(patches: Sequence[P]) -> P:
    """:func:`merged` with one part per matrix, low-rank while that takes fewer numbers.

    For long sequences: what is applied and saved stays small. The trap: the parts are summed
    before they meet the weights, so the last bit may differ from applying them one by one.
    """
    whole = merged(patches)
    if not isinstance(whole, WeightPatch):
        return whole
    entries = {path: (_one_part(parts),) for path, parts in whole.entries.items()}
    return replace(whole, entries=entries)


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
