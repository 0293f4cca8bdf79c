"""A run on disk. Whatever moment the process dies at, what was finished stays and counts once.

``run.json`` says what the run does. ``before.jsonl`` holds what the unedited model said;
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

from filelock import FileLock, Timeout

from easyeditor.bench.config import differences
from easyeditor.errors import BenchError, RunBusyError, RunMismatchError
from easyeditor.files import written_whole

RUN, RECORDS, BEFORE = "run.json", "records.jsonl", "before.jsonl"


class EventLog:
    """A JSONL file that only grows, by whole lines.

    Raises:
        BenchError: it cannot be read, or a line that was finished is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []
        try:
            data = path.read_bytes() if path.exists() else b""
            whole, _, torn = data.rpartition(b"\n")
            if torn:
                os.truncate(path, len(data) - len(torn))
        except OSError as error:
            raise BenchError(f"{path} cannot be read: {error}.") from None
        for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
            try:
                self.lines.append({**json.loads(line)})
            except (ValueError, TypeError):
                raise BenchError(
                    f"{path}, line {number} is damaged. Delete this line to compute it again."
                ) from None
        self._drop_unfinished(whole.split(b"\n"))

    def _drop_unfinished(self, written: list[bytes]) -> None:
        """Records of a unit that was being written when the process died: only the last can be."""
        last = self.lines[-1] if self.lines else {}
        if "unit" not in last:
            return
        tail = (last["stage"], last["unit"])
        there = sum((line["stage"], line["unit"]) == tail for line in self.lines)
        if there < last["of"]:
            del self.lines[-there:]
            del written[-there:]
            os.truncate(self.path, sum(len(line) + 1 for line in written))

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add these records: on disk when this returns, all of them or none.

        Raises:
            BenchError: they cannot be written (a full disk); what was there is kept.
        """
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if self.path.exists():
                os.truncate(self.path, size)
            raise BenchError(
                f"{self.path} cannot be written: {error}. What was there is kept; make room and "
                "start the same command again."
            ) from None
        self.lines += [dict(record) for record in records]


class RunDirectory:
    """The folder of one run, held by one process at a time.

    Raises:
        RunMismatchError: it holds a run with other settings; lists them.
        RunBusyError: another process works in it.
        BenchError: it cannot be made or written.
    """

    def __init__(self, path: str | Path, description: Mapping[str, Any]) -> None:
        self.path = Path(path)
        try:
            self._refuse_other_files()
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / "run.lock", timeout=0)
            self._lock.acquire()
        except Timeout:
            raise RunBusyError(
                f"Another process works in {path}. Wait for it, or give another --out."
            ) from None
        except OSError as error:
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
        left = [p.name for p in self.path.iterdir() if p.name != "run.lock" and p.suffix != ".part"]
        if left:
            raise BenchError(
                f"{self.path} holds other files ({', '.join(sorted(left)[:3])}) and no run. Give "
                "an empty or new folder as --out."
            )

    def event_log(self, label: str) -> EventLog:
        """The records of one method."""
        return EventLog(self.path / label / RECORDS)

    def total(self, label: str, step: int) -> Path:
        """Where the change after ``step`` steps of a sequence is kept."""
        return self.path / label / f"total-{step:06d}.safetensors"

    def close(self) -> None:
        """Let other processes work in the folder."""
        self._lock.release()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def finished(records: Sequence[Mapping[str, Any]]) -> set[tuple[str, int]]:
    """``(stage, unit)`` of every unit whose records are all there."""
    there: dict[tuple[str, int], set[int]] = defaultdict(set)
    for r in records:
        there[r["stage"], r["unit"]].add(r["position"])
    size = {(r["stage"], r["unit"]): r["of"] for r in records}
    return {unit for unit, positions in there.items() if len(positions) == size[unit]}


def write_whole(path: Path, text: str) -> None:
    """Write a file completely or not at all.

    Raises:
        BenchError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as part, part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise BenchError(f"{path} cannot be written: {error}.") from None
