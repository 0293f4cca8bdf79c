"""Files and folders that appear whole or not at all, and checks of a place before it is written."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from easyeditor.errors import OutputError

PART = ".part"
"""The suffix of scratch folders; a run folder and a listing may ignore names that end in it."""
LOCK = "writer.lock"
PIECE_BYTES = 2**20
FULL_DISK = {getattr(errno, name, errno.ENOSPC) for name in ("ENOSPC", "EDQUOT", "EFBIG")}
MOST_NAME_CHARACTERS = 40
"""How much of the user's name a scratch folder's name repeats: a long name must not get longer."""


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def written_whole(file: Path, *, parents: bool = False) -> Iterator[Path]:
    """A path in a scratch folder beside ``file``; at the end that file takes the place of ``file``.

    On any error nothing is left and ``file`` is unharmed. A killed process leaves a scratch folder
    (``.<name>.<random>.part``), which the next write of the same file deletes. The new file has
    the mode of the one it replaces, else the mode that the user's umask asks for, whatever the
    library that wrote it chose. A symbolic link stays a link: the file it leads to is replaced.

    Args:
        file: the file.
        parents: make its folder where there is none; else the folder must exist.

    Raises:
        OutputError: the name is impossible; ``file`` is a folder or a special file (``/dev/null``,
            a FIFO); the disk is full or does not let us write. Other errors of the body pass.
    """
    target = _target(file)
    _refuse_special(target, file)
    if parents:
        _make_folder(target.parent, file)
    with _scratch_folder(target, file) as scratch:
        part = scratch / target.name
        yield part
        mode = (target if target.exists() else scratch / LOCK).stat().st_mode
        _set_mode(part, mode)
        part.replace(target)


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """An empty scratch folder beside ``folder`` that is renamed to ``folder`` at the end.

    On any error nothing is left; a killed process leaves a scratch folder, which the next write of
    the same folder deletes. So ``folder`` is either missing, empty or complete.

    Raises:
        OutputError: ``folder`` exists and is not an empty folder, or cannot be written.
    """
    target = _target(folder)
    _refuse_full_folder(target, folder)
    _make_folder(target.parent, folder)
    with _scratch_folder(target, folder) as scratch:
        content = scratch / "content"
        content.mkdir()
        yield content
        mode = (scratch / LOCK).stat().st_mode
        for file in content.rglob("*"):
            if file.is_file():
                _set_mode(file, mode)
        if target.exists():
            target.rmdir()  # empty; not every system renames onto a folder
        content.replace(target)


def check_writable_place(
    path: str | os.PathLike[str], *, folder: bool = False, size: int = 0
) -> Path:
    """Check, before any work, that a file or folder can be written at ``path``; returns the path.

    Nothing is left behind: missing parent folders are not made, and the file that is tried in the
    nearest existing one has no name.

    Args:
        path: where the output shall be.
        folder: the output is a folder, which must be missing or empty.
        size: bytes that will be written, as far as known; the disk must have as many free.

    Raises:
        OutputError: the name is impossible (empty, a NUL, too long), the place is a special file,
            a file where a folder is wanted or the reverse, a folder that is not empty, not
            writable, or on a disk with too little free space; the message names ``path``.
    """
    place = Path(path)
    target = _target(place)
    try:
        if folder:
            _refuse_full_folder(target, place)
        else:
            _refuse_special(target, place)
        parent = _nearest_existing(target.parent)
        if not parent.is_dir():
            raise OutputError(f"{_shown(place)} cannot be written: {parent} is not a folder.")
        for name in target.relative_to(parent).parts:  # the names that will be made
            _refuse_long_name(parent, name, place)
        with tempfile.TemporaryFile(dir=parent):  # without a name where the system can
            pass
        free = shutil.disk_usage(parent).free
    except OutputError:
        raise
    except OSError as error:
        raise _not_written(place, error) from None
    if size > free:
        raise OutputError(
            f"{place} needs about {_bytes(size)}, but the disk of {parent} has {_bytes(free)} "
            "free. Make room, or name a place on another disk."
        )
    return place


def write_or_rescue(write: Callable[[Path], object], path: Path) -> None:
    """Call ``write(path)``; where that fails, write to another folder and say where.

    For results that took long to compute. Tried in turn: a new folder in the temporary folder of
    the system, the user's home, the working folder.

    Raises:
        OutputError: ``path`` cannot be written. The message names the file that holds the result
            instead, or says that none could be written.
    """
    try:
        write(path)
        return
    except OSError as error:
        reason = str(error)
    for folder in (Path(tempfile.gettempdir()), Path.home(), Path().absolute()):
        place = folder / f"easyedit-rescued-{secrets.token_hex(4)}" / path.name[-100:]
        try:
            write(place)
        except OSError:
            shutil.rmtree(place.parent, ignore_errors=True)
        else:
            raise OutputError(
                f"{_shown(path)} cannot be written ({reason}). The result is in {place} instead; "
                "move it to where you want it."
            )
    raise OutputError(
        f"{_shown(path)} cannot be written ({reason}), nor can the temporary and home folders. "
        "Make room and run the same command again."
    )


def disk_error(error: Exception) -> OSError | None:
    """What the operating system said, where ``error`` comes from it; else None.

    safetensors and torch report a full disk as errors of their own.
    """
    if isinstance(error, OSError):
        return error
    number = re.search(r"(?:os error|code:) (\d+)", str(error))
    if type(error).__name__ == "SafetensorError" and number:
        return OSError(int(number[1]), os.strerror(int(number[1])))
    if isinstance(error, RuntimeError) and re.search("StreamWriter|iostream", str(error)):
        return OSError(errno.ENOSPC, "the file cannot be written to its end (a full disk?)")
    return None


@contextmanager
def _scratch_folder(target: Path, given: Path) -> Iterator[Path]:
    """A new locked folder beside ``target``, deleted at the end; those of dead writers too."""
    name = target.name[:MOST_NAME_CHARACTERS]
    _delete_abandoned(target.parent, name)
    try:
        scratch, lock = _new_scratch(target.parent, name)
    except OSError as error:
        raise _not_written(given, error) from None
    try:
        yield scratch
    except OutputError:
        raise
    except Exception as error:
        failure = disk_error(error)
        if failure is not None and (
            failure.errno in FULL_DISK or str(scratch) in str(failure.filename)
        ):
            raise _not_written(given, failure) from None
        raise
    finally:
        lock.release()
        shutil.rmtree(scratch, ignore_errors=True)


def _new_scratch(parent: Path, name: str) -> tuple[Path, FileLock]:
    while True:
        scratch = parent / f".{name}.{secrets.token_hex(8)}{PART}"
        scratch.mkdir()  # fails where the name exists: nothing that was planted there is followed
        (scratch / LOCK).touch()  # made by open(): it has the mode that the umask asks for
        lock = FileLock(scratch / LOCK)
        # A file system without locks: there nobody deletes the folders of others either.
        with suppress(NotImplementedError, FileNotFoundError):
            lock.acquire()
        if (scratch / LOCK).exists():  # else it was deleted between being made and being locked
            return scratch, lock
        lock.release()


def _delete_abandoned(parent: Path, name: str) -> None:
    """Delete scratch folders for ``name`` that no living process holds the lock of."""
    prefix = f".{name}."
    with suppress(OSError):
        for folder in [p for p in parent.iterdir() if p.name.startswith(prefix)]:
            lock = folder / LOCK
            if folder.suffix == PART and not folder.is_symlink() and lock.is_file():
                with suppress(OSError, Timeout, NotImplementedError), FileLock(lock, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)


def _target(path: Path) -> Path:
    """``path`` with a symbolic link at its end followed, so that the link itself is not replaced.

    Raises:
        OutputError: no file can have this name.
    """
    if "\0" in str(path):
        raise OutputError(f"{str(path)!r} cannot be the name of an output: it holds a NUL.")
    if not path.name or path.name == "..":
        raise OutputError(f"{str(path)!r} does not end in the name of a file or folder to write.")
    try:
        return path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError) as error:  # too long a name, a loop of links
        raise _not_written(path, error) from None


def _make_folder(folder: Path, given: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(given, error) from None


def _refuse_special(target: Path, given: Path) -> None:
    if target.is_dir():
        raise OutputError(f"{given} is a folder; name a file in it.")
    if target.exists() and not target.is_file():
        raise OutputError(f"{given} is not a regular file and is not replaced; name another file.")


def _refuse_full_folder(target: Path, given: Path) -> None:
    if target.is_dir() and any(target.iterdir()):
        raise OutputError(f"{given} exists and is not an empty folder; name a new one.")
    if target.exists() and not target.is_dir():
        raise OutputError(f"{given} exists and is not a folder; name a new one.")


def _refuse_long_name(parent: Path, name: str, given: Path) -> None:
    try:
        limit = os.pathconf(parent, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        limit = 255
    length = len(os.fsencode(name))
    if length > limit:
        raise OutputError(
            f"{_shown(given)} cannot be written: a name in it is {length} bytes long, and the "
            f"disk allows {limit}. Give a shorter one."
        )


def _set_mode(file: Path, mode: int) -> None:
    with suppress(OSError):  # a file system without modes
        file.chmod(stat.S_IMODE(mode) & 0o777)


def _not_written(given: Path, error: Exception) -> OutputError:
    """The error with the name the user gave instead of that of a scratch folder."""
    reason = getattr(error, "strerror", None) or str(error)
    result = OutputError(f"{_shown(given)} cannot be written: {reason}. Name another place.")
    if isinstance(error, OSError):
        result.errno, result.strerror = error.errno, reason
    if result.errno in FULL_DISK:
        result.args = (f"{_shown(given)} cannot be written: {reason}. Make room and try again.",)
    return result


def _nearest_existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _shown(path: object) -> str:
    text = str(path)
    return text if len(text) <= 120 else f"{text[:60]}…{text[-40:]}"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
