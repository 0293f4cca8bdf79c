"""The model inside a wrapper, and the name it is known by."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from easyeditor.errors import UnsupportedModelError

_SNAPSHOT = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]")


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside ``torch.compile``, DistributedDataParallel and DataParallel.

    The weights are the wrapper's own, so an edit shows in the wrapper as well. Wrappers may be
    nested. A model without a wrapper is returned as it is.

    Raises:
        UnsupportedModelError: a model with adapters of peft (their change is no part of the weight
            that would be edited), one sharded by FSDP, or no transformers model; the message says
            what to call first.
    """
    while not isinstance(model, PreTrainedModel):
        kind = type(model).__name__
        if kind == "FullyShardedDataParallel":
            raise UnsupportedModelError(
                "A model sharded by FSDP holds pieces of its matrices. Edit the model before it is "
                "wrapped, or save its full state dict and load that."
            )
        if hasattr(model, "get_base_model"):  # peft's PeftModel and its mixed and prompt kinds
            raise _has_adapters(kind)
        inner = getattr(model, "_orig_mod", None)
        if inner is None and kind in {"DistributedDataParallel", "DataParallel"}:
            inner = model.module
        if not isinstance(inner, nn.Module):
            raise UnsupportedModelError(
                f"A {kind} is no model of transformers (PreTrainedModel), nor a wrapper of one "
                "that is known here (torch.compile, DistributedDataParallel, DataParallel). Hand "
                "over the model inside it."
            )
        model = inner
    if any(_is_adapter(module) for module in model.modules()):
        raise _has_adapters(type(model).__name__)
    return model


def _is_adapter(module: nn.Module) -> bool:
    return any(kind.__name__ == "BaseTunerLayer" for kind in type(module).__mro__)


def _has_adapters(kind: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"This {kind} carries adapters of peft. Merge them into the weights first: "
        "model = model.merge_and_unload(); or edit the model without them: model = model.unload() "
        "(for prompt tuning: model.get_base_model())."
    )


def public_name(given: str) -> str:
    """A model's name without the place it was loaded from: a hub id, or a folder's own name."""
    snapshot = _SNAPSHOT.search(given)
    if snapshot:
        return f"{snapshot[1]}/{snapshot[2]}"
    is_path = given.startswith(("/", ".", "~")) or "\\" in given or given.count("/") > 1
    if is_path or (given and Path(given).is_dir()):
        return re.split(r"[/\\]", str(Path(given).expanduser().resolve()))[-1]
    return given


def context_length(config: Any) -> int | None:
    """The largest number of positions a configuration allows, or None where there is no limit.

    With learned positions a longer sequence is an IndexError; with rotary ones it is longer than
    anything the model was trained on.
    """
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def embedding_rows(model: PreTrainedModel) -> int | None:
    """How many tokens the input embedding has a row for; None where it cannot be told."""
    try:
        weight = model.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):
        return None
    return int(weight.shape[0]) if isinstance(weight, torch.Tensor) and weight.dim() == 2 else None


def forward_inputs(model: nn.Module) -> tuple[frozenset[str], frozenset[str]]:
    """The arguments that a model's forward accepts, and those it has no default for."""
    parameters = inspect.signature(model.forward).parameters
    required = {
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    }
    return frozenset(parameters), frozenset(required)


def refuse_missing(model: nn.Module, missing: Iterable[str]) -> None:
    """Say that a model cannot run without some inputs.

    Raises:
        UnsupportedModelError: always; names them.
    """
    inside = hasattr(getattr(model, "language_model", None), "generate")
    advice = "Edit the language model inside it: LM(model.language_model, tokenizer)."
    raise UnsupportedModelError(
        f"{type(model).__name__} cannot read text alone: it needs {', '.join(sorted(missing))}. "
        f"{advice if inside else 'Take a model that also reads text alone.'}"
    )
