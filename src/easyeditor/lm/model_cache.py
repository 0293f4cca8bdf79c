"""Model folders in the user's cache: made once, by one process at a time, and verified on use.

Beside the model's own files lies a manifest with the size, the time and the SHA-256 of each. A file
whose size differs, or whose time and digest differ, makes the folder damaged: it is made again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from easyeditor.errors import ModelLoadError
from easyeditor.files import sha256_of

log = logging.getLogger(__name__)

MANIFEST = "easyedit-files.json"
MAX_WAIT_SECONDS = 3600


def cached_model(place: Path, make: Callable[[Path], Path], before: Callable[[], None]) -> Path:
    """The folder ``place`` with every file as it was written; made where it is not.

    ``before`` may refuse by raising (no network allowed, a package missing); ``make`` gets an empty
    folder on the same disk and returns the model's folder in it.

    Raises:
        ModelLoadError: another process has held the lock for an hour.
    """
    if (place / "config.json").is_file() and not (damage := damage_of(place)):
        return place
    if (place / "config.json").is_file():
        log.warning("%s is damaged (%s); it is made again", place, damage)
    before()
    place.parent.mkdir(parents=True, exist_ok=True)
    with _locked(place):
        if (place / "config.json").is_file() and not damage_of(place):
            return place  # another process was faster
        for leftover in place.parent.glob(f".{place.name}-*"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as scratch:
            folder = make(Path(scratch))
            write_manifest(folder)
            shutil.rmtree(place, ignore_errors=True)
            folder.replace(place)
    return place


def write_manifest(folder: Path) -> None:
    """Record size, time and digest of every file of ``folder``."""
    entries = {
        file.name: {
            "size": (s := file.stat()).st_size,
            "mtime": s.st_mtime_ns,
            "sha256": sha256_of(file),
        }
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps(entries, indent=1), encoding="utf-8")


def damage_of(folder: Path) -> str:
    """What is wrong with a cached model, or an empty string.

    A folder without a manifest is from before there were any: its weights are only checked for
    their length. Digests are computed where a file's time differs from the manifest's.
    """
    try:
        entries: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text("utf-8"))
    except FileNotFoundError:
        return _cut_off(folder)
    except (OSError, ValueError):
        return "its manifest cannot be read"
    for name, entry in entries.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        status = file.stat()
        if status.st_size != entry["size"]:
            return f"{name} has {status.st_size} bytes instead of {entry['size']}"
        if status.st_mtime_ns != entry["mtime"] and sha256_of(file) != entry["sha256"]:
            return f"{name} has another digest"
    return ""


def _cut_off(folder: Path) -> str:
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            return f"{file.name}: {error}"
    return "" if any(folder.glob("*.safetensors")) else "it holds no weights"


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Held by the one process that makes ``place``; those that wait are told who that is."""
    lock = FileLock(place.with_name(f"{place.name}.lock"))
    holder = place.with_name(f"{place.name}.lock.holder")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = holder.read_text("utf-8") if holder.is_file() else "another process"
        log.warning("waiting for %s, which makes %s", who, place)
        try:
            lock.acquire(timeout=MAX_WAIT_SECONDS)
        except Timeout:
            raise ModelLoadError(
                f"{who} has been making {place} for over an hour. End it, or set EASYEDITOR_CACHE "
                "to another folder."
            ) from None
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder.write_text(
            f"process {os.getpid()} on {socket.gethostname()} (since {since})", "utf-8"
        )
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
