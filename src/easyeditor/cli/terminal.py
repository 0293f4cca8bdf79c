"""Text that any terminal, pipe or file can take: nothing in it is markup or an escape sequence."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path
from textwrap import fill
from typing import Any, TextIO

from rich.console import Console, ConsoleDimensions
from rich.text import Text

PIPE_WIDTH = 100
"""Columns of a table that goes into a pipe or a file."""
# C0 and C1 control characters but tab and line feed; the marks that reverse the reading direction.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""``text`` with control characters written out: ``\x1b`` for an escape.

    A patch or a model may hold sequences that move the cursor or rename the window.
    """
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


class Terminal(Console):
    """A console to which strings are only text: no markup, no emoji names, no control characters.

    Style comes from :class:`~rich.text.Text` and from styles of tables and columns.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)
        self._width = self._height = None  # $COLUMNS is read when something is printed, not here

    @property  # type: ignore[misc]  # read-only, where rich's can be set: nothing sets it
    def size(self) -> ConsoleDimensions:
        """Columns and lines; a pipe has columns enough for most tables."""
        result = super().size
        if self.is_terminal or "COLUMNS" in os.environ:
            return result
        return ConsoleDimensions(PIPE_WIDTH, result.height)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as text, without its control characters."""
        return super().render_str(visible(text), **options)

    def print_line(self, text: str) -> None:
        """One line that is not broken at the terminal's width, so that it can be copied."""
        self.print(text, soft_wrap=True)


def tolerate_encodings() -> None:
    r"""Let stdout and stderr write ``\u….`` for what their encoding does not have.

    ASCII and cp1252 lack most characters, and no encoding has lone surrogates.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _fits(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def write_json(document: Any, *, indent: int | None = 2) -> None:
    """One JSON document on stdout, in ASCII where the encoding lacks a character."""
    text = json.dumps(document, ensure_ascii=False, indent=indent, allow_nan=False)
    if not _fits(sys.stdout, text):
        text = json.dumps(document, ensure_ascii=True, indent=indent)
    sys.stdout.write(f"{text}\n")


def folded(text: str, columns: int) -> str:
    """The text with its paragraphs folded at ``columns``; indented lines, commands, stay whole."""
    blocks = text.split("\n\n")
    return "\n\n".join(
        block if re.search(r"^\s", block, re.M) else fill(" ".join(block.split("\n")), columns)
        for block in blocks
    )


def quoted(path: str | Path) -> str:
    """A path or a text as a shell takes it."""
    return shlex.quote(str(path))


def count(number: int, noun: str) -> str:
    """``1 edit``, ``2 edits``, ``2 patches``."""
    plural = f"{noun}es" if noun.endswith(("ch", "s", "x")) else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
