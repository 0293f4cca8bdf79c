"""Files of a cache: written whole or not at all, and made again where they cannot be read.

What is in them can always be computed again, so a file that cannot be written or read costs time
and a warning, never an error.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from easyeditor.files import written_whole

log = logging.getLogger(__name__)


def write_cache_file(
    file: Path, tensors: Mapping[str, torch.Tensor], info: Mapping[str, str], what: str
) -> bool:
    """Write contiguous tensors and a few words about them; False (and a warning) if it failed."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as part:
            save_file(dict(tensors), part, metadata=dict(info))
    except (OSError, SafetensorError) as error:  # its own error, also for a full disk
        log.warning("%s could not be kept in %s: %s", what, file, error)
        return False
    return True


def read_cache_file(file: Path, what: str) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
    """The tensors and the words; None if there is no such file, or (with a warning) a bad one.

    The tensors are mapped from the file, for this process alone: writing into them changes no file.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return tensors, dict(opened.metadata() or {})
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        ignored(file, what, error)
        return None


def ignored(file: Path, what: str, why: object) -> None:
    """Say that a file is not used."""
    log.warning("%s in %s cannot be used and are made again: %s", what, file, why)
