"""What all datasets are: a sequence of cases, read from a file when they are reached."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, overload

from easyeditor.data.fields import Fields, kind_of
from easyeditor.data.records import Record, Records
from easyeditor.edits import Case
from easyeditor.errors import DataError, EasyEditError


class CaseDataset(Sequence[Case]):
    """A file as a sequence of cases.

    Making one only opens the file. A record is read and checked when it is reached, each time it
    is reached; the trap is that a mistake far down shows only there, and that ``len()`` walks the
    file. A subclass says how one record becomes one case.

    Args:
        path: the file: JSON, JSONL or CSV.
        size: use only the first so many records; all by default.
        config: kept as an attribute for trainers that pass their settings; not used here.

    Raises:
        DataError: no such file, a ``size`` that is not a whole number above 0; when a record is
            reached: the file, the line, the case, and what is wrong with it.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    probes: ClassVar[tuple[str, ...]] = ()
    _single: ClassVar[bool] = False
    _sections: ClassVar[Collection[str]] = ()

    def __init__(
        self, path: str | os.PathLike[str], size: int | None = None, config: Any = None
    ) -> None:
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise DataError(
                f"size is the number of records to use, a whole number above 0, not "
                f"{size if isinstance(size, int) else kind_of(size)}; leave it out for all."
            )
        self.size = size
        self.config = config
        self._records = Records(path, single=self._single, sections=self._sections)

    @property
    def path(self) -> Path:
        """The file."""
        return self._records.file

    @classmethod
    @abstractmethod
    def recognises(cls, record: Mapping[str, Any]) -> bool:
        """Whether a file whose records look like this is of this kind."""

    @abstractmethod
    def case(self, record: Fields, index: int) -> Case:
        """One record as a case; ``index`` is its number, the id of a record that has none.

        Raises:
            DataError: a field is missing or of the wrong kind.
            EditError: an edit that cannot be carried out.
        """

    def __len__(self) -> int:
        if self.size is not None and self._records.has(self.size - 1):
            return self.size
        return len(self._records)

    def _has(self, index: int) -> bool:
        return (self.size is None or index < self.size) and self._records.has(index)

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> list[Case]: ...
    def __getitem__(self, index: int | slice) -> Case | list[Case]:
        if isinstance(index, slice):
            ahead = index.stop is not None and index.stop > 0 and (index.start or 0) >= 0
            # ds[:5] need not walk the whole file to know where it ends.
            n = index.stop if ahead and self._has(index.stop - 1) else len(self)
            return [self[i] for i in range(*index.indices(n))]
        if index < 0:
            index += len(self)
        if index < 0 or not self._has(index):
            raise IndexError(f"{self.path}: there are {len(self)} cases, counted from 0.")
        record = self._records[index]
        try:
            return self.case(Fields(record.value), index)
        except EasyEditError as error:
            raise DataError(f"{self.path}, {record.place}{_named(record)}: {error}") from None

    def place(self, index: int) -> str:
        """Where a record stands: the file and its line."""
        return f"{self.path}, {self._records[index].place}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"


def _named(record: Record) -> str:
    given = case_id(record.value) if isinstance(record.value, Mapping) else None
    return f" (case {given})" if given else ""


def case_id(record: Mapping[str, Any], index: int | None = None) -> str | None:
    """The record's own id as text, else its number."""
    for name in ("case_id", "id"):
        if isinstance(record.get(name), (str, int)) and str(record[name]):
            return str(record[name])
    return None if index is None else str(index)
