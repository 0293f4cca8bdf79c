"""``Patch``: what every edit can do, whatever it consists of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from easyeditor.display import data_frame, table_html
from easyeditor.edits import Edit
from easyeditor.errors import PatchMismatchError
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.fingerprint import Fingerprint, fingerprint
from easyeditor.lm.model import LM
from easyeditor.lm.originals import Originals
from easyeditor.lm.unwrapping import public_name
from easyeditor.patches.stack import pop, push
from easyeditor.version import VERSION

P = TypeVar("P", bound="Patch")


@dataclass(frozen=True, slots=True)
class PatchInfo:
    """What a patch says of itself.

    Attributes:
        method: the method's name.
        edits: what it was asked to do.
        hyperparams: all of them, layers resolved to absolute numbers.
        model: fingerprint of the unedited model.
        model_name: what the model was loaded by.
        versions: of EasyEdit, torch and transformers.
        seconds: per phase.
        digest: of the file the patch was read from; empty for a patch made in this process.
    """

    method: str
    edits: tuple[Edit, ...]
    hyperparams: Mapping[str, Any] = field(repr=False)
    model: Fingerprint = field(repr=False)
    model_name: str = ""
    versions: Mapping[str, str] = field(default_factory=dict, repr=False)
    seconds: Mapping[str, float] = field(default_factory=dict, repr=False)
    digest: str = field(default="", compare=False, repr=False)

    @classmethod
    def of(
        cls,
        lm: LM,
        method: str,
        edits: Sequence[Edit],
        hyperparams: HyperParams,
        seconds: Mapping[str, float],
    ) -> PatchInfo:
        """The description of a patch that ``method`` made for ``lm`` just now."""
        settings = hyperparams.model_dump(mode="json")
        if settings.get("model_name"):  # other paths: see patches/public.py
            settings["model_name"] = public_name(settings["model_name"])
        return cls(
            method=method,
            edits=tuple(edits),
            hyperparams=settings,
            model=fingerprint(lm.model),
            model_name=lm.name,
            versions=versions(),
            seconds={phase: round(spent, 4) for phase, spent in seconds.items()},
        )

    def with_edits(self, edits: Sequence[Edit]) -> PatchInfo:
        """The same description with other edits."""
        return replace(self, edits=tuple(edits), digest="")

    def with_hyperparams(self, hyperparams: Mapping[str, Any]) -> PatchInfo:
        """The same description with other settings."""
        return replace(self, hyperparams=dict(hyperparams), digest="")


class Patch(ABC):
    """An edit as an object: applied to a model, taken back exactly, saved to a file.

    A subclass says how patches of its kind are put on a model and taken off (:meth:`install`), and
    is listed in :data:`~easyeditor.patches.kinds.PATCHES`; the stack, files and the command line
    need no more. Two patches are equal only if they are the same object.

    Attributes:
        kind: the name of the kind in :data:`~easyeditor.patches.kinds.PATCHES`.
        info: what the patch says of itself.
        extras: tensors that the method needs again at later edits (keys, a codebook's entries), by
            name; one row per edit, saved with the patch.
    """

    __slots__ = ()

    kind: ClassVar[str]
    info: PatchInfo
    extras: Mapping[str, torch.Tensor]

    @classmethod
    @abstractmethod
    def install(cls, model: nn.Module, patches: Sequence[Any], originals: Originals) -> None:
        """Let ``model`` carry exactly these patches of this kind, oldest first; none: as it was.

        Called again with the same patches it changes nothing, also after it was interrupted.
        Weights are written by ``originals``, which can put them back.
        """

    @classmethod
    @abstractmethod
    def merge(cls: type[P], patches: Sequence[P], compact: bool = False) -> P:
        """One patch that does what several of this kind do in this order, bit for bit.

        With ``compact`` it is stored in as few numbers as it can be, and may differ in rounding.
        """

    @abstractmethod
    def dump(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What its file holds beside ``info`` and ``extras``: tensors, and JSON."""

    @classmethod
    @abstractmethod
    def load(
        cls: type[P],
        info: PatchInfo,
        tensors: Mapping[str, torch.Tensor],
        data: Mapping[str, Any],
        extras: Mapping[str, torch.Tensor],
    ) -> P:
        """The patch that :meth:`dump` wrote.

        Raises:
            KeyError, TypeError, ValueError: the file does not hold one.
        """

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """What it changes, one row of plain values per changed thing, for ``easyedit show``."""

    def edit_rows(self) -> list[dict[str, Any]]:
        """What ``easyedit show`` says of each edit beside the edit itself; none by default."""
        return []

    def __repr__(self) -> str:
        n = len(self.info.edits)
        return f"<{type(self).__name__} of {self.info.method}: {n} edit{'s' * (n != 1)}>"

    def to_frame(self) -> Any:
        """One row per edit as a pandas ``DataFrame``: prompt, subject, old and new answer.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        names = ("method", "prompt", "subject", "ground_truth", "target")
        return data_frame([dict(zip(names, row, strict=True)) for row in self._edit_table()])

    def _repr_html_(self) -> str:
        seconds = ", ".join(f"{phase} {spent:.1f} s" for phase, spent in self.info.seconds.items())
        title = f"{repr(self)[1:-1]} for {self.info.model_name or 'a model'}"
        head = ("method", "prompt", "subject", "old", "new")
        parts = table_html(f"{title}; {seconds}" if seconds else title, head, self._edit_table())
        rows = self.rows()
        if not rows:
            return parts
        names = list(dict.fromkeys(name for row in rows for name in row))
        return parts + table_html(
            "What it changes", names, [[row.get(name) for name in names] for row in rows]
        )

    def _edit_table(self) -> list[list[str | None]]:
        return [
            [self.info.method, str(edit.prompt), edit.subject, edit.ground_truth, edit.target]
            for edit in self.info.edits
        ]

    def with_encoder(self: P, name: str) -> P:
        """The same patch with a sentence encoder that the user has named; by default itself."""
        return self

    def is_same_edit(self, other: Patch) -> bool:
        """Whether one of the two was read from a file that holds the other, or the same file."""
        mine, its = self.info.digest, other.info.digest
        if not (mine or its) or type(self) is not type(other):
            return False
        if mine and its:
            return mine == its
        if self.info != other.info:
            return False
        one, two = self.dump()[0], other.dump()[0]
        return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)

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
            PatchStateError: applied already, or a weight was changed by somebody else.
        """
        if not force:
            self.check(model)
        push(model, self)

    def revert(self, model: nn.Module) -> None:
        """Take this patch off, whatever was applied after it; other patches stay.

        Raises:
            PatchStateError: it is not applied to this model, or a weight was changed by somebody
                else.
        """
        pop(model, self)


def merge(patches: Sequence[P], compact: bool = False) -> P:
    """One patch that does what ``patches``, all of one kind, do in this order."""
    if len(patches) == 1 and not compact:
        return patches[0]
    return type(patches[0]).merge(patches, compact)


def merged_info(patches: Sequence[Patch]) -> PatchInfo:
    """The first patch's description with the edits and seconds of all."""
    seconds: dict[str, float] = {}
    for patch in patches:
        for phase, spent in patch.info.seconds.items():
            seconds[phase] = seconds.get(phase, 0.0) + spent
    edits = tuple(edit for patch in patches for edit in patch.info.edits)
    return replace(patches[0].info, edits=edits, seconds=seconds, digest="")


def merged_extras(patches: Sequence[Patch]) -> dict[str, torch.Tensor]:
    """The extras of all patches, one after the other; a name that not every patch has is left out.

    Rows of patches without a name could not be told from each other's.
    """
    names = set.intersection(*(set(patch.extras) for patch in patches))
    return {name: torch.cat([p.extras[name].cpu() for p in patches]) for name in sorted(names)}


def versions() -> dict[str, str]:
    """Of what an edit's bits may depend on."""
    return {"easyeditor": VERSION, **{name: _version(name) for name in ("torch", "transformers")}}


_version = cache(version)  # which reads a file each time
