"""Append-only JSONL files: one JSON object per line, on the disk when ``append`` returns.

The only reader and writer of such files: records and observations of a benchmark run, the judge's
cache. A process that is killed leaves at most one line without its end; that line never counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from easyeditor.errors import EasyEditError

LINE_END = b"\n"


class LogContent(NamedTuple):
    """What a log file holds.

    Attributes:
        lines: ``(line number, object)`` of every whole line, in order.
        damaged: numbers of whole lines that are not a JSON object, blank ones included.
        torn: whether the last line has no end: it was being written when the process died.
    """

    lines: list[tuple[int, dict[str, Any]]]
    damaged: list[int]
    torn: bool


def scan_log(path: Path, error: type[EasyEditError]) -> LogContent:
    """Read a log without changing it; another process may be appending meanwhile.

    Args:
        path: the file; one that does not exist holds nothing.
        error: the class of the exception for a file that cannot be read.

    Raises:
        EasyEditError: of class ``error``: the file cannot be read.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason}.") from None
    *whole, rest = data.split(LINE_END)
    lines: list[tuple[int, dict[str, Any]]] = []
    damaged: list[int] = []
    for number, line in enumerate(whole, 1):
        try:
            lines.append((number, {**json.loads(line)}))
        except (ValueError, TypeError, RecursionError):
            damaged.append(number)
    return LogContent(lines, damaged, bool(rest))


def read_log(path: Path, error: type[EasyEditError], advice: str = "") -> list[dict[str, Any]]:
    """The objects of a log; a last line without its end is left out. Changes nothing.

    Args:
        path: the file; one that does not exist holds nothing.
        error: the class of every exception.
        advice: what the user can do about a damaged line, a sentence.

    Raises:
        EasyEditError: of class ``error``: the file cannot be read, or a line is damaged; the
            message names the line.
    """
    content = scan_log(path, error)
    if content.damaged:
        raise error(f"{path}, line {content.damaged[0]} is damaged. {advice}".rstrip())
    return [record for _, record in content.lines]


class JsonLog:
    """A log that is open for appending, by one process at a time.

    Opening it cuts off a last line that has no end. The trap: that line may be another process's
    that is still being written, so hold a lock, or set ``shared``.

    Args:
        path: the file; made with its folder by the first :meth:`append`.
        error: the class of every exception.
        advice: what the user can do about a damaged line, a sentence.
        shared: other processes may append too. Nothing is ever cut: damaged lines are left where
            they are and skipped, and an append after one without an end begins a new line.

    Attributes:
        records: the objects in the file, oldest first.
        damaged: how many whole lines were skipped; always 0 unless ``shared``.
        torn: whether the last line has no end; always False unless ``shared``.

    Raises:
        EasyEditError: of class ``error``: the file cannot be read, or a line is damaged.
    """

    def __init__(
        self, path: Path, error: type[EasyEditError], advice: str = "", *, shared: bool = False
    ) -> None:
        self.path = path
        self.damaged, self.torn = 0, False
        self._error = error
        self._shared = shared
        if shared:
            content = scan_log(path, error)
            self.records = [record for _, record in content.lines]
            self.damaged, self.torn = len(content.damaged), content.torn
        else:
            self._cut_torn_line()
            self.records = read_log(path, error, advice)

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add records: all are on the disk when this returns, or none is.

        Raises:
            OSError: they cannot be written (a full disk). The file is as it was before; only a
                ``shared`` one may end in a torn line, which is never read.
        """
        # Escaped to ASCII where shared: a torn line is then torn between characters, not inside.
        lines = [
            json.dumps(dict(r), ensure_ascii=self._shared).encode() + LINE_END for r in records
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            data = b"".join(lines)
            if self._shared and size:
                file.seek(-1, os.SEEK_END)
                data = data if file.read(1) == LINE_END else LINE_END + data
            try:
                written = 0
                while written < len(data):  # the kernel may take less than it is given
                    written += file.write(data[written:])
                os.fsync(file.fileno())
            except BaseException:  # an interrupt between two writes too
                if not self._shared:
                    file.truncate(size)
                raise
        self.records += [dict(record) for record in records]

    def drop_last(self, count: int) -> None:
        """Delete the last ``count`` records from the file and from :attr:`records`.

        Raises:
            EasyEditError: of the log's class: the file cannot be written.
        """
        if not count:
            return
        try:
            lines = self.path.read_bytes().split(LINE_END)[: -count - 1]
            os.truncate(self.path, sum(len(line) + len(LINE_END) for line in lines))
        except OSError as reason:
            raise self._error(f"{self.path} cannot be written: {reason}.") from None
        del self.records[-count:]

    def _cut_torn_line(self) -> None:
        try:
            if self.path.exists():
                data = self.path.read_bytes()
                end = data.rfind(LINE_END) + 1
                if end < len(data):
                    os.truncate(self.path, end)
        except OSError as reason:
            raise self._error(f"{self.path} cannot be read: {reason}.") from None
