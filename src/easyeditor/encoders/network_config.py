"""A Hugging Face network as plain data, and built again from it: for files that hold networks.

The configuration and the tokenizer are JSON; weights lie beside them as tensors. Nothing in such a
file is run as code.
"""

from __future__ import annotations

import json
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
    """The whole configuration as JSON types; where it was loaded from is left out."""
    config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)
    return config


def language_model(config: Mapping[str, Any]) -> PreTrainedModel:
    """A float32 model of this configuration that answers; its weights are yet to be filled in.

    Raises:
        KeyError, TypeError, ValueError: no such configuration.
    """
    made = _config(config)
    return _fresh(AutoModelForSeq2SeqLM if made.is_encoder_decoder else AutoModelForCausalLM, made)


def reader(config: Mapping[str, Any]) -> PreTrainedModel:
    """The same for a model that gives hidden states, no answers.

    Raises:
        KeyError, TypeError, ValueError: no such configuration.
    """
    return _fresh(AutoModel, _config(config))


def tokenizer_json(tokenizer: Any) -> str:
    """The rules of a fast tokenizer, without its cutting and padding."""
    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    core.no_truncation()
    core.no_padding()
    text: str = core.to_str()
    return text


def _config(config: Mapping[str, Any]) -> Any:
    values = dict(config)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def _fresh(auto: Any, config: Any) -> PreTrainedModel:
    # The numbers drawn here are replaced at once; nobody's generator shall notice.
    with torch.random.fork_rng():
        model: PreTrainedModel = auto.from_config(config)
    return model.float().eval()
