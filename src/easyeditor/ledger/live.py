"""``LiveLedger``: a ledger and a model in memory that carries its active edits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from easyeditor.editors.session import EditSession
from easyeditor.editors.state_file import load_state, save_state
from easyeditor.edits import Case
from easyeditor.errors import (
    LedgerConflictError,
    LedgerError,
    PatchStateError,
)
from easyeditor.ledger.conflicts import Problem
from easyeditor.ledger.database import as_json, update
from easyeditor.ledger.entries import Entry, EntryState
from easyeditor.ledger.health import Health, HealthGuard, fact_scores, holding, says
from easyeditor.ledger.ledger import DATABASE, Ledger, add_event, set_state
from easyeditor.ledger.limits import HealthLimits
from easyeditor.ledger.loading import check_loading, loading_of
from easyeditor.ledger.recording import (
    UNSAID,
    Wanted,
    mark_superseded,
    rolled_back,
    row_of,
    untaken,
)
from easyeditor.lm.fingerprint import Fingerprint, fingerprint
from easyeditor.lm.model import LM
from easyeditor.lm.quantized import quantized_layers
from easyeditor.model_spec import ModelSpec
from easyeditor.patches.files import load_patch, save_patch
from easyeditor.patches.patch import Patch
from easyeditor.patches.stack import applied_patches


@dataclass(slots=True, eq=False)
class LiveLedger:
    """A ledger whose active edits a model carries, in the order of their numbers.

    Another process may write to the ledger meanwhile; what it did is taken over when the next edit
    begins.

    Attributes:
        ledger: where the edits are written down.
        lm: the model.
        recorded: number of the entry that the last edit became; 0 where it became none.
    """

    ledger: Ledger
    lm: LM
    guard: HealthGuard = field(init=False)
    _patches: dict[int, Patch] = field(default_factory=dict)
    recorded: int = field(default=0, init=False)
    _state_of: tuple[EditSession, int] | None = field(default=None, init=False, repr=False)
    """The session that goes on from the state after an entry, and its number."""

    def __post_init__(self) -> None:
        self.guard = HealthGuard(self.lm)
        self.check_model()
        others = applied_patches(self.lm.model)
        if others:
            raise LedgerError(
                f"The model carries {len(others)} patches that are not the ledger's. Take them off "
                "first, or make these edits with the ledger."
            )

    def check_model(self) -> None:
        """Make sure that the ledger is of this model.

        Raises:
            LedgerError: it is of another one.
        """
        check_model(self.ledger, self.lm)

    # -- what the model carries -----------------------------------------------------------

    def sync(self, without: Sequence[int] = (), also: Sequence[int] = ()) -> list[Entry]:
        """Let the model carry the patches of the active entries; returns the entries.

        Patches above the first that is out of place are taken off and put on again, so the bits
        depend on the active entries alone.

        Args:
            without: active entries that it shall not carry.
            also: entries that are not active and that it shall carry.

        Raises:
            LedgerError: a patch file is missing or was changed; the model is as before.
        """
        entries = [entry for entry in self.ledger.active() if entry.number not in without]
        if also:
            extra = [self.ledger.entry(number) for number in also]
            entries = sorted([*entries, *extra], key=lambda entry: entry.number)
        wanted = [self._patch(entry) for entry in entries]
        carried = list(applied_patches(self.lm.model))
        same = 0
        while same < min(len(wanted), len(carried)) and wanted[same] is carried[same]:
            same += 1
        for patch in reversed(carried[same:]):
            patch.revert(self.lm.model)
        for patch in wanted[same:]:
            patch.apply(self.lm.model)
        active = {entry.number for entry in entries}
        self._patches = {n: patch for n, patch in self._patches.items() if n in active}
        return entries

    def attach(self, session: EditSession) -> None:
        """See :class:`~easyeditor.editors.recording.EditRecord`."""
        self._resume(session, self.sync())

    def _patch(self, entry: Entry) -> Patch:
        if entry.number not in self._patches:
            assert entry.patch is not None
            file = self.ledger.patches.check(entry.patch, entry.number)
            self._patches[entry.number] = load_patch(file)
        return self._patches[entry.number]

    def _resume(self, session: EditSession, entries: Sequence[Entry]) -> None:
        """Let the session go on from the state after the last active edit by its method."""
        alike = [entry for entry in entries if entry.method == session.method.name]
        last = alike[-1] if alike else None
        before = None if last is None else (session, last.number)
        if before is not None and self._state_of == before:
            return
        state = None
        if last is not None and last.patch is not None:
            file = self.ledger.patches.file(last.patch)
            state = load_state(session.method.state_class, self._patch(last), file)
        session.resume(state)
        self._state_of = before

    # -- edits ----------------------------------------------------------------------------

    @contextmanager
    def recording(
        self, session: EditSession, cases: Sequence[Case], options: Mapping[str, Any]
    ) -> Iterator[Callable[[Patch, Sequence[Mapping[str, Any]]], None]]:
        """See :class:`~easyeditor.editors.recording.EditRecord`."""
        wanted = Wanted.of(options)
        self.recorded = 0
        with self.ledger.locked():
            proposal = self._proposal(wanted.proposal)
            self._resume(session, self.sync())
            replaced = self._conflicts(cases, wanted)
            with self._put_back_on_failure(session):
                entries = self.sync(without=replaced)
                held = holding(fact_scores(self.lm, entries))

                def keep(patch: Patch, metrics: Sequence[Mapping[str, Any]]) -> None:
                    if not patch.info.edits:  # all of it held before: nothing to record
                        _refuse_to_replace(self.ledger.folder, replaced)
                        self.sync()
                        return
                    health = self._health(entries, held)
                    problems = health.problems(self.ledger.limits)
                    missing = untaken(metrics)
                    if missing:
                        problems[Problem.UNTAKEN] = missing
                    left = {k: v for k, v in problems.items() if k not in wanted.allow}
                    row = row_of(cases, patch, metrics, health)
                    number = self._write(session, row, patch, wanted, proposal, replaced, left)
                    if left:
                        raise rolled_back(number, EntryState.PROPOSED, left, health)
                    self.recorded = number
                    self._patches[number] = patch
                    self._state_of = session, number
                    self.sync()

                yield keep

    def redo(
        self,
        number: int,
        author: str = "",
        reason: str = "",
        *,
        supersede: bool = False,
        allow: Sequence[str] = (),
    ) -> Health:
        """Make an entry with a patch active again, if nothing speaks against it.

        Raises:
            LedgerError: it is active, or has no patch yet.
            LedgerConflictError, LedgerHealthError: as for a new edit; the ledger is as before.
        """
        options = {"author": author, "reason": reason, "supersede": supersede, "allow": allow}
        wanted = Wanted.of(options)
        with self.ledger.locked():
            entry = self.ledger.entry(number)
            if entry.state is EntryState.ACTIVE:
                raise LedgerError(f"Edit {number} is active already.")
            if entry.patch is None:
                raise LedgerError(
                    f"Edit {number} is a proposal, and nobody has computed it yet: easyedit "
                    f"ledger redo {self.ledger.folder} {number} does, with its method."
                )
            self.sync()
            replaced = self._conflicts(entry.cases, wanted, number)
            with self._put_back_on_failure(None):
                others = self.sync(without=replaced)
                held = holding(fact_scores(self.lm, others))
                self.sync(without=replaced, also=[number])
                health = self._health(others, held)
                problems = health.problems(self.ledger.limits)
                if not says(self.lm, entry):
                    problems[Problem.UNTAKEN] = UNSAID
                left = {k: v for k, v in problems.items() if k not in wanted.allow}
                if left:
                    with self.ledger.writing() as connection:
                        note = "; ".join(left.values())
                        add_event(connection, number, wanted.author, "rolled back", note)
                    raise rolled_back(number, entry.state, left, health)
                with self.ledger.writing() as connection:
                    set_state(
                        connection, number, EntryState.ACTIVE, wanted.author, "redone", reason
                    )
                    update(connection, number, {"health": as_json(health.to_json())})
                    mark_superseded(connection, replaced, number, wanted)
        return health

    def undo(self, session: EditSession | None, patch: Patch) -> None:
        """See :class:`~easyeditor.editors.recording.EditRecord`."""
        numbers = [number for number, other in self._patches.items() if other is patch]
        if not numbers:
            raise PatchStateError(
                "This patch is not among the active edits of the ledger, so there is nothing to "
                "undo."
            )
        self.undo_entries(numbers, session=session)

    def undo_entries(
        self,
        numbers: Sequence[int],
        author: str = "",
        reason: str = "",
        session: EditSession | None = None,
    ) -> list[int]:
        """:meth:`Ledger.undo`, and the model carries what is active then."""
        returned = self.ledger.undo(numbers, author, reason)
        entries = self.sync()
        if session is not None:
            self._state_of = None
            self._resume(session, entries)
        return returned

    # -- parts of an edit -----------------------------------------------------------------

    def _proposal(self, number: int) -> Entry | None:
        if not number:
            return None
        entry = self.ledger.entry(number)
        if entry.patch is not None:
            raise LedgerError(
                f"Edit {number} has been computed already and is {entry.state}, so there is "
                "nothing to compute. If it is not active, easyedit ledger redo "
                f"{self.ledger.folder} {number} puts it on the model again."
            )
        return entry

    def _conflicts(self, cases: Sequence[Case], wanted: Wanted, number: int = 0) -> list[int]:
        """Numbers of the entries whose place a new edit takes.

        Raises:
            LedgerConflictError: there are conflicts that are neither allowed nor resolved by that.
        """
        replaced, left = self.ledger.resolve(
            cases,
            supersede=wanted.supersede,
            allow=wanted.allow,
            number=number or wanted.proposal,
        )
        if left:
            raise LedgerConflictError(" ".join(conflict.message for conflict in left), left)
        return replaced

    def _health(self, entries: Sequence[Entry], held: set[int]) -> Health:
        """Of the model as it is, where ``held`` of ``entries`` held before the edit."""
        still = holding(fact_scores(self.lm, entries))
        return self.guard.measure(sorted(held - still))

    @contextmanager
    def _put_back_on_failure(self, session: EditSession | None) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._state_of = None
            entries = self.sync()
            if session is not None:
                self._resume(session, entries)
            raise

    def _write(
        self,
        session: EditSession,
        row: dict[str, Any],
        patch: Patch,
        wanted: Wanted,
        proposal: Entry | None,
        replaced: Sequence[int],
        problems: Mapping[Problem, str],
    ) -> int:
        """Store the patch, then its entry in one transaction; returns its number."""

        def write(place: Path) -> None:
            save_state(session.state, patch, place)
            save_patch(patch, place)

        stored = self.ledger.patches.add(write)
        row["patch"] = stored.digest
        state = EntryState.PROPOSED if problems else EntryState.ACTIVE
        note = "; ".join(problems.values())
        with self.ledger.writing() as connection:
            stored.insert(connection, patch.kind)
            event = "rolled back" if problems else "added"
            if proposal is None:
                number = self.ledger.add_row(
                    connection, row, state, wanted.author, wanted.reason, event, note
                )
            else:
                number = proposal.number
                update(connection, number, row)
                set_state(connection, number, state, wanted.author, event, note or wanted.reason)
            if not problems:
                mark_superseded(connection, replaced, number, wanted)
        return number


def _refuse_to_replace(folder: Path, numbers: Sequence[int]) -> None:
    """Let entries not be superseded by an edit that changes nothing: a patch of it is no file.

    Raises:
        LedgerError: there are such entries.
    """
    if numbers:
        listed = " ".join(map(str, numbers))
        raise LedgerError(
            f"The model says this already without what it would supersede ({listed}), so there is "
            f"nothing to put in its place. Undo that: easyedit ledger undo {folder} {listed}; or "
            "edit all the same with force=True."
        )


def check_model(ledger: Ledger, lm: LM) -> None:
    """Make sure that the ledger is of this model.

    Raises:
        LedgerError: it is of another one.
    """
    recorded = Fingerprint.from_dict(ledger.setting("fingerprint"))
    why = recorded.differences(fingerprint(lm.model))
    if why:
        raise LedgerError(
            f"The ledger {ledger.folder} is of another model than {lm.name}: {why}. It was made "
            f"for {ledger.setting('model_name')}; load that one."
        )


def open_live(folder: Path, lm: LM, spec: ModelSpec) -> LiveLedger:
    """The ledger in ``folder``, made if there is none, on ``lm``, loaded as ``spec`` says.

    Raises:
        LedgerError: the ledger is of another model, or of one that is loaded in another way.
    """
    # Of a model that was in memory before, its settings may say what it is not.
    quantization = spec.quantization if quantized_layers(lm.model) else None
    loading = loading_of(
        replace(spec, quantization=quantization, chat_template=lm.text.chat_template)
    )
    if not (folder / DATABASE).is_file() and folder.name != DATABASE:
        create_for(folder, lm, spec.model_name, loading=loading)
    ledger = Ledger(folder)
    check_loading(ledger, loading)
    return LiveLedger(ledger, lm)


def create_for(
    folder: str | Path,
    lm: LM,
    model_name: str = "",
    limits: HealthLimits | None = None,
    loading: Mapping[str, Any] | None = None,
) -> Ledger:
    """Make an empty ledger of this model."""
    about = fingerprint(lm.model).to_dict()
    return Ledger.create(folder, model_name or lm.name, about, limits, loading)
