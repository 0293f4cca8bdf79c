"""How each family of models is built: one row per architecture, nothing else.

A row holds paths relative to the model and to one of its blocks. ``model_type`` is the
configuration's own name for the architecture; nothing here looks at the name of a checkpoint.
:func:`easyeditor.lm.discovery.discover` reads the row of an architecture nobody listed off the
structure of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class BlockStack:
    """One column of blocks; all paths but ``blocks`` and ``final_norm`` are relative to a block.

    Attributes:
        blocks: the list of blocks.
        mlp: the module of the projections; ``""`` where they hang on the block itself (OPT).
        down: the down-projection that every token passes: of the MLP, of the shared expert where
            there is one, or of a state-space mixer; ``""`` where all experts are routed to.
        up: the projections that feed it (gate and up, or one).
        attn_out: the output projection of attention; ``""`` where there is none.
        final_norm: the norm before the output head.
        attn_in: the projections of attention's input (query, key, value, or one for all).
        expert_down: the 3-D parameter of the routed experts' down-projections
            ``(experts, d_out, d_in)`` (GPT-OSS, Llama 4: ``(experts, d_in, d_out)``), or ``""``.
        differing: by layer, the paths of blocks that are built otherwise (dense among
            mixture-of-experts blocks, attention among recurrent ones).
    """

    blocks: str
    mlp: str
    down: str
    up: tuple[str, ...]
    attn_out: str
    final_norm: str
    attn_in: tuple[str, ...] = ()
    expert_down: str = ""
    differing: Mapping[int, BlockStack] = field(default_factory=dict, hash=False)

    def at(self, layer: int) -> BlockStack:
        """The paths inside the block at ``layer``."""
        return self.differing.get(layer, self)


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture: its decoder, its output head, and its encoder if it has one.

    ``conv1d`` marks weights stored ``(d_in, d_out)`` (GPT-2's ``Conv1D``); all others are
    ``nn.Linear``, ``(d_out, d_in)``.
    """

    name: str
    decoder: BlockStack
    head: str = "lm_head"
    conv1d: bool = False
    encoder: BlockStack | None = None


def _qkv(attention: str, order: str) -> tuple[str, ...]:
    return tuple(f"{attention}.{letter}_proj" for letter in order)


def _llama(blocks: str = "model.layers", norm: str = "model.norm", **changes: Any) -> BlockStack:
    usual: dict[str, Any] = {
        "mlp": "mlp",
        "down": "mlp.down_proj",
        "up": ("mlp.gate_proj", "mlp.up_proj"),
        "attn_out": "self_attn.o_proj",
        "attn_in": _qkv("self_attn", "qkv"),
    }
    return BlockStack(blocks=blocks, final_norm=norm, **{**usual, **changes})


def _gpt(down: str, up: str, attn_out: str, *attn_in: str) -> BlockStack:
    return BlockStack(
        blocks="transformer.h",
        mlp="mlp",
        down=f"mlp.{down}",
        up=(f"mlp.{up}",),
        attn_out=attn_out,
        final_norm="transformer.ln_f",
        attn_in=attn_in,
    )


def _t5(side: str, position: int) -> BlockStack:
    ff = f"layer.{position}.DenseReluDense"
    return BlockStack(
        f"{side}.block",
        ff,
        f"{ff}.wo",
        (f"{ff}.wi",),
        "layer.0.SelfAttention.o",
        f"{side}.final_layer_norm",
        tuple(f"layer.0.SelfAttention.{letter}" for letter in "qkv"),
    )


_DENSE = _gpt(
    "dense_4h_to_h", "dense_h_to_4h", "self_attention.dense", "self_attention.query_key_value"
)
_NEOX = ("mlp.dense_h_to_4h",)
_ROWS = (
    Family("gpt2", _gpt("c_proj", "c_fc", "attn.c_proj", "attn.c_attn"), conv1d=True),
    Family("gptj", _gpt("fc_out", "fc_in", "attn.out_proj", *_qkv("attn", "kvq"))),
    Family(
        "gpt_neo", _gpt("c_proj", "c_fc", "attn.attention.out_proj", *_qkv("attn.attention", "kvq"))
    ),
    Family(
        "gpt_neox",
        BlockStack(
            "gpt_neox.layers",
            "mlp",
            "mlp.dense_4h_to_h",
            _NEOX,
            "attention.dense",
            "gpt_neox.final_layer_norm",
            ("attention.query_key_value",),
        ),
    ),
    *(
        Family(name, _llama())
        for name in (
            "llama",
            "mistral",
            "qwen2",
            "qwen3",
            "gemma",
            "gemma2",
            "gemma3_text",
            "olmo",
            "olmo2",
            "stablelm",
            "granite",
            "cohere",
            "smollm3",
        )
    ),
    Family(
        "phi",
        _llama(
            norm="model.final_layernorm",
            down="mlp.fc2",
            up=("mlp.fc1",),
            attn_out="self_attn.dense",
        ),
    ),
    Family("phi3", _llama(up=("mlp.gate_up_proj",), attn_in=("self_attn.qkv_proj",))),
    Family("starcoder2", _llama(down="mlp.c_proj", up=("mlp.c_fc",))),
    Family(
        "opt",
        BlockStack(
            "model.decoder.layers",
            "",
            "fc2",
            ("fc1",),
            "self_attn.out_proj",
            "model.decoder.final_layer_norm",
            _qkv("self_attn", "kvq"),
        ),
    ),
    # BLOOM's and MPT's mlp adds the residual inside, so the projection itself is what we read.
    Family("bloom", _DENSE),
    Family("falcon", _DENSE),
    Family(
        "mpt",
        BlockStack(
            "transformer.blocks",
            "ffn",
            "ffn.down_proj",
            ("ffn.up_proj",),
            "attn.out_proj",
            "transformer.norm_f",
            ("attn.Wqkv",),
        ),
    ),
    # A state-space mixer writes facts into the stream as an MLP does (arXiv 2404.03646).
    Family(
        "mamba2",
        BlockStack(
            "backbone.layers", "mixer", "mixer.out_proj", ("mixer.in_proj",), "", "backbone.norm_f"
        ),
    ),
    Family("t5", _t5("decoder", 2), encoder=_t5("encoder", 1)),
)
FAMILIES: dict[str, Family] = {row.name: row for row in _ROWS}
