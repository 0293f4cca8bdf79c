"""A collection that is killed goes on: its sums and its place in the text, on disk now and then.

Only a collection that takes minutes pays for it: the first checkpoint is written after
:data:`EVERY` seconds, and the next ones so seldom that writing takes a twentieth of the time at
most. One takes what the sums take: 2.2 bytes × d_in² per layer (up to 4 where it is narrow), thrice
that beyond :data:`~easyeditor.second_moments.running_sum.FOLD` tokens, and twice that while the
new one
replaces the old. Where the disk has no room for that, none is written. The file goes when the
moments are there.
"""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from easyeditor.second_moments.cache_file import ignored, read_cache_file, write_cache_file
from easyeditor.second_moments.running_sum import Sums

log = logging.getLogger(__name__)

EVERY = 60.0
"""Seconds between two checkpoints, at least."""
SELDOM = 20.0
"""The same, in units of what writing the last one took."""
WHAT = "half-collected second moments"


@dataclass(frozen=True, slots=True)
class Place:
    """How far a text has been read: whole sequences, and the tokens in them."""

    sequences: int = 0
    tokens: int = 0


class Checkpoint:
    """The one file of a collection that is under way.

    Two processes that collect the same do no harm to each other: whatever either wrote is the
    beginning of the same sums.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._due = time.monotonic() + EVERY

    def restore(self, sums: Sums) -> Place:
        """Fill the sums and say where to go on; the beginning, if nothing usable is there."""
        stored = read_cache_file(self._file, WHAT)
        if stored is None:
            return Place()
        tensors, info = stored
        try:
            place = Place(int(info["sequences"]), int(info["tokens"]))
            sums.restore(tensors, info)
        except (KeyError, ValueError) as error:
            ignored(self._file, WHAT, repr(error))
            return Place()
        log.info("going on after %d tokens (%s)", place.tokens, self._file)
        return place

    def keep(self, sums: Sums, place: Place) -> None:
        """Write it, if it is time and there is room."""
        began = time.monotonic()
        if began < self._due:
            return
        tensors, info = sums.state()
        info |= {"sequences": str(place.sequences), "tokens": str(place.tokens)}
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        if self._room() < 2 * size:
            log.warning("no room for %d MB in %s: %s are not kept", size >> 20, self._file, WHAT)
            self._due = float("inf")
        elif write_cache_file(self._file, tensors, info, WHAT):
            now = time.monotonic()
            self._due = now + max(EVERY, SELDOM * (now - began))
        else:
            self._due = float("inf")

    def _room(self) -> int:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            return shutil.disk_usage(self._file.parent).free
        except OSError:
            return 0

    def remove(self) -> None:
        """The collection is done; also what a process killed while writing left."""
        with suppress(OSError):
            for file in self._file.parent.glob(f"*{self._file.name}*"):
                file.unlink(missing_ok=True)
