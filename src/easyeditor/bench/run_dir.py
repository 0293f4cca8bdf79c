"""The directory of a run: appended records that survive a kill at any moment, counted once.

``run.json`` is the configuration. ``before.jsonl`` holds the unedited model's replies;
``<label>/records.jsonl`` one record per case; ``<label>/total-<n>.safetensors`` the change after
``n`` steps of a sequence. Lines are appended and flushed to the disk; a line without its end was
being written when the process died, and is cut off.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easyeditor.bench.config import differences
from easyeditor.errors import BenchError, EasyEditError, OutputError, RunBusyError, RunMismatchError
from easyeditor.files import PART, written_whole
from easyeditor.folder_lock import FolderLock, lock_files
from easyeditor.json_log import JsonLog

RUN, RECORDS, BEFORE, LOCK = "run.json", "records.jsonl", "before.jsonl", "run"


class EventLog(JsonLog):
    """Append-only records of one entrant, or of the unedited model.

    Opening it drops the records of a unit that was not written to its end, so that a unit counts
    whole or not at all.

    Raises:
        BenchError: it cannot be read, or a line that was finished is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, BenchError, "Delete this line to compute it again.")
        last = self.records[-1] if self.records else {}
        if "unit" in last:  # only the last unit can be incomplete
            unit = (last["stage"], last["unit"])
            there = sum((record["stage"], record["unit"]) == unit for record in self.records)
            if there < last["of"]:
                self.drop_last(there)

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add these records: on disk when this returns, all of them or none.

        Raises:
            BenchError: they cannot be written (a full disk); what was there stays.
        """
        try:
            super().append(records)
        except OSError as error:
            raise BenchError(
                f"{self.path} cannot be written: {error}. What was there is kept; make room and "
                "start the same command again."
            ) from None


class RunDirectory:
    """The directory of one run, locked by one process at a time.

    Raises:
        RunMismatchError: it holds a run with other settings; lists them.
        RunBusyError: another process works in it.
        BenchError: it cannot be created or written.
    """

    def __init__(self, path: str | Path, description: Mapping[str, Any]) -> None:
        self.path = Path(path)
        try:
            self._refuse_other_files()
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(
                self.path, LOCK, RunBusyError, "Wait for it, or give another --out."
            )
            self._lock.acquire()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            if isinstance(error, EasyEditError):
                raise
            raise BenchError(f"{path} cannot be used for a run: {error}.") from None
        try:
            self._claim(dict(description))
            self.before = EventLog(self.path / BEFORE)
        except BaseException:
            self.close()
            raise

    def _claim(self, description: dict[str, Any]) -> None:
        file = self.path / RUN
        wanted = json.loads(json.dumps(description))  # tuples become lists, as in the file
        if file.exists():
            try:
                held = {**json.loads(file.read_text(encoding="utf-8"))}
            except (OSError, ValueError, TypeError) as error:
                raise BenchError(f"{file} cannot be read: {error}.") from None
            changed = differences(held, wanted)
            if changed:
                raise RunMismatchError(
                    f"{self.path} holds a run with other settings: {'; '.join(changed[:8])}"
                    f"{' …' if len(changed) > 8 else ''}. Give another --out, or the old settings."
                )
            return
        write_whole(file, json.dumps(wanted, indent=1, ensure_ascii=False) + "\n")

    def _refuse_other_files(self) -> None:
        if not self.path.exists() or (self.path / RUN).exists():
            return
        names = {path.name for path in self.path.iterdir() if path.suffix != PART}
        left = names - set(lock_files(LOCK))
        if left:
            raise BenchError(
                f"{self.path} holds other files ({', '.join(sorted(left)[:3])}) and no run. Give "
                "an empty or new folder as --out."
            )

    def event_log(self, label: str) -> EventLog:
        """The records of one method."""
        return EventLog(self.path / label / RECORDS)

    def total(self, label: str, step: int) -> Path:
        """The patch file after ``step`` steps of a sequence."""
        return self.path / label / f"total-{step:06d}.safetensors"

    def close(self) -> None:
        """Release the lock of the directory."""
        self._lock.release()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def finished(records: Sequence[Mapping[str, Any]]) -> set[tuple[str, int]]:
    """``(stage, unit)`` of every unit with all its records."""
    there: dict[tuple[str, int], set[int]] = defaultdict(set)
    for r in records:
        there[r["stage"], r["unit"]].add(r["position"])
    size = {(r["stage"], r["unit"]): r["of"] for r in records}
    return {unit for unit, positions in there.items() if len(positions) == size[unit]}


def write_whole(path: Path, text: str) -> None:
    """Write a text file completely or not at all.

    Raises:
        BenchError: it cannot be written.
    """
    try:
        with written_whole(path, parents=True) as part, part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OutputError as error:
        raise BenchError(str(error)) from None
    except OSError as error:
        raise BenchError(f"{path} cannot be written: {error}.") from None
