"""``Patch``: what every edit can do, whatever it consists of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from typing import Any, TypeVar

import torch
from torch import nn

from easyeditor.edits import Edit
from easyeditor.errors import PatchMismatchError
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.model import LM
from easyeditor.patches.fingerprint import Fingerprint, fingerprint
from easyeditor.patches.stack import pop, push

P = TypeVar("P", bound="Patch")


@dataclass(frozen=True, slots=True)
class PatchInfo:
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

    @classmethod
    def of(
        cls,
        lm: LM,
        method: str,
        edits: Sequence[Edit],
        hyperparams: HyperParams,
        seconds: Mapping[str, float],
    ) -> PatchInfo:
        """Everything a reader of the file will ask."""
        return cls(
            method=method,
            edits=tuple(edits),
            hyperparams=hyperparams.model_dump(mode="json"),
            model=fingerprint(lm.model),
            model_name=lm.name,
            versions=versions(),
            seconds={phase: round(spent, 4) for phase, spent in seconds.items()},
        )

    def with_edits(self, edits: Sequence[Edit]) -> PatchInfo:
        """The same description with other edits."""
        return replace(self, edits=tuple(edits))


class Patch(ABC):
    """An edit as a thing of its own: applied to a model, taken back exactly, saved to a file.

    Two patches are equal only if they are the same object, so that the same edit made twice can
    be undone once.
    """

    __slots__ = ()

    info: PatchInfo

    @property
    @abstractmethod
    def entries(self) -> Mapping[str, Any]:
        """``{parameter path: its change}``; empty for a patch that changes no weight."""

    @property
    @abstractmethod
    def transposed(self) -> bool:
        """Whether the model stores its matrices ``(d_out, d_in)``, as ``nn.Linear`` does."""

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, int]]:
        """``{parameter path: (d_in, d_out)}`` of the matrices it changes."""

    @abstractmethod
    def add_to(self, path: str, weight: torch.Tensor) -> None:
        """Add the change of ``path`` to ``weight`` in place."""

    @classmethod
    @abstractmethod
    def concatenated(cls: type[P], patches: Sequence[P]) -> P:
        """One patch that does what several of this kind do in this order."""

    def check(self, model: nn.Module) -> None:
        """Make sure the patch was made for this model.

        Raises:
            PatchMismatchError: it was not; says what differs.
        """
        why = self.info.model.differences(fingerprint(model))
        if why:
            raise PatchMismatchError(
                f"This patch does not belong to this model: {why}. It was made for "
                f"{self.info.model_name or 'another model'}. Load that model, or force it "
                "(force=True, --force) if you know that the weights correspond."
            )

    def apply(self, model: nn.Module, *, force: bool = False) -> None:
        """Change ``model`` in place; :meth:`revert` puts it back, bit for bit.

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


def merged(patches: Sequence[P]) -> P:
    """One patch that does what ``patches``, all of one kind, do in this order, bit for bit."""
    return patches[0] if len(patches) == 1 else type(patches[0]).concatenated(patches)


def merged_info(patches: Sequence[Patch]) -> PatchInfo:
    """The first patch's description with the edits and seconds of all."""
    first = patches[0].info
    seconds: dict[str, float] = {}
    for patch in patches:
        for phase, spent in patch.info.seconds.items():
            seconds[phase] = seconds.get(phase, 0.0) + spent
    return PatchInfo(
        method=first.method,
        edits=tuple(edit for patch in patches for edit in patch.info.edits),
        hyperparams=first.hyperparams,
        model=first.model,
        model_name=first.model_name,
        versions=first.versions,
        seconds=seconds,
    )


def versions() -> dict[str, str]:
    """Of what an edit's bits may depend on."""
    return {name: _version(name) for name in ("easyeditor", "torch", "transformers")}


_version = cache(version)  # which reads a file each time
