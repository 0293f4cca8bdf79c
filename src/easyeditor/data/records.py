"""The records of a JSON, JSONL, CSV or TSV file, and the line each stands on.

Every file of edits is read here, so every mistake is reported in the same way: the file, the line,
what stands there, what is allowed.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from easyeditor.errors import DataError

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")
DELIMITERS = ",;\t"
"""Between the cells of a table; the one the header has most of. Spreadsheets write all three."""
BETWEEN = re.compile(r"[\s,:]*")  # what stands between the values of valid JSON
NESTED = "lists nested too deeply to be read"


class Record(NamedTuple):
    """One record; :meth:`Records.place` says where it stands.

    Attributes:
        value: what was read there.
        number: its number in its list, from 1.
        line: the line it stands on, from 1; 0 where only :meth:`Records.place` knows (JSON).
        section: the name of its list, in a JSON object of lists.
    """

    value: Any
    number: int
    line: int = 0
    section: str | None = None


class Records:
    """The records of one file, read when the first one is asked for.

    Making one checks only that the file is there, can be opened and has a known suffix. The lines
    of a JSONL file are parsed one by one, as they are reached; any other file is parsed as a whole.
    Text is UTF-8, with or without a byte order mark.

    Args:
        path: a ``.json`` file with a list of records, a ``.jsonl`` file with one per line, or a
            ``.csv`` or ``.tsv`` file with one per row below a header, its cells separated by
            commas, semicolons or tabs.
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
        try:
            if not self.file.is_file():
                raise DataError(
                    f"No file of edits {str(path)!r}. Datasets known by name: easyedit data ls"
                )
            self.file.open("rb").close()
        except (OSError, ValueError) as error:  # not allowed; a NUL in the name, or too long a one
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{str(path)!r:.200} cannot be opened: {reason}.") from None
        self._suffix = self.file.suffix.lower()
        if self._suffix not in SUFFIXES:
            raise DataError(
                f"{self.file}: edits are read from {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, "
                f"not {self._suffix!r}."
            )
        self._single, self._sections = single, sections
        self._text = ""
        self._main: list[Record] = []
        self._aside: list[Record] = []

    def __len__(self) -> int:
        return len(self._read())

    def __getitem__(self, index: int) -> Record:
        records = self._read()
        if not 0 <= index < len(records):
            raise IndexError(f"{self.file} has {len(self)} records; there is no record {index}.")
        record = records[index]
        if self._suffix == ".jsonl":
            return record._replace(value=_parsed_line(self.file, record))
        return record

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def aside(self) -> list[Record]:
        """The records of all other sections of a file of sections."""
        self._read()
        return self._aside

    def place(self, record: Record) -> str:
        """Where a record stands, e.g. ``line 7, record 2 of 'success'``; scans a JSON file."""
        if record.line:
            return f"line {record.line}"
        line = self._text.count("\n", 0, _start_of(self._text, record)) + 1
        section = f" of {record.section!r}" if record.section is not None else ""
        return f"line {line}, record {record.number}{section}"

    def _read(self) -> list[Record]:
        if self._main:
            return self._main
        try:
            # newline="": a carriage return inside a cell of a table is part of the cell.
            with self.file.open(encoding="utf-8-sig", newline="") as opened:
                self._text = opened.read()
        except (UnicodeDecodeError, OSError) as error:
            raise DataError(
                f"{self.file} cannot be read as UTF-8 text: {error}. Save it as UTF-8."
            ) from None
        if self._suffix == ".json":
            records = list(self._json())
        elif self._suffix == ".jsonl":
            # split("\n"), not splitlines(): U+2028 inside a string is not the end of a record.
            lines = enumerate(self._text.split("\n"), 1)
            records = [Record(text, line, line) for line, text in lines if text.strip()]
        else:
            records = list(_rows(self.file, self._text, self._suffix))
        named = {record.section for record in records} - {None, *self._sections}
        self._aside = [record for record in records if record.section in named]
        self._main = [record for record in records if record.section not in named]
        if not self._main:
            names = ", ".join(map(repr, dict.fromkeys(r.section for r in self._aside)))
            wanted = " or ".join(map(repr, self._sections))
            raise DataError(
                f"{self.file} holds no edits"
                + (f": the lists in it are {names}, the edits stand in {wanted}." if names else ".")
            )
        return self._main

    def _json(self) -> Iterator[Record]:
        if not self._text.strip():
            raise DataError(
                f"{self.file}, line 1: the file is empty; it must hold a list of records, "
                '[{"prompt": …}, …].'
            )
        value = _parsed(self.file, self._text)
        if isinstance(value, list):
            yield from (Record(item, i) for i, item in enumerate(value, 1))
        elif isinstance(value, dict) and self._sections:
            for name, items in value.items():
                if not isinstance(items, list):
                    raise DataError(
                        f"{self.file}: {name!r} must hold a list of records, not {items!r:.40}."
                    )
                yield from (Record(item, i, section=name) for i, item in enumerate(items, 1))
        elif self._single:
            yield Record(value, 1)
        else:
            content = (
                f"an object with {_keys(value)}" if isinstance(value, dict) else f"{value!r:.40}"
            )
            raise DataError(
                f"{self.file}, line 1: the file holds {content} where a list of records is "
                "expected; put the records between [ and ]."
            )


def _parsed(file: Path, text: str) -> Any:
    """The value of a whole JSON file."""
    try:
        return json.loads(text)
    except RecursionError:
        raise DataError(f"{file}, line 1: {NESTED}.") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            why = "more text after the end of the list"
            if error.pos and "\n" in text[: error.pos] and text[error.pos] in "{[":
                why += "; a file with one record per line is named .jsonl"
        elif error.pos >= len(text.rstrip()):
            why = f"the file is cut off ({error.msg}); fetch or write it again"
        else:
            why = f"not JSON ({error.msg})"
        raise DataError(f"{file}, line {error.lineno}, column {error.colno}: {why}.") from None


def _parsed_line(file: Path, record: Record) -> Any:
    """The value of one line of a JSONL file."""
    try:
        return json.loads(record.value)
    except RecursionError:
        raise DataError(f"{file}, line {record.line}: {NESTED}.") from None
    except json.JSONDecodeError as error:
        why = f"not JSON ({error.msg})"
        if error.msg == "Extra data":
            why = "more text after the record; JSONL holds one record per line"
        elif error.pos >= len(record.value.rstrip()):
            why += ": the line ends inside the record; JSONL holds a whole record in each line"
        raise DataError(f"{file}, line {record.line}, column {error.colno}: {why}.") from None


def _start_of(text: str, record: Record) -> int:
    """Where a record begins in the text of a valid JSON file, in characters."""
    decode = json.JSONDecoder().raw_decode

    def after(position: int) -> int:
        match = BETWEEN.match(text, position)
        return match.end() if match else position

    at = after(0)
    if text[at] == "[" or record.section is not None:
        at = after(at + 1)
    if record.section is not None:
        name, end = decode(text, at)
        while name != record.section:
            name, end = decode(text, after(decode(text, after(end))[1]))
        at = after(after(end) + 1)
    for _ in range(record.number - 1):
        at = after(decode(text, at)[1])
    return at


def _rows(file: Path, text: str, suffix: str) -> Iterator[Record]:
    """The rows of a table below its header; empty cells and columns without a name are left out."""
    skipped = 0
    header, _, rest = text.partition("\n")
    if header.lower().startswith("sep="):  # a spreadsheet's way to name the delimiter
        skipped, text = 1, rest
        delimiter = header[4:5]
    else:
        delimiter = max(DELIMITERS, key=header.count)
        if suffix == ".tsv" and "\t" in header:
            delimiter = "\t"
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        for number, row in enumerate(reader, 1):
            line = reader.line_num + skipped
            if None in row:
                raise DataError(
                    f"{file}, line {line}: more cells than columns (separated by {delimiter!r})."
                )
            cells = {name.strip(): cell for name, cell in row.items() if cell not in (None, "")}
            cells.pop("", None)
            yield Record(cells, number, line)
    except csv.Error as error:
        line = reader.line_num + 1 + skipped
        raise DataError(f"{file}, line {line}: {error}.") from None


def _keys(value: dict[str, Any]) -> str:
    names = [repr(name) for name in value]
    return ", ".join(names[:5] + ["…"] * (len(names) > 5)) or "nothing in it"
