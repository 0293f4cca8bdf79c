"""What a ledger holds, as objects: entries, their history, the four states."""

from __future__ import annotations

import getpass
import json
import os
import sqlite3
import time
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from easyeditor.data.edits_file import case_of
from easyeditor.data.fields import Fields
from easyeditor.edits import Case, Edit


class EntryState(str, Enum):
    """What has become of an edit.

    ``proposed``: written down, but the model does not carry it: nobody made it yet, or it was
    beyond the limits of health. ``superseded``: another edit of the same fact took its place.
    """

    PROPOSED = "proposed"
    ACTIVE = "active"
    UNDONE = "undone"
    SUPERSEDED = "superseded"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Entry:
    """One call of an editor: one or several facts that were edited together, in one patch.

    Attributes:
        number: counts from 1; the model carries active entries in this order.
        state: what has become of it.
        author: who made it.
        created: when, in UTC.
        reason: why, in the author's words.
        request: the cases, as records of a file of edits.
        method: the method's name.
        settings: all hyper-parameters.
        patch: SHA-256 of the patch's file; None as long as nobody computed it.
        before: per case the scores of the model before the edit.
        after: the same after it.
        health: of the edited model, see :class:`~easyeditor.ledger.health.Health`.
        superseded_by: the entry that took its place last.
    """

    number: int
    state: EntryState
    author: str
    created: str
    reason: str
    request: tuple[dict[str, Any], ...]
    method: str
    settings: dict[str, Any]
    patch: str | None
    before: tuple[dict[str, Any], ...]
    after: tuple[dict[str, Any], ...]
    health: dict[str, Any]
    superseded_by: int | None

    @property
    def cases(self) -> list[Case]:
        """What was requested, with its probes."""
        return [case_of(Fields(record), i) for i, record in enumerate(self.request)]

    @property
    def edits(self) -> list[Edit]:
        """Every edit of every case."""
        return [edit for case in self.cases for edit in case.edits]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON types."""
        return {**asdict(self), "state": str(self.state)}


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to an entry: who did what, when and why."""

    at: str
    author: str
    event: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON types."""
        return asdict(self)


def entry_of(row: sqlite3.Row) -> Entry:
    """An entry from its row."""
    return Entry(
        number=row["id"],
        state=EntryState(row["state"]),
        author=row["author"],
        created=row["created"],
        reason=row["reason"],
        request=tuple(json.loads(row["request"])),
        method=row["method"],
        settings=json.loads(row["settings"]),
        patch=row["patch"],
        before=tuple(json.loads(row["before"])),
        after=tuple(json.loads(row["after"])),
        health=json.loads(row["health"]),
        superseded_by=row["superseded_by"],
    )


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def current_user() -> str:
    """``$EASYEDITOR_AUTHOR``, else the name this process runs under."""
    given = os.environ.get("EASYEDITOR_AUTHOR", "").strip()
    if given:
        return given
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container without a name for the user
        return "unknown"
