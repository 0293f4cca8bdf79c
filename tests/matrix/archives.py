"""Trained archives of the matrix, kept in the user's cache under a digest of what they come from.

The digest covers the model's files, the training cases, the settings, and the source of what
trains and is trained, so an archive is used again only for an equal training.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import easyeditor
from easyeditor.paths import cache_dir
from zoo import models, world

SOURCE = Path(easyeditor.__file__).parent
TRAINING_SOURCES = ("train", "methods", "gradients", "encoders")


def digest(config: Any, family: str) -> str:
    """Hexadecimal SHA-256 of everything that a training depends on."""
    hasher = hashlib.sha256()
    files = [path for path in (models.FOLDER / family).iterdir() if path.is_file()]
    files += [file for folder in TRAINING_SOURCES for file in (SOURCE / folder).rglob("*.py")]
    for file in sorted(files):
        hasher.update(f"{file.name} {file.stat().st_size}\n".encode())
        hasher.update(file.read_bytes())
    paths = {"results_dir", "model_name", "small_name", "cls_name"}
    settings = {k: v for k, v in config.model_dump(mode="json").items() if k not in paths}
    hasher.update(repr((type(config).__name__, sorted(settings.items()))).encode())
    hasher.update(repr(world.cases("train")).encode())
    return hasher.hexdigest()


def cached(config: Any, family: str, train: Callable[[], Path], *, retrain: bool) -> Path:
    """The archive of a training: from the cache, else of ``train()``, which then goes there."""
    place = cache_dir() / "test-archives" / f"{digest(config, family)}.safetensors"
    if place.is_file() and not retrain:
        return place
    archive = train()
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_suffix(f".{os.getpid()}")
    shutil.copyfile(archive, unfinished)
    unfinished.replace(place)
    return place
