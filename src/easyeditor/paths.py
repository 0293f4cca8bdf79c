"""Where EasyEdit keeps what it made for this user."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$EASYEDITOR_CACHE``, else ``easyeditor`` in the user's cache folder."""
    given = os.environ.get("EASYEDITOR_CACHE")
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "easyeditor"
