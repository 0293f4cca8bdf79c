"""The header of a patch file without places on the writer's machine, for files that are passed on.

A patch that stays needs them: an edit is made again with the archive or the texts that its settings
name. Elsewhere such a path leads nowhere, and shows how somebody's disk is laid out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from easyeditor.lm.unwrapping import public_name

PLACE = re.compile(
    r"/[^/\n]+/|~[\w-]*[/\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\|file:|[^\s/]+/[^\s/]+/[^\s/]"
)
"""How a path begins; ``owner/name`` on a hub is none."""
URL = re.compile(r"(?!file:)\w{2,}://")
FILES = frozenset(("file", "encoder", "_name_or_path", "name_or_path"))
"""Names in a patch's data whose texts are names of files or folders; other texts are an edit's."""


def is_place(text: str) -> bool:
    """Whether a text is a path rather than a name; one that exists here is a path."""
    if URL.match(text):
        return False
    return bool(PLACE.match(text)) or (("/" in text or "\\" in text) and os.path.exists(text))


def public_value(value: Any) -> Any:
    """A setting with every path in it, at any depth, replaced by the last name of the path."""
    if isinstance(value, Mapping):
        return {name: public_value(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [public_value(item) for item in value]
    if isinstance(value, str) and is_place(value):
        if "/snapshots/" in value:  # a folder of the hub's cache: owner/name
            return public_name(value)
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def public_header(header: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`~easyeditor.patches.files.save_patch` writes, without places on this machine.

    Settings, the names of images in prompts and the files that the patch's data refer to are
    reduced to their last names. Prompts and targets stay as they are.
    """
    return {
        **header,
        "hyperparams": public_value(header["hyperparams"]),
        "model_name": public_value(header["model_name"]),
        "edits": [_without(edit, frozenset(("path",))) for edit in header["edits"]],
        "data": _without(header["data"], FILES),
    }


def _without(data: Any, names: frozenset[str]) -> Any:
    """The same JSON; in its objects the texts called one of ``names`` are made public."""
    if isinstance(data, Mapping):
        return {
            name: public_value(item) if name in names else _without(item, names)
            for name, item in data.items()
        }
    if isinstance(data, (list, tuple)):
        return [_without(item, names) for item in data]
    return data
