"""``ServedModels``: one name per set of patches, one copy of the model per name.

A copy shares every tensor that its patches leave alone (:mod:`easyeditor.patches.copies`), so a
name costs the memory of the edited matrices, switching between names costs nothing, and the
requests for one name cannot reach the weights, hooks and routers of another.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from easyeditor.errors import (
    ServingError,
    UnknownServedModelError,
    UnsupportedModelError,
    did_you_mean,
)
from easyeditor.ledger.ledger import Ledger
from easyeditor.ledger.live import check_model
from easyeditor.lm.model import LM
from easyeditor.patches.copies import shared_copy
from easyeditor.patches.files import load_patch
from easyeditor.patches.patch import Patch
from easyeditor.patches.stack import applied_patches

LEDGER = "ledger"
JOINT = "+"
MAX_COPIES = 16
"""Copies that are held; the one that was not used for the longest time is let go."""
_Key = tuple[tuple[str, ...], tuple[tuple[int, str], ...]]
"""The parts of a name, and the ledger's edits: their numbers and the digests of their patches."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One name with the model that answers to it.

    Attributes:
        name: as requests write it.
        lm: the copy; only the thread of the engine runs it.
        patches: what it carries, in that order.
        entries: numbers of the ledger's edits among them.
        build_seconds: what it took to copy the model and to apply the patches.
    """

    name: str
    lm: LM
    patches: tuple[Patch, ...]
    entries: tuple[int, ...]
    build_seconds: float


class ServedModels:
    """The names that a server answers to, and their models, built when they are first asked for.

    The unedited model's name stands for itself; ``NAME+PATCH`` and ``NAME+ledger`` for it with a
    patch, or with the ledger's active edits, as they are when the request arrives; several are
    joined by ``+``. Whatever their order in the name, the ledger's edits are applied first and then
    the patches as ``patches`` lists them. A patch that the ledger has, too, is applied once.

    Args:
        lm: the unedited model. It is never run: its copies are.
        ledger: of this model.
        patches: by the names that requests give them.
        max_copies: how many copies are held at once.

    Raises:
        ServingError: two names are the same, or one cannot be part of a name.
        LedgerError: the ledger is of another model, or a patch file of it is missing or changed.
        PatchMismatchError: a patch was made for another model.
        UnsupportedModelError: the model is an encoder-decoder.
    """

    def __init__(
        self,
        lm: LM,
        *,
        ledger: Ledger | None = None,
        patches: Mapping[str, Patch] | None = None,
        max_copies: int = MAX_COPIES,
    ) -> None:
        self.base = lm.name
        self.created = int(time.time())
        self._lm, self._ledger, self._max_copies = lm, ledger, max_copies
        self._patches = dict(patches or {})
        self._of_ledger: dict[str, Patch] = {}
        self._copies: OrderedDict[_Key, ServedModel] = OrderedDict()
        self._ledger_model: PreTrainedModel | None = None
        self._lock, self._building = threading.Lock(), threading.RLock()
        if lm.encoder_decoder:
            raise UnsupportedModelError(
                f"{lm.name} is an encoder-decoder, and only models that continue a text are served "
                "here. Use easyedit generate --patch."
            )
        self._check_names()
        lm.tokenizer("a")  # a tokenizer's first call may change its settings; later ones read them
        for patch in self._patches.values():
            patch.check(lm.model)
        if ledger is not None:
            check_model(ledger, lm)
        for name in self.names():  # what cannot be applied is known before the first request
            self.get(name)

    def _check_names(self) -> None:
        for name in self._patches:
            if not name.strip() or JOINT in name:
                raise ServingError(
                    f"{name!r} cannot be the name of a patch in the name of a model: it is empty "
                    f"or holds a {JOINT}. Give it another: --patch NAME=FILE."
                )
        if self._ledger is not None and LEDGER in self._patches:
            raise ServingError(
                f"A patch is called {LEDGER!r}, which stands for the edits of the ledger. Give it "
                "another name: --patch NAME=FILE."
            )

    @property
    def parts(self) -> list[str]:
        """What may follow the base name, in the order in which it is applied."""
        return [*([LEDGER] if self._ledger is not None else []), *self._patches]

    def names(self) -> list[str]:
        """The unedited model, each part alone, and all parts together."""
        single = [f"{self.base}{JOINT}{part}" for part in self.parts]
        together = [JOINT.join((self.base, *self.parts))] if len(self.parts) > 1 else []
        return [self.base, *single, *together]

    def get(self, name: str) -> ServedModel:
        """The model for a name, with the edits that the ledger has now.

        Raises:
            UnknownServedModelError: there is no such name; the message lists them.
            LedgerError: a patch file of the ledger is missing or was changed.
        """
        chosen = self._chosen(name)
        entries = self._active(chosen)
        key = (chosen, tuple(entries))
        with self._lock:
            if key in self._copies:
                self._copies.move_to_end(key)
                return self._copies[key]
        with self._building:  # names that are there already do not wait for it
            with self._lock:
                if key in self._copies:
                    return self._copies[key]
            model = self._build(chosen, entries)
            with self._lock:
                for other in [k for k in self._copies if k[0] == chosen]:
                    del self._copies[other]  # the same name, with edits the ledger had before
                self._copies[key] = model
                while len(self._copies) > self._max_copies:
                    self._copies.popitem(last=False)
        return model

    def contents(self, name: str) -> tuple[list[Patch], list[int]]:
        """The patches of a name, and the numbers of the ledger's edits among them.

        Raises:
            UnknownServedModelError, LedgerError: see :meth:`get`.
        """
        chosen = self._chosen(name)
        entries = self._active(chosen)
        with self._building:
            patches = [*self._of_entries(entries), *self._named(chosen, entries)]
        return patches, [number for number, _ in entries]

    def _chosen(self, name: str) -> tuple[str, ...]:
        """The parts of a name, in the order in which they are applied."""
        if name == self.base:
            return ()
        rest = name.removeprefix(f"{self.base}{JOINT}").split(JOINT)
        chosen = tuple(part for part in self.parts if part in rest)
        if not name.startswith(f"{self.base}{JOINT}") or len(chosen) != len(rest):
            known = self.names()
            more = f" Parts are joined by {JOINT}." if len(self.parts) > 1 else ""
            raise UnknownServedModelError(
                f"There is no model {name[:200]!r} here.{did_you_mean(name[:200], known)} Served: "
                f"{', '.join(known)}.{more}"
            )
        return chosen

    def _active(self, chosen: Collection[str]) -> list[tuple[int, str]]:
        """The ledger's active edits, if it is among the parts of a name."""
        if self._ledger is None or LEDGER not in chosen:
            return []
        return self._ledger.active_patches()

    def _build(self, chosen: Collection[str], entries: Sequence[tuple[int, str]]) -> ServedModel:
        start = time.perf_counter()
        patches = self._of_entries(entries)
        model = shared_copy(self._with_ledger(patches) if patches else self._lm.model)
        for patch in self._named(chosen, entries):
            patch.apply(model, force=True)
            patches.append(patch)
        model.eval().requires_grad_(False)
        lm = LM(model, self._lm.tokenizer)
        name = JOINT.join((self.base, *chosen))
        numbers = tuple(number for number, _ in entries)
        return ServedModel(name, lm, tuple(patches), numbers, time.perf_counter() - start)

    def _with_ledger(self, patches: Sequence[Patch]) -> PreTrainedModel:
        """A model that is never run and carries exactly the ledger's patches.

        It is held from one change of the ledger to the next: an edit that is added or undone costs
        that edit, not all of them.
        """
        if self._ledger_model is None:
            self._ledger_model = shared_copy(self._lm.model)
        wanted = set(map(id, patches))
        for patch in applied_patches(self._ledger_model):
            if id(patch) not in wanted:
                patch.revert(self._ledger_model)
        carried = applied_patches(self._ledger_model)
        if list(carried) != list(patches[: len(carried)]):  # an old edit was redone below others
            self._ledger_model, carried = shared_copy(self._lm.model), ()
        for patch in patches[len(carried) :]:
            patch.apply(self._ledger_model, force=True)
        return self._ledger_model

    def _of_entries(self, entries: Sequence[tuple[int, str]]) -> list[Patch]:
        """The patches of the ledger's edits, each read once."""
        former = self._of_ledger
        result: dict[str, Patch] = {}
        for number, digest in entries:
            if digest not in former:
                assert self._ledger is not None
                former[digest] = load_patch(self._ledger.patches.check(digest, number))
            result[digest] = former[digest]
        if entries:
            self._of_ledger = dict(result)
        return list(result.values())

    def _named(
        self, chosen: Collection[str], entries: Sequence[tuple[int, str]]
    ) -> Iterator[Patch]:
        """The patches of a name beside the ledger's, without those that the ledger has, too."""
        before = self._of_entries(entries)
        for name, patch in self._patches.items():
            if name in chosen and not any(patch.is_same_edit(other) for other in before):
                before.append(patch)
                yield patch
