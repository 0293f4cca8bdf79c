"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """A path beside ``file`` that takes its place at the end, and vanishes on any error.

    The folder must be there. A process that is killed leaves a ``.part`` file behind.

    Raises:
        OSError: it cannot be written; what was there is unharmed.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
