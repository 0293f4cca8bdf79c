"""Prompts with images or a system message in files of edits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyeditor.data.fields import kind_of
from easyeditor.edits import ImageRef, Prompt
from easyeditor.errors import DataError
from easyeditor.prompts import PROMPT_FIELDS


def with_prompts(value: Any, folder: Path) -> Any:
    """A record in which every prompt object is a :class:`~easyeditor.edits.Prompt`.

    A prompt object is ``{"text": …, "images": […], "system": …, "chat": …}``, all but the text
    optional. An image is a path, or ``{"path": …}`` with the file's ``sha256`` where it shall be
    checked when it is opened; the trap: a relative path starts at ``folder``, where the file of
    edits lies, and one without a digest must not leave it.

    Raises:
        DataError: the images are not a list of paths, or a path leaves the folder.
        EditError: an image cannot be read, or the text or the system message is not text.
    """
    if isinstance(value, list):
        return [with_prompts(item, folder) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "text" not in value or not set(value) <= PROMPT_FIELDS:
        return {name: with_prompts(item, folder) for name, item in value.items()}
    images = value.get("images") or []
    if not isinstance(images, list):
        raise DataError(f"images must be a list of paths, not {kind_of(images)}.")
    references = tuple(_image(image, folder) for image in images)
    raw, chat = value.get("raw") is True, value.get("chat")
    return Prompt(value["text"], references, value.get("system"), raw, chat)


def _image(image: Any, folder: Path) -> ImageRef:
    path = image.get("path") if isinstance(image, Mapping) else image
    if not isinstance(path, str):
        raise DataError(f"an image must be a path or an object with 'path', not {image!r:.80}.")
    digest = image.get("sha256") if isinstance(image, Mapping) else None
    if isinstance(digest, str):
        return ImageRef(str(folder / path), digest)
    return ImageRef.of(inside(folder, path))


def inside(folder: Path, path: str) -> Path | str:
    """``folder / path``; URLs are passed on, to be refused as such.

    Raises:
        DataError: the path leads out of the folder, so that a file of others could have any file
            read.
    """
    if "://" in path:
        return path
    place = Path(os.path.normpath(folder / path))
    if not place.is_relative_to(os.path.normpath(folder)):
        raise DataError(
            f"The image {path!r:.80} lies outside of the folder of its data; put it beside the "
            "file that names it, or give its sha256 with it."
        )
    return place
