"""What a browser sends, as cases: fields, tables and files.

A file is looked through before anything follows what it names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from easyeditor.data.edits_file import case_of, parse_arrow
from easyeditor.data.fields import Fields
from easyeditor.data.open import open_dataset
from easyeditor.data.records import Records
from easyeditor.edits import Case, Edit, Probe
from easyeditor.errors import DataError, EasyEditError, EditError, PatchFormatError

T = TypeVar("T")
LONGEST_TEXT = 4000
"""Characters of a field of an edit."""
MOST_PROBES = 20
"""Rewordings, and neighbours, of one edit."""
MAX_EDITS = 1000
"""Edits in one table or file."""
MAX_BYTES = 20 * 2**20
"""Bytes of one uploaded file."""
COLUMNS = ("prompt", "subject", "target_new", "ground_truth")
"""Of the table in which edits are typed."""
IMAGES = frozenset(("image", "images"))
DEEPEST = 50
"""Lists and objects inside one another that are followed."""


def case_of_fields(
    prompt: str | None,
    target: str | None,
    subject: str | None,
    truth: str | None,
    rephrases: str | None,
    neighbours: str | None,
) -> Case:
    """The case that the fields of the form describe; an empty field may be None.

    Raises:
        EditError: a field is missing, too long, or no "prompt => answer".
    """
    fields = [text or "" for text in (prompt, target, subject, truth)]
    longest = max(map(len, fields))
    if longest > LONGEST_TEXT:
        raise EditError(f"A field has {longest} characters; up to {LONGEST_TEXT} go into one.")
    edit = Edit(fields[0], fields[1], fields[2].strip() or None, fields[3].strip() or None)
    probes = [Probe(line, (edit.target,), "rephrase") for line in _lines(rephrases)]
    probes += [parse_arrow(line, "locality/neighborhood") for line in _lines(neighbours)]
    return Case("0", edit, probes)


def _lines(text: str | None) -> list[str]:
    text = text or ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > MOST_PROBES or len(text) > LONGEST_TEXT:
        raise EditError(
            f"A field has {len(lines)} lines and {len(text)} characters; up to {MOST_PROBES} lines "
            f"and {LONGEST_TEXT} characters go."
        )
    return lines


def cases_of_file(file: str) -> list[Case]:
    """The cases of an uploaded file of edits.

    Raises:
        DataError: it cannot be read, holds too many edits, or names images, which would be read
            from the server's disk.
    """

    def read(path: Path) -> list[Case]:
        for record in Records(path, single=True):
            if _names_images(record.value):
                raise DataError(
                    f"{path.name} names images, and a page reads no file that an upload names. "
                    "Use easyedit edit --edits for it."
                )
        dataset = open_dataset(path)
        if len(dataset) > MAX_EDITS:
            raise DataError(
                f"{path.name} has {len(dataset)} edits; this page makes up to {MAX_EDITS}. Use "
                "easyedit edit --edits for more."
            )
        return list(dataset)

    return _without_place(file, read)


def cases_of_table(rows: Sequence[Sequence[Any]]) -> list[Case]:
    """The cases that were typed into the table; empty rows are left out.

    Raises:
        EditError: there are none, too many, or one that cannot be carried out; says which.
    """
    records = []
    for row in rows:
        cells = ["" if cell is None else str(cell).strip() for cell in row]
        record = {name: cell for name, cell in zip(COLUMNS, cells, strict=False) if cell}
        if record:
            records.append(record)
    if not records:
        raise EditError("The table is empty: write one fact in each row, or upload a file.")
    if len(records) > MAX_EDITS:
        raise EditError(f"The table has {len(records)} edits; this page makes up to {MAX_EDITS}.")
    return [_case_of_row(record, i) for i, record in enumerate(records)]


def _case_of_row(record: Mapping[str, str], index: int) -> Case:
    try:
        return case_of(Fields(record), index)
    except EasyEditError as error:
        raise EditError(f"Row {index + 1} of the table: {error}") from None


def patch_file(file: str) -> Path:
    """An uploaded patch, if it is a file of the right kind.

    Raises:
        PatchFormatError: it has another ending.
    """
    path = Path(file)
    if path.suffix.lower() != ".safetensors":
        raise PatchFormatError(
            f"{path.name!r:.80} is no patch: a patch file ends in .safetensors, as this page and "
            "easyedit edit --save write it."
        )
    return path


def named_by_user(file: str, work: Callable[[Path], T]) -> T:
    """``work`` on an uploaded file, whose errors name the file as its user does."""
    return _without_place(file, work)


def _without_place(file: str, work: Callable[[Path], T]) -> T:
    path = Path(file)
    try:
        return work(path)
    except EasyEditError as error:
        message = str(error).replace(str(path), path.name).replace(str(path.parent), "")
        if message == str(error):
            raise
        raise type(error)(message) from None


def _names_images(value: Any, depth: int = 0) -> bool:
    if depth > DEEPEST:
        raise DataError("The file holds lists nested too deeply to be read.")
    if isinstance(value, Mapping):
        return any(
            str(key).lower() in IMAGES or _names_images(inner, depth + 1)
            for key, inner in value.items()
        )
    if isinstance(value, str):  # a cell of a table may hold JSON
        return value.lstrip()[:1] in ("{", "[") and '"image' in value.lower()
    if isinstance(value, (list, tuple)):
        return any(_names_images(inner, depth + 1) for inner in value)
    return False
