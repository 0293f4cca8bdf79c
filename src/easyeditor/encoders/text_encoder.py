"""``TextEncoder``: text embeddings by any Hugging Face network with hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from easyeditor.edits import Prompt
from easyeditor.encoders.network_config import config_of, reader, tokenizer_json
from easyeditor.errors import ModelLoadError
from easyeditor.lm import embedded
from easyeditor.lm.forward.batching import batches_by_length
from easyeditor.lm.tokens import pad

TOKENS_PER_PASS = 4096
"""Padded tokens per forward pass."""
LONGEST = 512
"""Maximum number of tokens of a text; of longer ones the last are read."""


class TextEncoder(nn.Module):
    """The mean of a network's last hidden states, of unit length, through a linear map.

    The network is whatever ``AutoModel`` loads: an encoder, an encoder-decoder (its encoder) or a
    causal model. The map is initialised as the identity, so initial distances are those of the
    pretrained network.

    Args:
        model: the network; of an encoder-decoder only the encoder is kept.
        tokenizer: its rules as JSON (:func:`~easyeditor.encoders.network_config.tokenizer_json`).
        pad_id: fills short rows, masked.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: str, pad_id: int = 0) -> None:
        super().__init__()
        self.config = config_of(model)
        self.body = model.get_encoder() if model.config.is_encoder_decoder else model
        self.body.config.use_cache = False  # a causal one would keep keys and values
        width = model.config.get_text_config().hidden_size
        # Draws no random numbers.
        self.head = nn.utils.skip_init(nn.Linear, width, width)  # type: ignore[no-untyped-call]
        nn.init.eye_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._rules, self.pad_id = tokenizer, pad_id
        self._tokenizer = Tokenizer.from_str(tokenizer)
        most = getattr(model.config, "max_position_embeddings", None) or LONGEST
        self._tokenizer.enable_truncation(min(int(most), LONGEST), direction="left")

    @classmethod
    def load(cls, name: str) -> TextEncoder:
        """Load by an embedded model's name, a hub name or a folder; float32, evaluation mode.

        Raises:
            ModelLoadError: nothing of that name, or it cannot be read.
        """
        where: Path | str = Path(name).expanduser()
        if name.lower() in embedded.PACKAGES:
            where = embedded.folder(name.lower())
        elif not Path(where).is_dir():
            where = name
        try:
            model = AutoModel.from_pretrained(
                str(where), dtype=torch.float32, trust_remote_code=False
            )
            tokenizer = AutoTokenizer.from_pretrained(str(where), trust_remote_code=False)
            rules = tokenizer_json(tokenizer)
        except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
            reason = (str(error).strip().splitlines() or [repr(error)])[0]
            raise ModelLoadError(
                f"The encoder {name!r} could not be loaded: {reason} Give a hub name that is "
                f"reachable from here, a folder, or {embedded.ENCODER!r}; its tokenizer must be a "
                "fast one."
            ) from error
        return cls(model, rules, tokenizer.pad_token_id or 0).eval()

    @classmethod
    def built(
        cls, description: Mapping[str, Any], weights: Mapping[str, torch.Tensor] | None = None
    ) -> TextEncoder:
        """Build from a :attr:`description`, with uninitialised weights.

        Args:
            description: from :attr:`description`.
            weights: those it will get; see
                :func:`~easyeditor.encoders.network_config.reader`.

        Raises:
            KeyError, TypeError, ValueError: it describes none, or one of another size.
        """
        rules, pad_id = str(description["tokenizer"]), int(description["pad_id"])
        try:
            Tokenizer.from_str(rules)
        except BaseException as error:
            # The library raises nothing more particular, and its panics are no Exceptions.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise ValueError(f"no tokenizer: {error}") from None
        return cls(reader(description["config"], weights), rules, pad_id).eval()

    @property
    def description(self) -> dict[str, Any]:
        """All but the weights, as JSON types."""
        return {"config": self.config, "tokenizer": self._rules, "pad_id": self.pad_id}

    @property
    def width(self) -> int:
        """Length of a vector."""
        return self.head.out_features

    def forward(self, texts: Sequence[Prompt | str]) -> torch.Tensor:
        """``(texts, width)`` float32; differentiable."""
        encodings = self._tokenizer.encode_batch([str(text) for text in texts])
        rows = [encoding.ids or [self.pad_id] for encoding in encodings]
        result: list[tuple[int, torch.Tensor]] = []
        for chunk in batches_by_length(
            [len(row) for row in rows], [0] * len(rows), TOKENS_PER_PASS, 1
        ):
            batch = pad([rows[i] for i in chunk], self.pad_id, self.head.weight.device)
            hidden = self.body(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
            mask = batch.mask[:, :, None].to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            result += zip(chunk, self.head(nn.functional.normalize(mean, dim=-1)), strict=True)
        return torch.stack([vector for _, vector in sorted(result, key=lambda pair: pair[0])])
