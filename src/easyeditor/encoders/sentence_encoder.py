"""Sentence embeddings by ``sentence-transformers``, and their cache."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from easyeditor.edits import Prompt
from easyeditor.errors import MissingExtraError, ModelLoadError, PatchStateError
from easyeditor.files import written_whole
from easyeditor.lm import embedded
from easyeditor.paths import cache_dir

BATCH = 64


class Sentences:
    """A sentence encoder of ``sentence-transformers``, by hub name, folder, or embedded.

    ``all-MiniLM-L6-v2``, also under ``sentence-transformers/``, is the embedded one, which needs
    no hub. Nothing is loaded before the first sentence. An encoder may bring code of its own, so a
    name that somebody else has written (in a patch file) is not followed, ``trusted`` being False.

    Raises (when it is first used):
        PatchStateError: it is not the embedded one, and not trusted.
        MissingExtraError: sentence-transformers is not installed.
        ModelLoadError: no such encoder.
    """

    def __init__(self, name: str = embedded.ENCODER, *, trusted: bool = True) -> None:
        self.name = name
        self.embedded = name.removeprefix("sentence-transformers/").lower() == embedded.ENCODER
        self.trusted = trusted or self.embedded

    def check_trusted(self) -> None:
        """Refuse an encoder that the user has not named.

        Raises:
            PatchStateError: it is named by a file alone.
        """
        if not self.trusted:
            raise PatchStateError(
                f"The patch compares sentences with the encoder {self.name!r}, which is not part "
                "of EasyEdit, and an encoder may run code of its own. If you trust it, name it: "
                "load_patch(path, encoder=...), or --encoder on the command line."
            )

    @cached_property
    def _encoder(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise MissingExtraError.of(
                "sentence-transformers", "retrieval", "Retrieval by similarity"
            ) from None
        self.check_trusted()
        where = str(embedded.folder(embedded.ENCODER)) if self.embedded else self.name
        try:
            return SentenceTransformer(where, device="cpu")
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [repr(error)])[0]
            raise ModelLoadError(
                f"The sentence encoder {self.name!r} could not be loaded: {reason} Give a hub name "
                f"that is reachable from here, a folder, or {embedded.ENCODER!r}."
            ) from error

    def encode(self, texts: Sequence[Prompt | str]) -> torch.Tensor:
        """Embeddings ``(texts, width)``, float32 of unit length: dot products are cosines."""
        vectors = self._encoder.encode(
            [str(text) for text in texts],
            batch_size=BATCH,
            convert_to_tensor=True,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        result: torch.Tensor = vectors.detach().float().cpu()
        return result

    def encode_once(self, texts: Sequence[Prompt | str]) -> torch.Tensor:
        """:meth:`encode` for a corpus: kept in the user's cache under encoder and texts."""
        digest = hashlib.sha256(self.name.encode())
        for text in texts:
            digest.update(b"\0" + str(text).encode())
        file = cache_dir() / "sentences" / f"{digest.hexdigest()[:24]}.safetensors"
        stored = _read(file)
        if stored is None:
            stored = self.encode(texts)
            file.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(file) as beside:
                save_file({"vectors": stored}, beside)
        return stored


def _read(file: Path) -> torch.Tensor | None:
    try:
        return load_file(file)["vectors"]
    except (OSError, SafetensorError, KeyError):  # not there, or of a process that died
        return None
