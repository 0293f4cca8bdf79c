"""The header of a patch file: JSON of bounded depth, typed before anything is built from it.

It needs no torch, so that ``easyedit show`` reads what :func:`~easyeditor.patches.files.load_patch`
reads, and refuses what that refuses.
"""

from __future__ import annotations

import json
import math
from typing import Any

from pydantic import BaseModel, ConfigDict

from easyeditor.edits import Edit

MAX_DEPTH = 40
"""Levels of nesting in a header."""
MAX_HEADER_BYTES = 64 * 2**20


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class FingerprintRecord(_Strict):
    """A fingerprint of a model as JSON, typed."""

    architecture: str
    shapes: str
    samples: list[float]
    packed: list[int] = []  # not in files from before there were any

    def checked(self) -> FingerprintRecord:
        """The same, if its fields fit each other.

        Raises:
            ValueError: they do not.
        """
        if any(not 0 <= place < len(self.samples) for place in self.packed):
            raise ValueError("packed numbers that are not among the samples")
        return self


class EditRecord(_Strict):
    """An edit as JSON; the class of edits checks the rest."""

    model_config = ConfigDict(strict=True, extra="allow")

    prompt: str | dict[str, Any]
    target: str


class PatchHeader(_Strict):
    """The header of a patch file."""

    format: int
    kind: str
    method: str
    edits: list[EditRecord]
    hyperparams: dict[str, Any]
    model: FingerprintRecord
    model_name: str = ""
    versions: dict[str, str]
    seconds: dict[str, float]
    data: dict[str, Any] = {}
    transposed: bool | None = None

    def edits_of(self) -> tuple[Edit, ...]:
        """The edits.

        Raises:
            EditError, TypeError: one cannot be carried out, or has fields nobody knows.
        """
        return tuple(Edit(**edit.model_dump()) for edit in self.edits)


class WeightsData(_Strict):
    """What the header of a patch of weights holds beside what all have."""

    in_out: list[str]
    no_linear: list[str] = []


def parsed_header(text: str) -> dict[str, Any]:
    """A header's JSON object.

    Raises:
        ValueError: it is no object, or too long, too deep, or holds what cannot be printed.
    """
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"it is longer than {MAX_HEADER_BYTES // 2**20} MB")
    try:
        header = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    if not isinstance(header, dict):
        raise ValueError(f"it is {type(header).__name__}, not an object")
    _check_plain(header)
    return header


def _check_plain(value: Any, depth: int = 0) -> None:
    """Make sure that a JSON value is of bounded depth, finite, and text that can be printed.

    Raises:
        ValueError: it is not.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_plain(name, depth + 1)
            _check_plain(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_plain(inner, depth + 1)
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("a text holds half of a surrogate pair") from None
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a number is {value}")
