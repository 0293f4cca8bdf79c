"""Where a command writes to and reads from: checked before the work, ``-`` for standard streams."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from easyeditor.cli.terminal import visible
from easyeditor.errors import EasyEditError, OutputError

STREAM = Path("-")
_TEMPORARY_NAME = 24  # what a temporary file's name adds to the one it becomes


def check_file(path: Path | None, option: str = "--save") -> None:
    """Make sure that a file can be written at ``path``, without leaving anything there.

    Raises:
        OutputError: it cannot, and why; says what the user gave.
    """
    if path is None or path == STREAM:
        return
    folder = _existing(path, option)
    if path.is_dir():
        raise OutputError(f"{option} {_short(path)} is a folder; name a file in it.")
    if path.exists() and not path.is_file():
        raise OutputError(
            f"{option} {_short(path)} is no regular file and would be replaced; name another, or "
            "- for standard output."
        )
    _try_to_write(folder, path, option)


def check_folder(path: Path, option: str = "--out", *, empty: bool = True) -> None:
    """Make sure that a folder can be made and written at ``path``; ``empty``: and holds nothing.

    Raises:
        OutputError: it cannot, or there is something in it; says what the user gave.
    """
    folder = _existing(path, option)
    if path.exists() and not path.is_dir():
        raise OutputError(f"{option} {_short(path)} exists and is no folder; name a new one.")
    if empty and path.is_dir() and any(path.iterdir()):
        raise OutputError(
            f"{option} {_short(path)} exists and is not an empty folder; name a new one."
        )
    _try_to_write(path if path.is_dir() else folder, path, option)


def need_space(path: Path, size: int, option: str = "--out") -> None:
    """Make sure that ``size`` bytes fit where ``path`` will be.

    Raises:
        OutputError: they do not.
    """
    free = shutil.disk_usage(_existing(path, option)).free
    if free < size:
        raise OutputError(
            f"{option} {_short(path)} takes {size / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free "
            "there; name another place, or make room."
        )


def _short(path: Path) -> str:
    text = visible(str(path))
    return repr(text if len(text) <= 100 else f"{text[:60]}…{text[-30:]}")


def _existing(path: Path, option: str) -> Path:
    """The nearest folder above ``path`` that is there."""
    given = f"{option} {_short(path)}"
    if "\0" in str(path):
        raise OutputError(f"{given} holds a NUL character, which no file name can; leave it out.")
    if not path.name:
        raise OutputError(f"{given} names no file; give a path with a name.")
    try:
        folder = path.parent
        while not folder.is_dir():
            if folder.exists():
                raise OutputError(f"{given}: {_short(folder)} is a file, not a folder.")
            folder = folder.parent
        longest = os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
        for part in path.parts:
            length = len(os.fsencode(part))
            if length + (_TEMPORARY_NAME if part == path.name else 0) > longest:
                raise OutputError(
                    f"{given}: a name of {length} bytes is too long; a file system here takes "
                    f"{longest - _TEMPORARY_NAME}."
                )
        path.exists()
    except OutputError:
        raise
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise OutputError(f"{given} cannot be written: {why}.") from None
    return folder


def _try_to_write(folder: Path, path: Path, option: str) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b" ")
    except OSError as error:
        raise OutputError(
            f"{option} {_short(path)} cannot be written: {error.strerror or error} (in "
            f"{_short(folder)}). Name another place."
        ) from None


@contextmanager
def input_file(path: Path | str, suffix: str = "") -> Iterator[Path]:
    """``path``, or for ``-`` a file that holds what came through standard input.

    Without a ``suffix`` the text is taken for JSON, JSON lines or CSV by its first characters.
    """
    if str(path) != str(STREAM):
        yield Path(path)
        return
    content = sys.stdin.buffer.read()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"standard-input{suffix or _suffix_of(content)}"
        file.write_bytes(content)
        try:
            yield file
        except EasyEditError as error:
            raise type(error)(str(error).replace(str(file), "standard input")) from None


def _suffix_of(content: bytes) -> str:
    text = content.decode("utf-8-sig", errors="replace").lstrip()
    if not text.startswith(("[", "{")):
        return ".csv"
    try:
        json.loads(text)
    except ValueError:
        return ".jsonl" if text.startswith("{") else ".json"
    return ".json"


@contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """``path``, or for ``-`` a file that is copied to standard output at the end."""
    if path != STREAM:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "standard-output.safetensors"
        yield file
        sys.stdout.flush()
        sys.stdout.buffer.write(file.read_bytes())
        sys.stdout.buffer.flush()
