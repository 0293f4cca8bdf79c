"""Running text no edit is about: a model that finds it more surprising than before is damaged."""

from __future__ import annotations

import os
from pathlib import Path

from easyeditor.errors import DataError

SHIPPED = Path(__file__).parent / "heldout.txt"


def heldout_text(path: str | os.PathLike[str] | None = None) -> str:
    """The text of a file; by default the page of prose that ships with the package.

    Raises:
        DataError: no such file, or it is not UTF-8 text, or it is empty.
    """
    file = SHIPPED if path is None else Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as held-out text: {error}.") from None
    if not text.strip():
        raise DataError(f"{file} is empty; held-out text is a page of running prose.")
    return text
