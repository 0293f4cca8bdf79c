"""``ServedModels``: one name per set of patches, one copy of the model per name.

A copy shares every tensor that its patches leave alone (:mod:`easyeditor.patches.copies`), so a
name costs the memory of the edited matrices, switching between names costs nothing, and the
requests for one name cannot reach the weights, hooks and routers of another.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from easyeditor.errors import ServingError, UnknownServedModelError, did_you_mean
from easyeditor.ledger.ledger import Ledger
from easyeditor.ledger.live import check_model
from easyeditor.lm.model import LM
from easyeditor.patches.copies import shared_copy
from easyeditor.patches.files import load_patch
from easyeditor.patches.patch import Patch

LEDGER = "ledger"
JOINT = "+"
MAX_COPIES = 16
"""Copies that are held; the one that was not used for the longest time is let go."""


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
        self._copies: OrderedDict[tuple[Any, ...], ServedModel] = OrderedDict()
        self._lock = threading.RLock()
        self._check_names()
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
        with self._lock:
            entries = self._active() if LEDGER in chosen else []
            key = (*chosen, *entries)
            if key in self._copies:
                self._copies.move_to_end(key)
                return self._copies[key]
            for other in [k for k in self._copies if k[: len(chosen)] == chosen]:
                del self._copies[other]  # the same name, with edits that the ledger had before
            model = self._build(chosen, entries)
            self._copies[key] = model
            while len(self._copies) > self._max_copies:
                self._copies.popitem(last=False)
            return model

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

    def _active(self) -> list[tuple[int, str]]:
        assert self._ledger is not None
        return self._ledger.active_patches()

    def _build(self, chosen: Sequence[str], entries: Sequence[tuple[int, str]]) -> ServedModel:
        start = time.perf_counter()
        patches = self._ledger_patches(entries)
        for patch in self._named(chosen):
            if not any(patch.is_same_edit(other) for other in patches):
                patches.append(patch)
        twin = shared_copy(self._lm.model)
        for patch in patches:
            patch.apply(twin, force=True)
        twin.eval().requires_grad_(False)
        lm = LM(twin, self._lm.tokenizer)
        name = JOINT.join((self.base, *chosen))
        numbers = tuple(number for number, _ in entries)
        return ServedModel(name, lm, tuple(patches), numbers, time.perf_counter() - start)

    def _named(self, chosen: Sequence[str]) -> Iterator[Patch]:
        yield from (patch for name, patch in self._patches.items() if name in chosen)

    def _ledger_patches(self, entries: Sequence[tuple[int, str]]) -> list[Patch]:
        if self._ledger is None:
            return []
        former, self._of_ledger = self._of_ledger, {}
        for number, digest in entries:
            if digest not in former:
                former[digest] = load_patch(self._ledger.patches.check(digest, number))
            self._of_ledger[digest] = former[digest]
        return list(self._of_ledger.values())
