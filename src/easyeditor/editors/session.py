"""``EditSession``: make an edit, measure, keep it or put the model back; editors and bench use it.

One place holds the loop, its clock and the method's state; what is measured is the caller's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from easyeditor.editors.apply_method import outcome_of
from easyeditor.edits import Edit
from easyeditor.errors import DivergedError, EditFailed
from easyeditor.lm.model import LM
from easyeditor.methods.base import Method, State
from easyeditor.patches.patch import Patch
from easyeditor.patches.stack import applied, applied_patches, collapse, without_patches
from easyeditor.timing import Peak, peak_memory


@dataclass(frozen=True, slots=True)
class Attempt:
    """The result of one call of a method, whose patch is not applied yet.

    Attributes:
        patch: the change; None where the edit failed.
        state: the method's state after it.
        seconds: of the call.
        peak: memory of the call, where it was measured.
        error: why the edit failed, or an empty text.
    """

    patch: Patch | None
    state: State | None
    seconds: float = 0.0
    peak: Peak | None = None
    error: str = ""


class EditSession:
    """A sequence of edits of one model by one method.

    Attributes:
        lm: the model.
        method: computes the patches.
        patches: what :meth:`keep` applied since the last :meth:`finish`, oldest first.

    Args:
        state: the method's state to go on from; by default the initial one, which is computed on
            the unedited model when it is first needed.
    """

    def __init__(self, lm: LM, method: Method[Any], state: State | None = None) -> None:
        self.lm = lm
        self.method = method
        self.patches: list[Patch] = []
        self._state = state
        self._initial: State | None = None
        self._prepared = False

    @property
    def state(self) -> State | None:
        """The method's state after the edits that were kept; None for a method without state."""
        return self._state if self._state is not None else self.initial_state

    @property
    def initial_state(self) -> State | None:
        """The method's state before any edit, computed once, on the unedited model."""
        if not self._prepared:
            with without_patches(self.lm.model):
                self._initial = self.method.initial_state(self.lm)
            self._prepared = True
        return self._initial

    def resume(self, state: State | None) -> None:
        """Go on from this state; None stands for the initial one."""
        self._state = state

    def attempt(
        self,
        edits: Sequence[Edit],
        *,
        on: Patch | None = None,
        memory: bool = False,
        failures: bool = False,
    ) -> Attempt:
        """Compute the patch for ``edits``; the model is bit-identical afterwards.

        Args:
            edits: what shall be true at once.
            on: a patch that the model carries meanwhile: the edits so far.
            memory: measure the peak of memory, too.
            failures: return edits that failed as attempts with ``error`` instead of raising.

        Raises:
            EditFailed, DivergedError: the edit failed, unless ``failures``.
        """
        state = self.state  # before the clock starts
        outcome, error = None, ""
        with self.carrying(on):
            began = time.perf_counter()
            with peak_memory(self.lm.device) if memory else nullcontext() as peak:
                try:
                    outcome = outcome_of(self.method, self.lm, edits, state)
                except (DivergedError, EditFailed) as failure:
                    if not failures:
                        raise
                    error = str(failure)
            seconds = time.perf_counter() - began
        if outcome is None:
            return Attempt(None, state, seconds, peak, error)
        after = state if outcome.state is None else outcome.state
        return Attempt(outcome.patch, after, seconds, peak)

    @contextmanager
    def carrying(self, patch: Patch | None) -> Iterator[None]:
        """The model carries ``patch`` inside, beside what it carries, and as before after."""
        with nullcontext() if patch is None else applied(self.lm.model, patch):
            yield

    @contextmanager
    def measured(self, attempt: Attempt, *, keep: bool) -> Iterator[None]:
        """The model carries the attempt's patch inside; after, only with ``keep``.

        With ``keep`` the method's state goes on, too; without, it is what it was.
        """
        if keep:
            self.keep(attempt)
            yield
            return
        with self.carrying(attempt.patch):
            yield
        if attempt.patch is not None:
            self.patches.append(attempt.patch)

    def keep(self, attempt: Attempt) -> None:
        """Apply the attempt's patch for good, and go on from its state."""
        if attempt.patch is not None:
            self.patches.append(attempt.patch)  # first: an interrupt must not lose it
            attempt.patch.apply(self.lm.model, force=True)
            self._state = attempt.state

    def put_back(self, state: State | None) -> None:
        """Take off every patch that was kept since the last :meth:`finish`; ``state`` is current.

        All or nothing: a sequence that broke off leaves the model as it was.
        """
        carried = {id(patch) for patch in applied_patches(self.lm.model)}
        try:
            while self.patches:
                patch = self.patches[-1]
                if id(patch) in carried:
                    patch.revert(self.lm.model)
                self.patches.pop()
        finally:
            self._state = state

    def finish(self, whole: Patch) -> None:
        """Let ``whole``, the merged :attr:`patches`, stand for them; the next sequence begins."""
        patches, self.patches = self.patches, []
        carried = {id(patch) for patch in applied_patches(self.lm.model)}
        if patches and all(id(patch) in carried for patch in patches):
            collapse(self.lm.model, patches, whole)
