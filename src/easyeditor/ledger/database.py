"""The ledger's SQLite file: its tables, how it is opened, and its transactions.

Written in WAL mode with ``synchronous = FULL``: what a transaction committed is there after a kill
and after a power failure, what it did not commit never was. A connection is opened per use, so a
ledger can be used by any thread.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from easyeditor.errors import LedgerBusyError, LedgerError

FORMAT = 1
APPLICATION_ID = 0x45456C67
"""Stands in the header of the file, so that another program's database is not taken for ours."""
BUSY_SECONDS = 5.0
"""How long a transaction waits for another program's before it gives up."""
TABLES = """
CREATE TABLE settings (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
CREATE TABLE patches (
    digest TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    state_digest TEXT
);
CREATE TABLE incoming (
    digest TEXT PRIMARY KEY
);
CREATE TABLE edits (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    state TEXT NOT NULL CHECK (state IN ('proposed', 'active', 'undone', 'superseded')),
    author TEXT NOT NULL,
    created TEXT NOT NULL,
    reason TEXT NOT NULL,
    request TEXT NOT NULL,
    method TEXT NOT NULL,
    settings TEXT NOT NULL,
    patch TEXT REFERENCES patches (digest),
    before TEXT NOT NULL,
    after TEXT NOT NULL,
    health TEXT NOT NULL,
    superseded_by INTEGER REFERENCES edits (id),
    CHECK (state <> 'active' OR patch IS NOT NULL)
);
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    edit INTEGER NOT NULL REFERENCES edits (id),
    at TEXT NOT NULL,
    author TEXT NOT NULL,
    event TEXT NOT NULL,
    reason TEXT NOT NULL
);
CREATE INDEX edits_by_state ON edits (state);
CREATE INDEX events_by_edit ON events (edit);
"""


class Database:
    """One SQLite file.

    Args:
        file: it must have been made by :func:`create`.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees one state of the database, whatever others write meanwhile.

        Raises:
            LedgerError: the file is no ledger, or is damaged.
        """
        with self._connection() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("ROLLBACK")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all that is written inside is in the file afterwards, or nothing is.

        Raises:
            LedgerBusyError: another program holds the database's lock.
            LedgerError: the file is no ledger, or cannot be written.
        """
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextmanager
    def held_open(self) -> Iterator[None]:
        """The file stays open inside: the last connection that is closed writes the WAL back."""
        with self._connection():
            yield

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = _connect(self.file)
            try:
                _check(connection)
                yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise _explained(self.file, error) from None


def create(file: Path, settings: Mapping[str, Any]) -> None:
    """Make the database of an empty ledger.

    Raises:
        OSError: the place cannot be written.
    """
    connection = sqlite3.connect(file, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(
            f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT};"
            f"{TABLES} COMMIT;"
        )
        rows = [(name, as_json(value)) for name, value in settings.items()]
        connection.executemany("INSERT INTO settings VALUES (?, ?)", rows)
    except sqlite3.OperationalError as error:
        raise OSError(f"{file} cannot be written: {error}") from None
    finally:
        connection.close()


def insert(connection: sqlite3.Connection, table: str, row: Mapping[str, Any]) -> int:
    """Add a row; returns its id."""
    names, marks = ", ".join(row), ", ".join("?" * len(row))
    cursor = connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", [*row.values()])
    return int(cursor.lastrowid or 0)


def update(connection: sqlite3.Connection, number: int, row: Mapping[str, Any]) -> None:
    """Change fields of the edit with this number."""
    fields = ", ".join(f"{name} = ?" for name in row)
    connection.execute(f"UPDATE edits SET {fields} WHERE id = ?", [*row.values(), number])


def as_json(value: Any) -> str:
    """A value as JSON text; numbers that are not finite become null, tuples lists."""
    return json.dumps(finite(value), ensure_ascii=False, sort_keys=True, allow_nan=False)


def finite(value: Any) -> Any:
    """A JSON value without NaN and infinity, which become None."""
    if isinstance(value, Mapping):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _connect(file: Path) -> sqlite3.Connection:
    place = f"{file.resolve().as_uri()}?mode=rw"  # a file that is missing is not made
    connection = sqlite3.connect(place, uri=True, isolation_level=None, timeout=BUSY_SECONDS)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _check(connection: sqlite3.Connection) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise sqlite3.DatabaseError("it is another program's database")
    if version != FORMAT:
        raise sqlite3.DatabaseError(
            f"it has format {version}, and this version reads format {FORMAT}"
        )


def _explained(file: Path, error: sqlite3.Error) -> LedgerError:
    if "locked" in str(error) or "busy" in str(error):
        return LedgerBusyError(
            f"Another program holds a lock on {file}, longer than {BUSY_SECONDS:.0f} s. Let it "
            "finish, or close it."
        )
    return LedgerError(
        f"The ledger's database {file} cannot be used: {error}. If it is damaged, put a backup of "
        "the whole folder in its place."
    )
