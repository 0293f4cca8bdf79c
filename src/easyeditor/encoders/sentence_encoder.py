"""Sentences as vectors: a sentence encoder, and a cache of what it said."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from easyeditor.edits import Prompt
from easyeditor.errors import MissingExtraError, ModelLoadError
from easyeditor.files import written_whole
from easyeditor.lm import embedded
from easyeditor.paths import cache_dir

BATCH = 64
TRUSTED = "EASYEDITOR_ENCODER"
"""The environment variable in which a user names an encoder that files may name."""


class Sentences:
    """A sentence encoder of ``sentence-transformers``, by hub name, folder, or embedded.

    ``all-MiniLM-L6-v2``, also under ``sentence-transformers/``, is the embedded one, which needs
    no hub. Nothing is loaded before the first sentence, and no code that lies with an encoder is
    run.

    Args:
        name: which encoder.
        from_file: the name was read from a file, so only the embedded encoder is taken, and any
            other if the user names it in the environment (``EASYEDITOR_ENCODER``).

    Raises (when it is first used):
        MissingExtraError: sentence-transformers is not installed.
        ModelLoadError: no such encoder, one that brings code, or one that only a file names.
    """

    def __init__(self, name: str = embedded.ENCODER, *, from_file: bool = False) -> None:
        self.name = name
        self._from_file = from_file

    @cached_property
    def _encoder(self) -> Any:
        where = self.name
        if self.name.lower().rpartition("/")[2] == embedded.ENCODER:
            where = str(embedded.folder(embedded.ENCODER))
        elif self._from_file and os.environ.get(TRUSTED) != self.name:
            raise ModelLoadError(
                f"The file names the sentence encoder {self.name!r}. An encoder is loaded on the "
                f"word of a file only if it is {embedded.ENCODER!r}, as another may bring code. If "
                f"you trust it, set {TRUSTED}={self.name!r} in the environment."
            )
        _check_modules(Path(where))
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise MissingExtraError.of(
                "sentence-transformers", "retrieval", "Retrieval by similarity"
            ) from None
        try:
            return SentenceTransformer(where, device="cpu", trust_remote_code=False)
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [repr(error)])[0]
            raise ModelLoadError(
                f"The sentence encoder {self.name!r} could not be loaded: {reason} Give a hub name "
                f"that is reachable from here, a folder, or {embedded.ENCODER!r}."
            ) from error

    def encode(self, texts: Sequence[Prompt | str]) -> torch.Tensor:
        """``(texts, width)`` float32 of unit length, so that a product is a cosine."""
        vectors = self._encoder.encode(
            [str(text) for text in texts],
            batch_size=BATCH,
            convert_to_tensor=True,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        found: torch.Tensor = vectors.detach().float().cpu()
        return found

    def encode_once(self, texts: Sequence[Prompt | str]) -> torch.Tensor:
        """:meth:`encode` for a corpus: kept in the user's cache under encoder and texts."""
        digest = hashlib.sha256(self.name.encode())
        for text in texts:
            digest.update(b"\0" + str(text).encode())
        file = cache_dir() / "sentences" / f"{digest.hexdigest()[:24]}.safetensors"
        kept = _read(file)
        if kept is None:
            kept = self.encode(texts)
            file.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(file) as beside:
                save_file({"vectors": kept}, beside)
        return kept


def _check_modules(folder: Path) -> None:
    """Refuse an encoder in a folder whose parts are classes from elsewhere.

    Raises:
        ModelLoadError: ``modules.json`` names a class outside sentence-transformers.
    """
    file = folder / "modules.json"
    if not file.is_file():
        return
    try:
        kinds = [str(module["type"]) for module in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{file} cannot be read: {error!r}.") from error
    foreign = [kind for kind in kinds if not kind.startswith("sentence_transformers.")]
    if foreign:
        raise ModelLoadError(
            f"The sentence encoder in {folder} is built of {', '.join(foreign)}, code that comes "
            "with it, which is not run. Use one whose parts are all of sentence-transformers, or "
            f"{embedded.ENCODER!r}."
        )


def _read(file: Path) -> torch.Tensor | None:
    try:
        return load_file(file)["vectors"]
    except (OSError, SafetensorError, KeyError):  # not there, or of a process that died
        return None
