"""Serialises a Hugging Face network's configuration and tokenizer as JSON, and builds it again.

For patches and archives that hold networks: the weights are tensors of the same file. Nothing in
such a file is run as code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
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


def config_of(model: PreTrainedModel) -> dict[str, Any]:
    """The whole configuration as JSON types, without the path it was loaded from."""
    return _as_json(model.config)


def text_column_of(model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """The text column of a model that sees, as a float32 language model with its own weights.

    Args:
        model: its structure and configuration are read.
        weights: its whole state.

    Raises:
        ValueError: transformers has no language model of the column's configuration.
    """
    alone = language_model(_as_json(model.config.get_text_config()))
    decoder, target = model.get_decoder(), alone.get_decoder()
    inner = _path(model, decoder)
    outer = "" if type(decoder) is type(alone) else _path(alone, target)
    state = {
        f"{outer}{name.removeprefix(inner)}": tensor
        for name, tensor in weights.items()
        if name.startswith(inner)
    }
    head = _path(model, model.get_output_embeddings())
    state[f"{_path(alone, alone.get_output_embeddings())}weight"] = weights[f"{head}weight"]
    try:
        alone.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"its text column is built otherwise: {error}") from None
    return alone


def _path(model: torch.nn.Module, part: Any) -> str:
    """What the names of the part's weights begin with."""
    path = next(name for name, module in model.named_modules() if module is part)
    return f"{path}." if path else ""


def _as_json(config: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    values.pop("_name_or_path", None)
    return values


def language_model(
    config: Mapping[str, Any], weights: Mapping[str, torch.Tensor] | None = None
) -> PreTrainedModel:
    """A float32 model of this configuration with an output head, its weights uninitialised.

    Args:
        config: from :func:`config_of`; keys that name code are not followed.
        weights: those it will get. A configuration from a file is compared with their sizes
            before memory is allocated.

    Raises:
        ValueError: no such configuration, or a network of another size than the weights.
    """
    built = _config(config, weights)
    auto = AutoModelForSeq2SeqLM if built.is_encoder_decoder else AutoModelForCausalLM
    return _fresh(auto, built, weights)


def reader(
    config: Mapping[str, Any], weights: Mapping[str, torch.Tensor] | None = None
) -> PreTrainedModel:
    """The same for a model without an output head.

    Raises:
        ValueError: see :func:`language_model`.
    """
    return _fresh(AutoModel, _config(config, weights), weights)


def tokenizer_json(tokenizer: Any) -> str:
    """A fast tokenizer as JSON, without truncation and padding."""
    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    core.no_truncation()
    core.no_padding()
    text: str = core.to_str()
    return text


COUNTED = re.compile(r"(layers?|blocks|experts|labels|depths?|stages)$")
"""Settings that say how often a part is repeated: each of them has a tensor of its own."""
FEW = 64
MAX_POSITIONS = 2**22
MAX_SPARE = 4
"""A network may have so many times the numbers of its weights: tied ones, an unused decoder."""
NAMES_CODE = ("auto_map", "custom_pipelines")
CHOSEN_HERE = ("_attn_implementation", "attn_implementation", "experts_implementation")


def _config(config: Mapping[str, Any], weights: Mapping[str, torch.Tensor] | None) -> Any:
    values = {k: v for k, v in config.items() if not k.startswith(CHOSEN_HERE)}
    if weights is not None:
        _check_counts(values, len(weights))
    named = [key for key in NAMES_CODE if key in values]
    if named:
        raise ValueError(f"its configuration names code ({named[0]})")
    try:
        return AutoConfig.for_model(values.pop("model_type"), **values)
    except Exception as error:  # each architecture has its own way to dislike a value
        raise ValueError(f"no configuration of a network: {error!r}") from None


def _check_counts(values: Any, tensors: int, key: str = "", depth: int = 0) -> None:
    """Refuse counts of parts for which the file has too few tensors, before anything is built."""
    if depth > FEW:
        raise ValueError("its configuration is nested too deep")
    if isinstance(values, Mapping):
        for name, value in values.items():
            _check_counts(value, tensors, str(name), depth + 1)
    elif isinstance(values, (list, tuple)):
        for value in values:
            _check_counts(value, tensors, key, depth + 1)
    elif isinstance(values, int) and not isinstance(values, bool):
        repeated = COUNTED.search(key) is not None and values > max(tensors, FEW)
        if repeated or ("position" in key and values > MAX_POSITIONS):
            raise ValueError(f"{key} is {values}, with {tensors} tensors in the file")


def _fresh(auto: Any, config: Any, weights: Mapping[str, torch.Tensor] | None) -> PreTrainedModel:
    try:
        if weights is not None:
            with torch.device("meta"):
                _check_size(auto.from_config(config, trust_remote_code=False), weights)
        # The numbers drawn here are replaced at once; nobody's generator shall notice.
        with torch.random.fork_rng():
            model: PreTrainedModel = auto.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise ValueError(f"no network of its configuration: {error}") from None
    return model.float().eval()


def _check_size(model: PreTrainedModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Compare the size of a network (on the meta device) with that of its weights."""
    described = sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    there = sum(tensor.numel() for tensor in weights.values())
    if described > MAX_SPARE * there + MAX_POSITIONS:
        raise ValueError(f"it describes {described} numbers, and the file holds {there}")
