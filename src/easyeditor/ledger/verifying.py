"""Whether a ledger is whole: its database, its patch files, and the model it is of."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from easyeditor.errors import SignatureError
from easyeditor.ledger.ledger import Ledger
from easyeditor.ledger.patch_folder import ADVICE, FAULTS, fault
from easyeditor.sharing.manifest import PROBLEMS, SIGNATURE, problems, read_manifest
from easyeditor.sharing.signing import check_signature


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a ledger.

    Attributes:
        problem: ``changed``, ``missing``, ``orphaned``, ``model`` or ``database``; of an
            export also ``added`` and ``signature``.
        file: that is concerned; empty for the model.
        entries: numbers of the entries that need it.
        message: what is wrong and what to do.
    """

    problem: str
    file: str
    entries: tuple[int, ...]
    message: str

    def to_json(self) -> dict[str, Any]:
        """By name."""
        return asdict(self)


def findings(ledger: Ledger) -> list[Finding]:
    """What is wrong with the files of a ledger; nothing is changed."""
    with ledger.reading() as connection:
        patches = connection.execute("SELECT * FROM patches").fetchall()
        incoming = {digest for (digest,) in connection.execute("SELECT digest FROM incoming")}
        users: dict[str, list[int]] = {}
        for number, digest in connection.execute("SELECT id, patch FROM edits ORDER BY id"):
            users.setdefault(digest, []).append(number)
        broken = list(_database(connection, ledger.folder))
    result = broken
    expected: set[Path] = set()
    for row in patches:
        numbers = tuple(users.get(row["digest"], ()))
        files = [(ledger.patches.file(row["digest"]), row["digest"], "patch file")]
        if row["state_digest"] is not None:
            state = ledger.patches.state_file(row["digest"])
            files.append((state, row["state_digest"], "file of the method's state"))
        for file, digest, what in files:
            expected.add(file)
            result += _file(file, digest, what, numbers)
    for digest in incoming:  # a writer is at work on them
        expected |= {ledger.patches.file(digest), ledger.patches.state_file(digest)}
    result += [
        Finding(
            "orphaned",
            str(file),
            (),
            f"{file} belongs to no edit of the ledger. It was put there by another program, or by "
            "a newer ledger than this one; move it away, or put the newer database back.",
        )
        for file in ledger.patches.files()
        if file not in expected and not file.name.startswith(".")
    ]
    return result


def export_findings(folder: Path, key: Path | None = None) -> list[Finding]:
    """What is wrong with the files of an export of a ledger.

    Args:
        folder: that was exported.
        key: file of the public SSH key that must have signed it.

    Raises:
        ManifestError: the folder has no manifest.
    """
    manifest = read_manifest(folder)
    result = [
        Finding(
            problem,
            str(folder / name),
            (),
            f"{folder / name} {PROBLEMS[problem]}. Fetch the export again, or ask who wrote it.",
        )
        for problem, name in problems(folder, manifest)
    ]
    if key is not None:
        try:
            check_signature(folder, key)
        except SignatureError as error:
            result.append(Finding("signature", str(folder / SIGNATURE), (), str(error)))
    return result


def _database(connection: sqlite3.Connection, folder: Path) -> Iterator[Finding]:
    file = str(folder / "ledger.sqlite")
    problems = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
    problems = [] if problems == ["ok"] else problems
    problems += [
        f"a row of {row[0]} names one that is not there"
        for row in connection.execute("PRAGMA foreign_key_check")
    ]
    if problems:
        message = f"{file} is damaged: {'; '.join(problems)}. Put a backup in its place."
        yield Finding("database", file, (), message)


def _file(file: Path, digest: str, what: str, numbers: tuple[int, ...]) -> Iterator[Finding]:
    needed = f"of edit{'s' * (len(numbers) != 1)} {', '.join(map(str, numbers))}"
    problem = fault(file, digest)
    if problem:
        message = f"The {what} {needed} {FAULTS[problem]}. {ADVICE}"
        yield Finding(problem, str(file), numbers, message)
