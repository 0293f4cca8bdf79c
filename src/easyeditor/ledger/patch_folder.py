"""Patch files beside the database, named by the SHA-256 of their bytes.

A patch is written to its end in a scratch folder, its digest is noted in the database, the file
gets its name, and only then its row is written and the note deleted, in one transaction. A process
that is killed anywhere leaves a scratch folder or a noted file, which the next writer deletes;
files of unknown origin are never deleted, only reported.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from easyeditor.errors import LedgerError
from easyeditor.files import sha256_of
from easyeditor.ledger.database import Database

SCRATCH = ".incoming"
SUFFIX, STATE_SUFFIX = ".safetensors", ".state.safetensors"
FAULTS = {"missing": "is missing", "changed": "was changed"}
"""What may be wrong with a file -> how a sentence says so."""
ADVICE = "Put it back from a backup, or undo the edit and make it again."


@dataclass(frozen=True, slots=True)
class StoredPatch:
    """A patch file in its place: its digest and size, and the digest of the state beside it."""

    digest: str
    bytes: int
    state_digest: str | None

    def insert(self, connection: sqlite3.Connection, kind: str) -> None:
        """Add its row, as part of the transaction that makes the edit count."""
        connection.execute(
            "INSERT OR IGNORE INTO patches VALUES (?, ?, ?, ?)",
            (self.digest, kind, self.bytes, self.state_digest),
        )
        connection.execute("DELETE FROM incoming WHERE digest = ?", (self.digest,))


class PatchFolder:
    """The folder of a ledger's patch files; only the holder of the ledger's lock writes there."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.folder = folder
        self._database = database

    def file(self, digest: str) -> Path:
        """Where the patch lies."""
        return self.folder / f"{digest}{SUFFIX}"

    def state_file(self, digest: str) -> Path:
        """Where the method's state after this patch lies, if there is one."""
        return self.folder / f"{digest}{STATE_SUFFIX}"

    def add(self, write: Callable[[Path], object]) -> StoredPatch:
        """Store what ``write(path)`` writes: a patch file, and maybe a state file beside it.

        Raises:
            OSError: the folder cannot be written.
        """
        self.clean()
        scratch = self.folder / SCRATCH
        scratch.mkdir()
        patch, state = scratch / f"edit{SUFFIX}", scratch / f"edit{STATE_SUFFIX}"
        write(patch)
        digest = sha256_of(patch)
        state_digest = sha256_of(state) if state.is_file() else None
        with self._database.writing() as connection:
            known = "SELECT 1 FROM patches WHERE digest = ?"
            if connection.execute(known, (digest,)).fetchone() is None:
                connection.execute("INSERT OR IGNORE INTO incoming VALUES (?)", (digest,))
        size = patch.stat().st_size
        if state_digest is not None:
            _move(state, self.state_file(digest))
        _move(patch, self.file(digest))
        _flush(self.folder)
        shutil.rmtree(scratch, ignore_errors=True)
        return StoredPatch(digest, size, state_digest)

    def leftovers(self) -> bool:
        """Whether a writer died here."""
        with self._database.reading() as connection:
            noted = connection.execute("SELECT 1 FROM incoming").fetchone() is not None
        return noted or (self.folder / SCRATCH).exists()

    def clean(self) -> None:
        """Delete what a writer that died has left; for the holder of the lock."""
        shutil.rmtree(self.folder / SCRATCH, ignore_errors=True)
        with self._database.writing() as connection:
            for (digest,) in connection.execute("SELECT digest FROM incoming").fetchall():
                for file in (self.file(digest), self.state_file(digest)):
                    file.unlink(missing_ok=True)
            connection.execute("DELETE FROM incoming")

    def check(self, digest: str, number: int) -> Path:
        """The file of a patch, unchanged since it was written.

        Raises:
            LedgerError: it is missing or was changed.
        """
        file = self.file(digest)
        problem = fault(file, digest)
        if problem:
            what = f"The patch file of edit {number} {FAULTS[problem]}"
            raise LedgerError(f"{what}: {file}. {ADVICE}")
        return file

    def files(self) -> Iterator[Path]:
        """Everything that lies in the folder."""
        if self.folder.is_dir():
            yield from sorted(self.folder.iterdir())


def fault(file: Path, digest: str) -> str:
    """Which of :data:`FAULTS` a file has that was written with this digest; empty where none."""
    if not file.is_file():
        return "missing"
    return "" if sha256_of(file) == digest else "changed"


def _move(file: Path, place: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    os.replace(file, place)


def _flush(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system lets a folder be opened."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
