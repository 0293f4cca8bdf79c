"""The zoo's six families: the configuration of each, and how to build, save and read one."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from easyeditor.lm import LM
from easyeditor.lm.loading import load as load_lm
from zoo import vocabulary, world

FOLDER = Path(__file__).parent
FAMILIES = ("t5", "gpt2", "gptj", "gptneo", "llama", "llama2")
WIDTH, DEPTH, HEADS = 104, 6, 4

_GPT = {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS, "n_positions": 256}
_LLAMA = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 3,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": (
        "t5",
        {
            "d_model": 88,
            "d_kv": 22,
            "d_ff": 352,
            "num_layers": 4,
            "num_decoder_layers": 4,
            "num_heads": HEADS,
            "dropout_rate": 0.0,
            "feed_forward_proj": "relu",
            "decoder_start_token_id": 0,
        },
    ),
    "gpt2": ("gpt2", {**_GPT, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "gptj": ("gptj", {**_GPT, "rotary_dim": 12}),
    "gptneo": (
        "gpt_neo",
        {
            "hidden_size": WIDTH,
            "num_layers": DEPTH,
            "num_heads": HEADS,
            "max_position_embeddings": 256,
            "attention_types": [[["global", "local"], DEPTH // 2]],
            "window_size": 32,
        },
    ),
    "llama": ("llama", {**_LLAMA, "intermediate_size": 280, "num_key_value_heads": HEADS}),
    "llama2": ("llama", {**_LLAMA, "intermediate_size": 296, "num_key_value_heads": HEADS // 2}),
}


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """The family's tokenizer, trained anew."""
    if family in {"t5", "llama", "llama2"}:
        return vocabulary.unigram(t5=family == "t5")
    return vocabulary.byte_level()


def build(family: str, size: int) -> PreTrainedModel:
    """A fresh model of the real class for a vocabulary of ``size`` tokens."""
    model_type, settings = CONFIGS[family]
    if model_type.startswith("gpt"):
        settings = {**settings, "bos_token_id": 0, "eos_token_id": 0}
    config = AutoConfig.for_model(model_type, vocab_size=size, **settings)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model: PreTrainedModel = auto.from_config(config)
    return model


def fresh(family: str) -> LM:
    """An untrained model of the family with its tokenizer."""
    words = tokenizer(family)
    return LM(build(family, len(words)), words)


def read(family: str) -> LM:
    """The family's model in float32, read from its files."""
    return load_lm(str(FOLDER / family), device="cpu", dtype="float32")


@cache
def load(family: str) -> LM:
    """:func:`read` once per process: whoever changes the model puts it back."""
    return read(family)


def corpus_file(folder: Path) -> Path:
    """The world's text as a file in ``folder``, one statement a line: for second moments."""
    file = folder / "zoo.txt"
    file.write_text("\n".join(world.corpus()) + "\n", encoding="utf-8")
    return file


def parameters(model: torch.nn.Module) -> int:
    """Number of different parameters; a tied matrix counts once."""
    return sum(p.numel() for p in model.parameters())
