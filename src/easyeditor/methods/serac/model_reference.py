"""``ModelReference``: a model that lies in a file, referred to instead of copied."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from easyeditor.encoders.network_config import language_model
from easyeditor.encoders.tokenizer_compat import signature
from easyeditor.errors import PatchFormatError, PatchMismatchError
from easyeditor.lm.model import LM

HELP = "Put it back, or make the edit again with the archive that you have."


class ModelReference:
    """A language model in a safetensors file, read when it is first asked.

    The trap: the file must stay where it is, unchanged, for as long as a patch refers to it.

    Args:
        file: where it is.
        digest: of the file's header (:func:`header_digest`), which tells it from others.
        config: the model's configuration.
        tokenizer: signature of the tokenizer it was trained with.
        prefix: of its tensors' names.
        model: itself, if it has been read.
    """

    def __init__(
        self,
        file: Path,
        digest: str,
        config: Mapping[str, Any],
        tokenizer: str,
        prefix: str,
        model: PreTrainedModel | None = None,
    ) -> None:
        self.file, self.digest, self.config = file, digest, config
        self.tokenizer, self.prefix = tokenizer, prefix
        self._model = model
        self._beside: tuple[Any, bool, LM] | None = None

    def to_dict(self) -> dict[str, Any]:
        """For a patch's header."""
        return {
            "file": str(self.file),
            "digest": self.digest,
            "config": dict(self.config),
            "tokenizer": self.tokenizer,
            "prefix": self.prefix,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelReference:
        """From a patch's header."""
        names = ("digest", "tokenizer", "prefix")
        texts = {name: str(data[name]) for name in names}
        return cls(Path(data["file"]), config=dict(data["config"]), **texts)

    def check(self) -> None:
        """Make sure that the file is there, whole, and the same; reads no weights.

        Raises:
            PatchFormatError: it is gone or damaged.
            PatchMismatchError: another file is in its place.
        """
        if self._model is not None:
            return
        if not self.file.is_file():
            raise PatchFormatError(
                f"The edit answers with a model in {self.file}, which is not there. {HELP}"
            )
        try:
            with safe_open(self.file, framework="pt"):
                digest = header_digest(self.file)
        except (SafetensorError, OSError) as error:
            raise PatchFormatError(
                f"The edit answers with a model in {self.file}, which cannot be read ({error}). "
                f"{HELP}"
            ) from None
        if digest != self.digest:
            raise PatchMismatchError(
                f"The edit answers with a model in {self.file}, but that file is not the one the "
                f"edit was made with (its header is {digest}, not {self.digest}). {HELP}"
            )

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Make sure that a model with this tokenizer can be answered for.

        Raises:
            PatchMismatchError: the tokens have other numbers.
        """
        if signature(tokenizer) != self.tokenizer:
            raise PatchMismatchError(
                f"The edit answers with a model in {self.file} that was trained with another "
                "tokenizer than this model's. Load the model the edit was made for."
            )

    def beside(self, lm: LM) -> LM:
        """The model as one that is asked in the place of ``lm``: on its device, in its tokens.

        Raises:
            PatchFormatError, PatchMismatchError: see :meth:`check`, :meth:`check_tokenizer`.
        """
        chat = lm.text.chat_template
        if self._beside is None or self._beside[:2] != (lm.tokenizer, chat):
            self.check_tokenizer(lm.tokenizer)
            result = LM(self.read(), lm.tokenizer, chat_template=chat)
            self._beside = (lm.tokenizer, chat, result)
        self._beside[2].model.to(lm.device)
        return self._beside[2]

    def read(self) -> PreTrainedModel:
        """The model itself.

        Raises:
            PatchFormatError, PatchMismatchError: see :meth:`check`.
        """
        if self._model is None:
            self.check()
            with safe_open(self.file, framework="pt") as opened:
                weights = {
                    name.removeprefix(self.prefix): opened.get_tensor(name)
                    for name in opened.keys()  # noqa: SIM118
                    if name.startswith(self.prefix)
                }
            try:
                model = language_model(self.config, weights)
                model.load_state_dict(weights)
            except (RuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise PatchFormatError(f"{self.file} holds another model: {reason}") from None
            self._model = model
        return self._model


def header_digest(file: Path) -> str:
    """Of a safetensors file's header: names, shapes, places and what was written beside them."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        return hashlib.sha256(opened.read(size)).hexdigest()[:16]
