"""Periodic checkpoints of second-moment accumulation, so that an interrupted run can resume.

A run of less than :data:`MIN_INTERVAL_SECONDS` writes none; in longer ones writing takes at most a
twentieth of the time. A checkpoint is as large as the sums: 2.2 bytes × d_in² per layer (up to 4
for narrow layers), three times that beyond
:data:`~easyeditor.second_moments.running_sum.MAX_FLOAT32_TOKENS` tokens, and twice that while the
new one replaces the old. None is written if the disk has too little space. The file is removed
when the moments are stored.
"""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from easyeditor.second_moments.cache_file import ignored, read_cache_file, write_cache_file
from easyeditor.second_moments.running_sum import RunningSums

log = logging.getLogger(__name__)

MIN_INTERVAL_SECONDS = 60.0
"""Minimum time between two checkpoints."""
MIN_INTERVAL_WRITES = 20.0
"""The same as a multiple of the last write time: 20 is at most 5 % overhead."""
CONTENT = "half-collected second moments"


@dataclass(frozen=True, slots=True)
class TextPosition:
    """How far a text has been read: number of whole sequences, and of their tokens."""

    sequences: int = 0
    tokens: int = 0


class Checkpoint:
    """The checkpoint file of one accumulation.

    Two processes may use it at once: whichever wrote last, it holds a prefix of the same sums.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._due = time.monotonic() + MIN_INTERVAL_SECONDS

    def restore(self, sums: RunningSums) -> TextPosition:
        """Restore the sums and return the position; zero if there is no usable checkpoint."""
        stored = read_cache_file(self._file, CONTENT)
        if stored is None:
            return TextPosition()
        tensors, info = stored
        try:
            position = TextPosition(int(info["sequences"]), int(info["tokens"]))
            sums.restore(tensors, info)
        except (KeyError, ValueError) as error:
            ignored(self._file, CONTENT, repr(error))
            return TextPosition()
        log.info("going on after %d tokens (%s)", position.tokens, self._file)
        return position

    def write_if_due(self, sums: RunningSums, position: TextPosition) -> None:
        """Write a checkpoint if the interval is over and the disk has space."""
        began = time.monotonic()
        if began < self._due:
            return
        tensors, info = sums.state()
        info |= {"sequences": str(position.sequences), "tokens": str(position.tokens)}
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        if self._room() < 2 * size:
            log.warning("no room for %d MB in %s: %s are not kept", size >> 20, self._file, CONTENT)
            self._due = float("inf")
        elif write_cache_file(self._file, tensors, info, CONTENT):
            now = time.monotonic()
            self._due = now + max(MIN_INTERVAL_SECONDS, MIN_INTERVAL_WRITES * (now - began))
        else:
            self._due = float("inf")

    def _room(self) -> int:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            return shutil.disk_usage(self._file.parent).free
        except OSError:
            return 0

    def remove(self) -> None:
        """Remove the file, and the parts that a process killed while writing left."""
        with suppress(OSError):
            for file in self._file.parent.glob(f"*{self._file.name}*"):
                file.unlink(missing_ok=True)
