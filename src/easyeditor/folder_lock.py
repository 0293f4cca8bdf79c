"""Locks on folders that one process at a time works in, and who holds them."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from easyeditor.errors import EasyEditError


class FolderLock:
    """An exclusive lock on a folder, released by the operating system when the process dies.

    Beside the lock file ``<name>.lock`` it writes ``<name>.holder.json``: process id, host and
    start, so that a second process can say who works there. The trap: the holder's file may be
    left over from a killed process; only the lock says whether somebody works there now.

    Args:
        folder: it must exist.
        name: of the two files.
        busy: the class of the exception when another process holds it.
        advice: what the user can do then, a sentence.
    """

    def __init__(
        self, folder: Path, name: str, busy: type[EasyEditError], advice: str = ""
    ) -> None:
        self.folder = folder
        lock, holder = lock_files(name)
        self._lock = FileLock(folder / lock, timeout=0)
        self._holder = folder / holder
        self._busy = busy
        self._advice = advice

    def acquire(self) -> None:
        """Take the lock, or say who holds it.

        Raises:
            EasyEditError: of class ``busy``: another process, or another thread, holds it.
            OSError: the folder cannot be written.
        """
        try:
            self._lock.acquire()
        except Timeout:
            raise self._busy_error() from None
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
        try:
            self._holder.write_text(json.dumps(about) + "\n", encoding="utf-8")
        except BaseException:
            self._lock.release()
            raise

    def check_free(self) -> None:
        """Make sure that nobody holds the lock now; makes no files.

        Raises:
            EasyEditError: of class ``busy``: another process, or another thread, holds it.
        """
        if Path(self._lock.lock_file).exists():
            try:
                with self._lock:
                    pass
            except Timeout:
                raise self._busy_error() from None
            except OSError:
                pass  # not ours to lock: acquire says so

    def release(self) -> None:
        """Let other processes work in the folder; does nothing where the lock is not held."""
        if self._lock.is_locked:
            with suppress(OSError):
                self._holder.unlink()
            self._lock.release()

    def _busy_error(self) -> EasyEditError:
        return self._busy(
            f"Another process works in {self.folder}{self._holder_text()}. {self._advice}".rstrip()
        )

    def _holder_text(self) -> str:
        try:
            about: dict[str, Any] = {**json.loads(self._holder.read_text(encoding="utf-8"))}
            return f" (process {about['pid']} on host {about['host']}, since {about['since']})"
        except (OSError, ValueError, TypeError, KeyError):
            return ""  # it has just begun, or is a version that does not say

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lock_files(name: str) -> tuple[str, str]:
    """The names of the two files of a lock: the lock itself, and who holds it."""
    return f"{name}.lock", f"{name}.holder.json"


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
