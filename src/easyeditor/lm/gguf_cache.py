"""GGUF files unpacked once into the user's cache: parsing one takes longer than an edit."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from easyeditor.files import sha256_of
from easyeditor.lm.model_cache import cached_model
from easyeditor.paths import cache_dir

log = logging.getLogger(__name__)

UNPACKED_DTYPE = "float32"
"""The precision a GGUF file is unpacked to unless another is asked for."""


def unpacked(file: Path, dtype: str | None = None) -> Path:
    """A safetensors folder with the weights of a GGUF file, named by the file's digest.

    Raises:
        OSError, ValueError: the file cannot be read.
    """
    kind = dtype or UNPACKED_DTYPE
    place = cache_dir() / "models" / f"gguf-{sha256_of(file)[:16]}-{kind}"

    def make(scratch: Path) -> Path:
        log.warning(
            "unpacking %s once, to %s (4-bit weights take %d times their size; another precision: "
            "dtype=)",
            file.name,
            kind,
            8 if kind == "float32" else 4,
        )
        return convert(file, scratch / "model", kind, file.name)

    return cached_model(place, make, lambda: None)


def convert(file: Path, folder: Path, dtype: str, name: str) -> Path:
    """Write the weights and the tokenizer of a GGUF file as a folder of plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=dtype)
    plain = plain_model(model)
    plain.config._name_or_path = name
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plain_model(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that does not call itself quantized, so that it can be saved."""
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    with torch.device("meta"):  # the tensors are handed over: there is no second copy
        plain: PreTrainedModel = type(model)(type(model.config).from_dict(config))
    plain.load_state_dict(model.state_dict(), assign=True)
    for name, buffer in model.named_buffers():  # also those that no state dict holds
        owner, _, leaf = name.rpartition(".")
        plain.get_submodule(owner)._buffers[leaf] = buffer
    plain.tie_weights()
    return plain.eval()
