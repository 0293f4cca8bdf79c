"""``Ledger``: the entries of one model in a folder; everything that needs no model in memory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from easyeditor.data.write import record_of
from easyeditor.edits import Case
from easyeditor.errors import LedgerBusyError, LedgerError, OutputError
from easyeditor.files import folder_written_whole
from easyeditor.folder_lock import FolderLock
from easyeditor.ledger.conflicts import SAME_FACT, Conflict, Problem, conflicts_with
from easyeditor.ledger.database import Database, as_json, create, insert, update
from easyeditor.ledger.entries import Entry, EntryState, Event, current_user, entry_of, now
from easyeditor.ledger.limits import HealthLimits
from easyeditor.ledger.patch_folder import PatchFolder

DATABASE, PATCHES, LOCK = "ledger.sqlite", "patches", "writer"


class Ledger:
    """A folder with ``ledger.sqlite`` and ``patches/``: the edits of one model.

    The model itself is never written: what is served is the unedited model with the patches of the
    active entries, in the order of their numbers. So taking an entry back, whatever came after it,
    gives the bits of a model that never carried it.

    Args:
        folder: made by :meth:`create`; the path of its database is accepted, too.

    Attributes:
        folder: where it lies.
        patches: the files of the patches.

    Raises:
        LedgerError: there is no ledger, or it cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        place = Path(folder)
        self.folder = place.parent if place.name == DATABASE else place
        if not (self.folder / DATABASE).is_file():
            raise LedgerError(
                f"There is no ledger in {self.folder} (no {DATABASE}). Make one: easyedit ledger "
                f"init {self.folder} --model MODEL."
            )
        self._database = Database(self.folder / DATABASE)
        self.patches = PatchFolder(self.folder / PATCHES, self._database)
        self._clean()

    @classmethod
    def create(
        cls,
        folder: str | Path,
        model_name: str,
        fingerprint: Mapping[str, Any],
        limits: HealthLimits | None = None,
        loading: Mapping[str, Any] | None = None,
    ) -> Ledger:
        """Make an empty ledger; it appears whole or not at all.

        Args:
            folder: missing or empty.
            model_name: what the model is loaded by.
            fingerprint: of the unedited model, as JSON types.
            limits: of the health guard.
            loading: how the model is loaded (``dtype``, ``chat_template`` …).

        Raises:
            OutputError: the folder is not empty, or cannot be written.
        """
        if (Path(folder) / DATABASE).exists():
            raise OutputError(f"{folder} holds a ledger already; name another folder.")
        settings = {
            "model_name": model_name,
            "fingerprint": dict(fingerprint),
            "limits": (limits or HealthLimits()).to_json(),
            "loading": dict(loading or {}),
            "created": now(),
        }
        with folder_written_whole(Path(folder)) as part:
            (part / PATCHES).mkdir()
            create(part / DATABASE, settings)
        return cls(folder)

    def _clean(self) -> None:
        """Delete what a killed writer has left, unless another writer is at work."""
        if self.patches.leftovers():
            with suppress(LedgerBusyError, OSError), self._lock():
                self.patches.clean()

    def _lock(self) -> FolderLock:
        advice = "Wait until it is done, or stop it; a ledger has one writer at a time."
        return FolderLock(self.folder, LOCK, LedgerBusyError, advice)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """This process alone writes to the ledger inside.

        Raises:
            LedgerBusyError: another process does; names it.
        """
        try:
            lock = self._lock()
            lock.acquire()
        except OSError as error:
            raise LedgerError(f"{self.folder} cannot be written: {error.strerror}.") from None
        try:
            with self._database.held_open():
                if self.patches.leftovers():
                    self.patches.clean()
                yield
        finally:
            lock.release()

    # -- reading --------------------------------------------------------------------------

    def setting(self, name: str) -> Any:
        """What :meth:`create` was given: ``model_name``, ``fingerprint``, ``limits`` …."""
        with self._database.reading() as connection:
            row = connection.execute("SELECT value FROM settings WHERE name = ?", (name,))
            return json.loads(row.fetchone()["value"])

    @property
    def limits(self) -> HealthLimits:
        """Of the health guard."""
        return HealthLimits.from_json(self.setting("limits"))

    def entries(self, *states: EntryState) -> list[Entry]:
        """The entries in one of these states, by number; all of them without any."""
        marks = ", ".join("?" * len(states))
        where = f"WHERE state IN ({marks})" if states else ""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT * FROM edits {where} ORDER BY id", [str(state) for state in states]
            )
            return [entry_of(row) for row in rows]

    def active(self) -> list[Entry]:
        """The entries whose patches the served model carries, in that order."""
        return self.entries(EntryState.ACTIVE)

    def active_patches(self) -> list[tuple[int, str]]:
        """Number and digest of the patch of every active entry: all that a server asks, and cheap.

        A model that carries these patches in this order is the one that the ledger describes.
        """
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT id, patch FROM edits WHERE state = 'active' AND patch IS NOT NULL ORDER BY "
                "id"
            )
            return [(int(row["id"]), str(row["patch"])) for row in rows]

    def entry(self, number: int) -> Entry:
        """One entry.

        Raises:
            LedgerError: there is none with this number.
        """
        with self._database.reading() as connection:
            row = connection.execute("SELECT * FROM edits WHERE id = ?", (number,)).fetchone()
            (count,) = connection.execute("SELECT count(*) FROM edits").fetchone()
        if row is None:
            numbers = f"Its edits are 1 to {count}" if count else "It holds no edits yet"
            raise LedgerError(f"There is no edit {number} in {self.folder}. {numbers}.")
        return entry_of(row)

    def history(self, number: int) -> list[Event]:
        """What happened to an entry, oldest first."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT * FROM events WHERE edit = ? ORDER BY id", (number,))
            return [Event(row["at"], row["author"], row["event"], row["reason"]) for row in rows]

    def conflicts(self, cases: Sequence[Case]) -> list[Conflict]:
        """What speaks against an edit before it is made."""
        return conflicts_with(cases, self.active())

    def resolve(
        self,
        cases: Sequence[Case],
        *,
        supersede: bool = False,
        allow: Collection[Problem] = (),
        number: int = 0,
    ) -> tuple[list[int], list[Conflict]]:
        """Which active entries an edit replaces, and which conflicts stand in its way then.

        Args:
            cases: of the edit.
            supersede: take the place of entries of the same fact.
            allow: problems that do not stand in the way.
            number: of the entry that is made, or made again: it takes the place of what it
                superseded before.
        """
        active = [entry for entry in self.active() if entry.number != number]
        replaced = {entry.number for entry in active if number and entry.superseded_by == number}
        if supersede:
            same = [c for c in conflicts_with(cases, active) if c.problem in SAME_FACT]
            replaced |= {other for conflict in same for other in conflict.entries}
        rest = [entry for entry in active if entry.number not in replaced]
        left = [c for c in conflicts_with(cases, rest) if c.problem not in allow]
        return sorted(replaced), left

    # -- changing -------------------------------------------------------------------------

    def propose(
        self,
        cases: Sequence[Case],
        method: str,
        settings: Mapping[str, Any],
        author: str = "",
        reason: str = "",
    ) -> int:
        """Write down an edit that nobody has made yet; returns its number."""
        with self.locked(), self._database.writing() as connection:
            row = _row(cases, method, settings)
            return self.add_row(connection, row, EntryState.PROPOSED, author, reason, "proposed")

    def undo(self, numbers: Sequence[int], author: str = "", reason: str = "") -> list[int]:
        """Take entries back, whatever came after them; what they superseded is active again.

        Returns:
            Numbers of the entries that became active in their place.

        Raises:
            LedgerError: an entry does not exist, or is taken back already; none is changed.
            LedgerBusyError: another process writes.
        """
        author = author or current_user()
        with self.locked():
            entries = [self.entry(number) for number in dict.fromkeys(numbers)]
            for entry in entries:
                _refuse_undone(entry)
            with self._database.writing() as connection:
                returned: list[int] = []
                for entry in entries:
                    was_active = entry.state is EntryState.ACTIVE
                    set_state(connection, entry.number, EntryState.UNDONE, author, "undone", reason)
                    if was_active:
                        returned += _reactivated(connection, entry.number, author)
        return sorted(returned)

    def add_row(
        self,
        connection: sqlite3.Connection,
        row: Mapping[str, Any],
        state: EntryState,
        author: str,
        reason: str,
        event: str,
        note: str = "",
    ) -> int:
        """Add an entry inside a transaction; returns its number."""
        author = author or current_user()
        about = {"state": str(state), "author": author, "created": now(), "reason": reason}
        number = insert(connection, "edits", {**about, **row})
        add_event(connection, number, author, event, note or reason)
        return number

    def writing(self) -> Any:
        """A transaction of the database; for the holder of :meth:`locked`."""
        return self._database.writing()

    def reading(self) -> Any:
        """A consistent view of the database."""
        return self._database.reading()


def _row(cases: Sequence[Case], method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "request": as_json([record_of(case) for case in cases]),
        "method": method,
        "settings": as_json(settings),
        "before": "[]",
        "after": "[]",
        "health": "{}",
    }


def _refuse_undone(entry: Entry) -> None:
    if entry.state in (EntryState.UNDONE, EntryState.SUPERSEDED):
        by = f" by edit {entry.superseded_by}; undo that one" if entry.superseded_by else ""
        state = "undone already" if entry.state is EntryState.UNDONE else f"superseded{by}"
        raise LedgerError(
            f"Edit {entry.number} is {state}, so there is nothing to take back. easyedit ledger ls "
            "shows what is active."
        )


def _reactivated(connection: sqlite3.Connection, number: int, author: str) -> list[int]:
    """Let what an entry superseded be active again; returns the numbers."""
    rows = connection.execute(
        "SELECT id FROM edits WHERE superseded_by = ? AND state = 'superseded' ORDER BY id",
        (number,),
    )
    numbers = [int(row["id"]) for row in rows.fetchall()]
    for former in numbers:
        reason = f"edit {number}, which had taken its place, was undone"
        set_state(connection, former, EntryState.ACTIVE, author, "active again", reason)
    return numbers


def set_state(
    connection: sqlite3.Connection,
    number: int,
    state: EntryState,
    author: str,
    event: str,
    reason: str,
) -> None:
    """Change the state of an entry and write down who did it, inside a transaction."""
    update(connection, number, {"state": str(state)})
    add_event(connection, number, author, event, reason)


def add_event(
    connection: sqlite3.Connection, number: int, author: str, event: str, reason: str
) -> None:
    """Write down what happened to an entry."""
    row = {"edit": number, "at": now(), "author": author, "event": event, "reason": reason}
    insert(connection, "events", row)
