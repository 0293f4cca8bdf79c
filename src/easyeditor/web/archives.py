"""Archives of trained methods that lie on the server, so that the page can offer those methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from easyeditor.errors import ArchiveError
from easyeditor.methods.archive import NAME
from easyeditor.methods.training import trainable

USUAL = Path("results")
"""Where ``easyedit train`` writes, unless it is told otherwise."""
Archives = Mapping[tuple[str, str], Path]
"""Method and model, as the page names it -> the archive's file."""


def archives_in(folder: Path, models: Sequence[str]) -> dict[tuple[str, str], Path]:
    """The archives of these models in a folder that ``easyedit train`` writes to.

    They lie at ``FOLDER/METHOD/MODEL/archive.safetensors``, ``MODEL`` being the last part of the
    model's name. Whether one belongs to the model is checked when it is used.
    """
    files = {
        (method, model): folder / usual_place(method, model).relative_to(USUAL) / NAME
        for method in trainable()
        for model in models
    }
    return {key: file for key, file in files.items() if file.is_file()}


def usual_place(method: str, model: str) -> Path:
    """The folder that ``easyedit train`` writes an archive to."""
    return USUAL / method / model.rstrip("/").rpartition("/")[2]


def archive_of(archives: Archives, method: str, model: str) -> Path:
    """The archive with which a method edits a model.

    Raises:
        ArchiveError: there is none.
    """
    file = archives.get((method, model))
    if file is None:
        having = [name for kind, name in archives if kind == method]
        others = f" It has one for {', '.join(having)}." if having else ""
        raise ArchiveError(
            f"The page has no archive of {method} for {model}.{others} Train one with "
            f"{training_command(method, model)}, and start the page anew."
        )
    return file


def training_command(method: str, model: str) -> str:
    """The command that makes an archive where the page looks for it."""
    return f"easyedit train --method {method.lower()} --model {model} --data FILE"
