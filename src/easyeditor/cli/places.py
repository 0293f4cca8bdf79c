"""Where a command writes to and reads from: checked before the work, ``-`` for standard streams."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from easyeditor.bench.results import require_run
from easyeditor.errors import ArchiveError, EasyEditError, HyperParamsError, MomentsError
from easyeditor.files import check_writable_place

if TYPE_CHECKING:
    from easyeditor.hyperparams import HyperParams

STREAM = Path("-")


def check_file(path: Path | None) -> None:
    """Make sure, before the work, that a file can be written at ``path``.

    Raises:
        OutputError: it cannot; says what the user gave.
    """
    if path is not None and path != STREAM:
        check_writable_place(path)


def check_runs(folders: Iterable[Path]) -> None:
    """Make sure that runs of ``easyedit bench`` lie in all of the folders.

    Raises:
        BenchError: one holds none.
    """
    for folder in folders:
        require_run(folder)


def check_folder(path: Path, *, empty: bool = True, size: int = 0) -> None:
    """Make sure that a folder of ``size`` bytes can be written at ``path``.

    ``empty``: and that nothing is in it.

    Raises:
        OutputError: it cannot, or there is something in it; says what the user gave.
    """
    if not empty and os.path.isdir(path):
        check_writable_place(path / "probe", size=size)
    else:
        check_writable_place(path, folder=True, size=size)


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


def check_settings(method: str, settings: HyperParams) -> None:
    """Refuse settings whose files are known to be missing, before a model is loaded.

    Raises:
        HyperParamsError: the method has to be trained and no archive is named.
        ArchiveError: the archive that is named is not there.
        MomentsError: there is no such text file to collect second moments from.
    """
    fields = dict(settings)
    archive = fields.get("archive", "")
    train = f"easyedit train --method {method.lower()} --data FILE --model {settings.model_name}"
    if archive is None:
        raise HyperParamsError(
            f"{method} edits with networks that are trained first, and no archive= names them. "
            f"Train them once: {train}; it says where the archive is, for --set archive=FILE."
        )
    if archive and not os.path.exists(os.path.expanduser(archive)):
        raise ArchiveError(
            f"There is no archive {archive!r}: {method} edits with networks that are trained "
            f"first. Train them once: {train}; or name them: --set archive=FILE."
        )
    source = fields.get("mom2_dataset") if fields.get("mom2_adjustment", True) else None
    file = isinstance(source, str) and source.endswith((".txt", ".jsonl"))
    if file and not os.path.isfile(str(source)):
        raise MomentsError(f"No text file {source!r} to collect second moments from.")
