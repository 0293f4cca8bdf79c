"""``manifest.json``: the SHA-256 of every file of a folder that is passed on.

It shows that the files are those that were written. Who wrote them is shown by a signature of the
manifest (:mod:`easyeditor.sharing.signing`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyeditor.errors import ManifestError
from easyeditor.files import sha256_of

MANIFEST = "manifest.json"
SIGNATURE = f"{MANIFEST}.sig"
FORMAT = 1
PROBLEMS = {
    "missing": "is missing",
    "changed": "was changed",
    "added": "is not in the manifest",
}
"""What may be wrong with a file -> how a sentence says so."""
MAX_BYTES = 16 * 2**20
NAME = re.compile(r"(?!\.)[\w.+ -]{1,200}")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder holds.

    Attributes:
        about: what it is: ``kind`` and what else the writer says.
        files: name to SHA-256 and size in bytes.
    """

    about: Mapping[str, Any]
    files: Mapping[str, tuple[str, int]]


def write_manifest(folder: Path, about: Mapping[str, Any]) -> Manifest:
    """Write the manifest of all files in ``folder``, which has no folders in it."""
    files = {
        file.name: (sha256_of(file), file.stat().st_size)
        for file in sorted(folder.iterdir())
        if file.name not in (MANIFEST, SIGNATURE)
    }
    document = {
        "easyedit_manifest": FORMAT,
        "about": dict(about),
        "files": {name: {"sha256": d, "bytes": size} for name, (d, size) in files.items()},
    }
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return Manifest(about, files)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder; its files are not looked at.

    Raises:
        ManifestError: there is none, or it is not one.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise ManifestError(
            f"{folder} has no {MANIFEST}, so nothing says what belongs there. Such folders are "
            "written by easyedit push and easyedit ledger export."
        )
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has {file.stat().st_size} bytes")
        document = json.loads(file.read_text(encoding="utf-8"))
        if document["easyedit_manifest"] != FORMAT:
            raise ValueError(f"format {document['easyedit_manifest']!r}, not {FORMAT}")
        files = dict(_entries(document["files"]))
        about = document["about"]
        if not isinstance(about, dict):
            raise TypeError("about is no object")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ManifestError(
            f"{file} is not a manifest of EasyEdit ({error!r}). Fetch the folder again."
        ) from None
    return Manifest(about, files)


def _entries(files: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, int]]]:
    for name, entry in files.items():
        digest, size = entry["sha256"], entry["bytes"]
        plain = NAME.fullmatch(name) and name not in (MANIFEST, SIGNATURE)
        if not plain or not DIGEST.fullmatch(digest) or type(size) is not int:
            raise ValueError(f"the entry {name[:200]!r}")
        yield name, (digest, size)


def problems(folder: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """``(problem, file name)`` for everything that is not as the manifest says.

    A problem is ``missing``, ``changed`` or, for a file that the manifest does not list, ``added``;
    no hidden file is one, such as a hub's ``.gitattributes``.
    """
    for name, (digest, size) in manifest.files.items():
        file = folder / name
        if not file.is_file():
            yield "missing", name
        elif file.stat().st_size != size or sha256_of(file) != digest:
            yield "changed", name
    known = {*manifest.files, MANIFEST, SIGNATURE}
    for file in sorted(folder.iterdir()):
        if file.name not in known and not file.name.startswith("."):
            yield "added", file.name


def check_manifest(folder: Path) -> Manifest:
    """The manifest of a folder whose files are all as it says.

    Raises:
        ManifestError: there is none, or a file is missing, was changed or was added.
    """
    manifest = read_manifest(folder)
    wrong = [f"{name} {PROBLEMS[problem]}" for problem, name in problems(folder, manifest)]
    if wrong:
        raise ManifestError(
            f"The files in {folder} are not those that were written: {'; '.join(wrong[:5])}. "
            "Fetch the folder again, or ask who wrote it."
        )
    return manifest
