"""A file of edits as a sequence of cases: the base class of every kind of dataset."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, overload

from easyeditor.data.fields import Fields, kind_of
from easyeditor.data.records import Record, Records
from easyeditor.edits import Case
from easyeditor.errors import DataError, EasyEditError, SubjectRequiredError


class CaseDataset(Sequence[Case]):
    """A file as a sequence of cases.

    Making one only opens the file; the first access reads it. A record is checked when it is
    reached, each time it is reached; the trap is that a wrong field far down shows only there. A
    subclass says how one record becomes one case.

    Args:
        path: the file: JSON, JSONL, CSV or TSV.
        size: use only the first so many records; all by default.
        config: stored as an attribute for trainers that pass their settings; not used here.

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
        """Whether a file with records like this one is of this kind."""

    @abstractmethod
    def case(self, record: Fields, index: int) -> Case:
        """One record as a case; ``index`` is its number, the id of a record that has none.

        Raises:
            DataError: a field is missing or of the wrong kind.
            EditError: an edit that cannot be carried out.
        """

    def __len__(self) -> int:
        count = len(self._records)
        return count if self.size is None else min(count, self.size)

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> list[Case]: ...
    def __getitem__(self, index: int | slice) -> Case | list[Case]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: there are {len(self)} cases, counted from 0.")
        record = self._records[index]
        try:
            return self.case(Fields(record.value), index)
        except EasyEditError as error:
            raise DataError(f"{self.path}, {self._place(record)}: {error}") from None

    def place(self, index: int) -> str:
        """Where a case stands in the file, e.g. ``line 7, record 2 (case 12)``, for messages."""
        return self._place(self._records[index])

    def require_subjects(self) -> None:
        """Check that every edit names its subject, as methods that locate facts by it need.

        Raises:
            SubjectRequiredError: the first case without one; names the file and the line.
        """
        for index, case in enumerate(self):
            if any(edit.subject is None for edit in case.edits):
                raise SubjectRequiredError(
                    f"{self.path}, {self.place(index)}: the edit {case.edit.prompt!r} names no "
                    "subject that its prompt writes, and the method finds facts by their subject. "
                    "Add the field subject, or use a method that needs none."
                )

    def _place(self, record: Record) -> str:
        given = case_id(record.value) if isinstance(record.value, Mapping) else None
        return self._records.place(record) + (f" (case {given})" if given else "")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"


def case_id(record: Mapping[str, Any], index: int | None = None) -> str | None:
    """The id in the record as text, else its number."""
    for name in ("case_id", "id"):
        if isinstance(record.get(name), (str, int)) and str(record[name]):
            return str(record[name])
    return None if index is None else str(index)
