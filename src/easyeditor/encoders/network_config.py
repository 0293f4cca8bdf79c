"""A Hugging Face network as plain data, and built again from it: for files that hold networks.

The configuration and the tokenizer are JSON; weights lie beside them as tensors. Nothing in such a
file is run as code, and a network that the file's tensors cannot fill is refused before memory is
taken for it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)

Tensors = Mapping[str, Sequence[int]]
"""Shapes of a file's tensors by name."""
BUFFER_NUMBERS = 2**26
"""Constants (masks, rotary tables) that a network may make beside its weights."""
_COUNTS = re.compile(r"layer|block|depth|expert|attention_types")


def config_of(model: PreTrainedModel) -> dict[str, Any]:
    """The whole configuration as JSON types; where it was loaded from is left out."""
    config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)
    return config


def language_model(config: Mapping[str, Any], tensors: Tensors | None = None) -> PreTrainedModel:
    """A float32 model of this configuration that answers; its weights are yet to be filled in.

    Args:
        config: as :func:`config_of` gives it.
        tensors: of the file that describes the network, which must hold enough numbers for it;
            None for a configuration that comes from no file.

    Raises:
        ValueError: no such configuration, or a network that ``tensors`` cannot fill.
    """
    return _built(config, tensors, None)


def reader(config: Mapping[str, Any], tensors: Tensors | None = None) -> PreTrainedModel:
    """The same for a model that gives hidden states, no answers.

    Raises:
        ValueError: see :func:`language_model`.
    """
    return _built(config, tensors, AutoModel)


def tokenizer_json(tokenizer: Any) -> str:
    """The rules of a fast tokenizer, without its cutting and padding."""
    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    core.no_truncation()
    core.no_padding()
    text: str = core.to_str()
    return text


def _built(config: Mapping[str, Any], tensors: Tensors | None, auto: Any) -> PreTrainedModel:
    try:
        values = dict(config)
        if tensors is not None:
            _check_depth(values, len(tensors))
        made = AutoConfig.for_model(values.pop("model_type"), **values)
        if auto is None:
            auto = AutoModelForSeq2SeqLM if made.is_encoder_decoder else AutoModelForCausalLM
        if tensors is not None:
            _check_size(tensors, auto, made)
        # The numbers drawn here are replaced at once; nobody's generator shall notice.
        with torch.random.fork_rng():
            model: PreTrainedModel = auto.from_config(made)
    except Exception as error:  # a damaged configuration makes transformers raise anything
        raise ValueError(f"its network cannot be built: {error!r}") from error
    return model.float().eval()


def _check_depth(values: Mapping[str, Any], tensors: int) -> None:
    """Compare counts of layers and experts with the number of tensors: each has at least one.

    Raises:
        ValueError: there are more.
    """
    deep = {key: n for key, n in _integers(values) if _COUNTS.search(key) and n > tensors}
    if deep:
        raise ValueError(f"{deep} for a file of {tensors} tensors")


def _check_size(tensors: Tensors, auto: Any, config: Any) -> None:
    """Compare what the configuration asks for with what the file holds; nothing is allocated.

    Raises:
        ValueError: it asks for more.
    """
    with torch.device("meta"), torch.random.fork_rng():
        shape = auto.from_config(config)
    held = sum(math.prod(size) for size in tensors.values())
    wanted = sum(p.numel() for p in shape.parameters())
    extra = sum(b.numel() for b in shape.buffers())
    if wanted > held or extra > max(BUFFER_NUMBERS, held):
        raise ValueError(
            f"it describes a network of {wanted} weights and {extra} constants; the file holds "
            f"{held} numbers"
        )


def _integers(values: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Every integer of a nested configuration with its key."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _integers(value, str(name))
    elif isinstance(values, list):
        for value in values:
            yield from _integers(value, key)
    elif isinstance(values, int) and not isinstance(values, bool):
        yield key, values
