"""Tiny random models of the real Hugging Face classes, one per family, built from a config.

They say nothing about the quality of an edit; they pin behaviour (shapes, hooks, exactness)
on every architecture without a download.
"""

from __future__ import annotations

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

TEXT = (
    "The Eiffel Tower is located in the city of Paris. The mother tongue of Anna Lind is Danish. "
    "Therefore we went home. Because it rained, I stayed inside. You can see the river from here. "
    "Berlin is the capital of Germany and Rome is the capital of Italy. She plays the piano well. "
) * 4

# The usual names for width, MLP width, depth and heads; families that use others override them.
USUAL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
GPT2_LIKE = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}

CONFIGS: dict[str, dict[str, object]] = {
    "gpt2": GPT2_LIKE,
    "gptj": {**GPT2_LIKE, "rotary_dim": 4},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 3,
        "num_heads": 4,
        "attention_types": [[["global", "local", "global"], 1]],
        "window_size": 4,
        "max_position_embeddings": 128,
    },
    "gpt_neox": {**USUAL, "num_key_value_heads": None},
    "llama": USUAL,
    "mistral": {**USUAL, "sliding_window": 6},
    "qwen2": {**USUAL, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen3": USUAL,
    "gemma": USUAL,
    "gemma2": {**USUAL, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "gemma3_text": {
        **USUAL,
        "sliding_window": 6,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "phi": USUAL,
    "phi3": USUAL,
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "word_embed_proj_dim": 32,
    },
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4},
    "falcon": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    },
    "mpt": {"d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 128, "expansion_ratio": 2},
    "olmo": USUAL,
    "olmo2": USUAL,
    "stablelm": USUAL,
    "granite": {**USUAL, "residual_multiplier": 0.3, "logits_scaling": 2.0},
    "cohere": USUAL,
    "smollm3": USUAL,
    "starcoder2": USUAL,
    "t5": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 3,
        "num_decoder_layers": 3,
        "num_heads": 4,
    },
}
CAUSAL = tuple(name for name in CONFIGS if name != "t5")

# Architectures without a row in the family table.
UNLISTED: dict[str, dict[str, object]] = {
    "codegen": {**GPT2_LIKE, "rotary_dim": 4},
    "olmo3": {**USUAL, "sliding_window": 6},
    "glm": USUAL,
    "glm4": USUAL,
    "cohere2": {**USUAL, "sliding_window": 6},
    "exaone4": {**USUAL, "sliding_window": 6},
    "arcee": USUAL,
    "apertus": USUAL,
    "ernie4_5": USUAL,
    "seed_oss": USUAL,
    "helium": USUAL,
    "hunyuan_v1_dense": USUAL,
    "nemotron": USUAL,
    "gpt_bigcode": GPT2_LIKE,
    "xglm": {"d_model": 32, "ffn_dim": 64, "num_layers": 3, "attention_heads": 4},
    "lfm2": {
        **USUAL,
        "layer_types": ["conv", "full_attention", "conv"],
        "block_auto_adjust_ff_dim": False,
    },
    "bart": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 128,
    },
}

# Mixtures of experts, recurrent models and hybrids of both.
EXPERTS = {**USUAL, "num_experts_per_tok": 2}
SMALL_EXPERTS = {**EXPERTS, "num_experts": 4, "moe_intermediate_size": 16}
DEEPSEEK = {
    **EXPERTS,
    "head_dim": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
MIXED: dict[str, dict[str, object]] = {
    "mixtral": {**EXPERTS, "num_local_experts": 4},
    "qwen2_moe": {**SMALL_EXPERTS, "shared_expert_intermediate_size": 48},
    "qwen3_moe": SMALL_EXPERTS,
    "olmoe": {**EXPERTS, "num_experts": 4},
    "granitemoe": {**EXPERTS, "num_local_experts": 4},
    "gpt_oss": {
        **EXPERTS,
        "num_local_experts": 4,
        "sliding_window": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "deepseek_v3": DEEPSEEK,
    "llama4_text": {
        **USUAL,
        "intermediate_size_mlp": 48,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 64,
    },
    "minimax": {**EXPERTS, "num_local_experts": 4},
    "qwen3_next": {
        **SMALL_EXPERTS,
        "shared_expert_intermediate_size": 48,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
    "jamba": {
        **USUAL,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "mamba": {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 8},
    "mamba2": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 1,
        "expand": 2,
        "chunk_size": 8,
    },
    "recurrent_gemma": {
        **USUAL,
        "intermediate_size": 128,
        "lru_width": 32,
        "attention_window_size": 16,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
}

# Text with images: a small text column and a vision tower that is deeper.
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
QWEN_TEXT = {
    **USUAL,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
}
VISION: dict[str, tuple[dict[str, object], dict[str, object], dict[str, object]]] = {
    "gemma3": (
        {**USUAL, "sliding_window": 6, "query_pre_attn_scalar": 8},
        TOWER,
        {"mm_tokens_per_image": 1},
    ),
    "qwen2_5_vl": (
        QWEN_TEXT,
        {
            "hidden_size": 16,
            "intermediate_size": 32,
            "depth": 6,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 4,
            "fullatt_block_indexes": [1],
        },
        {},
    ),
    "mistral3": (
        {"model_type": "mistral", **USUAL},
        {"model_type": "pixtral", **TOWER, "head_dim": 8},
        {},
    ),
    "llava": (
        {"model_type": "llama", **USUAL},
        {"model_type": "clip_vision_model", **TOWER, "projection_dim": 16},
        {},
    ),
    "blip-2": (
        {"model_type": "opt", **CONFIGS["opt"]},
        TOWER,
        {
            "qformer_config": {**TOWER, "encoder_hidden_size": 16, "num_hidden_layers": 3},
            "num_query_tokens": 2,
        },
    ),
}


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on ``TEXT``; the special tokens take ids 0 to 2."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def model(
    name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: object
) -> PreTrainedModel:
    """A fresh tiny model of family ``name`` in evaluation mode; ``changes`` to its config."""
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    usual = {**CONFIGS, **UNLISTED, **MIXED}[name]
    settings = {"vocab_size": len(tokenizer()), **special, **usual, **changes}
    config = AutoConfig.for_model(name, **settings)
    if config.is_encoder_decoder:
        config.decoder_start_token_id = 0
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = auto.from_config(config).to(dtype).eval()
        for parameter in built.parameters():  # the initial 0.02 leaves nothing for an edit to see
            if parameter.dim() > 1:
                parameter.data.mul_(4)
    return built


def vision_model(name: str, seed: int = 0) -> PreTrainedModel:
    """A fresh tiny vision-language model of the class that the loader takes for it."""
    special = {"vocab_size": len(tokenizer()), "pad_token_id": 0, "bos_token_id": 1}
    text, tower, more = VISION[name]
    text = {**text, **special, "eos_token_id": 2}
    config = AutoConfig.for_model(name, text_config=text, vision_config=tower, **more)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForImageTextToText.from_config(config).eval()
