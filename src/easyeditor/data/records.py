"""A file of records, JSON, JSONL or CSV: each is read when it is reached, and knows its line.

Every file of edits goes through here, so every mistake is told the same way: the file, the line,
what was found, what is allowed.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Collection, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from easyeditor.errors import DataError

SUFFIXES = (".json", ".jsonl", ".csv")
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class Record(NamedTuple):
    """One record: where it stands in the file, and what was read there."""

    place: str
    value: Any


class _Entry(NamedTuple):
    place: str
    section: str | None
    read: Callable[[], Any]


class Records:
    """The records of one file.

    Making one checks that the file is there, can be opened and has a known suffix; the trap is that
    anything else is told when it is reached. Text is UTF-8, with or without a byte order mark.

    Args:
        path: a ``.json`` file with a list of records, a ``.jsonl`` file with one per line, or a
            ``.csv`` file with one per row below a header.
        single: a JSON file may also hold one record without a list.
        sections: a JSON file may also hold an object of lists; the lists of these names hold the
            records, all others what :meth:`aside` gives.

    Raises:
        DataError: no such file, an unknown suffix; later: not UTF-8, cut off, empty, not JSON.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, single: bool = False, sections: Collection[str] = ()
    ) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise DataError(f"The path of a file of edits must be text, not {path!r}.")
        self.file = Path(path)
        if not self.file.is_file():
            raise DataError(
                f"No file of edits {str(path)!r}. Datasets known by name: easyedit data ls"
            )
        self._suffix = self.file.suffix.lower()
        if self._suffix not in SUFFIXES:
            raise DataError(
                f"{self.file}: edits are read from .json, .jsonl or .csv, not {self._suffix!r}."
            )
        try:
            self.file.open("rb").close()
        except OSError as error:
            raise DataError(f"{self.file} cannot be opened: {error.strerror}.") from None
        self._single, self._sections = single, sections
        self._walk: Iterator[_Entry] | None = None
        self._found: list[_Entry] = []
        self._aside: list[_Entry] = []
        self._ended = False
        self._broken: str | None = None

    def has(self, index: int) -> bool:
        """Whether there is a record ``index``; walks no further than to it.

        Raises:
            DataError: the file holds no records, or cannot be read up to this one.
        """
        if self._walk is None:
            self._walk = self._entries()
        while len(self._found) <= index and not self._ended:
            if self._broken:
                raise DataError(self._broken)
            try:
                entry = next(self._walk)
            except StopIteration:
                self._ended = True
            except DataError as error:
                # A generator that raised would say next time that the file ended here.
                self._broken = str(error)
                raise
            else:
                main = entry.section is None or entry.section in self._sections
                (self._found if main else self._aside).append(entry)
        if not self._found:
            names = ", ".join(dict.fromkeys(repr(entry.section) for entry in self._aside))
            wanted = " or ".join(map(repr, self._sections))
            raise DataError(
                f"{self.file} holds no edits"
                + (f": the lists in it are {names}, the edits stand in {wanted}." if names else ".")
            )
        return index < len(self._found)

    def __getitem__(self, index: int) -> Record:
        if index < 0 or not self.has(index):
            raise IndexError(f"{self.file} has {len(self)} records; there is no record {index}.")
        entry = self._found[index]
        return Record(entry.place, entry.read())

    def __iter__(self) -> Iterator[Record]:
        index = 0
        while self.has(index):
            yield self[index]
            index += 1

    def __len__(self) -> int:
        while self.has(len(self._found)):
            pass
        return len(self._found)

    def aside(self) -> list[Record]:
        """What a file of sections holds beside its records; walks the whole file."""
        len(self)
        return [Record(entry.place, entry.read()) for entry in self._aside]

    def _entries(self) -> Iterator[_Entry]:
        try:
            # newline="": a carriage return inside a CSV cell is part of the cell.
            with self.file.open(encoding="utf-8-sig", newline="") as opened:
                text = opened.read()
        except (UnicodeDecodeError, OSError) as error:
            raise DataError(f"{self.file} cannot be read as UTF-8 text: {error}.") from None
        if self._suffix == ".csv":
            yield from _csv(self.file, text)
        elif self._suffix == ".jsonl":
            # split("\n"), not splitlines(): U+2028 inside a string is not the end of a record.
            for line, part in enumerate(text.split("\n"), 1):
                if part.strip():
                    yield _Entry(f"line {line}", None, partial(_loads, self.file, part, line))
        else:
            yield from self._json(text)

    def _json(self, text: str) -> Iterator[_Entry]:
        at = _space(text, 0)
        opening = text[at : at + 1]
        if not opening:
            raise DataError(
                f"{self.file}, line 1: the file is empty; it must hold a list of records, "
                '[{"prompt": …}, …].'
            )
        if opening == "[":
            at = yield from _items(self.file, text, at, None)
        elif opening == "{" and self._sections:
            at = yield from _lists(self.file, text, at)
        elif self._single:
            line = text.count("\n", 0, at) + 1
            start = at
            at = _decode(self.file, text, start)[1]
            read = partial(_value, self.file, text, start)
            yield _Entry(f"line {line}, record 1", None, read)
        else:
            value = _decode(self.file, text, at)[0]
            told = f"an object with {_keys(value)}" if isinstance(value, dict) else f"{value!r:.40}"
            raise DataError(
                f"{self.file}, line 1: the file holds {told} where a list of records is expected; "
                "put the records between [ and ]."
            )
        at = _space(text, at)
        if at < len(text):
            raise DataError(f"{self.file}, {_at(text, at)}: more text after the end of the list.")


def _csv(file: Path, text: str) -> Iterator[_Entry]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            place = f"line {reader.line_num}"
            yield _Entry(place, None, partial(_row, file, place, row))
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num + 1}: {error}.") from None


def _row(file: Path, place: str, row: dict[Any, Any]) -> dict[str, str]:
    if None in row:
        raise DataError(f"{file}, {place}: more cells than columns.")
    return {key: value for key, value in row.items() if value not in (None, "")}


def _items(file: Path, text: str, at: int, section: str | None) -> Generator[_Entry, None, int]:
    """The entries of the list that opens at ``at``; returns where it ends."""
    line, counted, number = 1, 0, 0
    at = _space(text, at + 1)
    if text[at : at + 1] == "]":
        return at + 1
    while True:
        start, (_, at) = at, _decode(file, text, at)
        line, counted = line + text.count("\n", counted, start), start
        number += 1
        place = f"line {line}, record {number}"
        if section is not None:
            place += f" of {section!r}"
        yield _Entry(place, section, partial(_value, file, text, start))
        at = _space(text, at)
        if text[at : at + 1] == "]":
            return at + 1
        _expect(file, text, at, ",", f"after record {number}")
        at = _space(text, at + 1)


def _lists(file: Path, text: str, at: int) -> Generator[_Entry, None, int]:
    """The entries of an object of lists."""
    at = _space(text, at + 1)
    while True:
        _expect(file, text, at, '"', "before the name of a list")
        name, at = _decode(file, text, at)
        at = _space(text, at)
        _expect(file, text, at, ":", f"after {name!r}")
        at = _space(text, at + 1)
        _expect(file, text, at, "[", f"as the start of {name!r}, a list of records")
        at = yield from _items(file, text, at, name)
        at = _space(text, at)
        if text[at : at + 1] == "}":
            return at + 1
        _expect(file, text, at, ",", f"after the list {name!r}")
        at = _space(text, at + 1)


def _space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _expect(file: Path, text: str, at: int, sign: str, where: str) -> None:
    if text[at : at + 1] == sign:
        return
    if at >= len(text):
        raise DataError(
            f"{file}, {_at(text, at)}: the file is cut off ({sign!r} expected {where}); fetch or "
            "write it again."
        )
    raise DataError(
        f"{file}, {_at(text, at)}: not JSON ({sign!r} expected {where}, not {text[at]!r})."
    )


def _at(text: str, at: int) -> str:
    return f"line {text.count(chr(10), 0, at) + 1}, column {at - text.rfind(chr(10), 0, at)}"


def _decode(file: Path, text: str, at: int, line: int = 1) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno + line - 1}, column {error.colno}"
        raise DataError(f"{file}, {place}: not JSON ({error.msg}).") from None
    except RecursionError:
        raise DataError(f"{file}, line {line}: lists nested too deeply to be read.") from None


def _value(file: Path, text: str, at: int) -> Any:
    return _decode(file, text, at)[0]


def _loads(file: Path, text: str, line: int) -> Any:
    value, at = _decode(file, text, _space(text, 0), line)
    at = _space(text, at)
    if at < len(text):
        raise DataError(
            f"{file}, line {line}, column {at + 1}: more text after the record; JSONL holds one "
            "record per line."
        )
    return value


def _keys(value: dict[str, Any]) -> str:
    names = [repr(name) for name in value]
    return ", ".join(names[:5] + ["…"] * (len(names) > 5)) or "nothing in it"
