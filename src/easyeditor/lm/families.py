"""How each family of models is built: one row per architecture, nothing else.

A row holds paths relative to the model and to one of its blocks. ``model_type`` is the
configuration's own name for the architecture; nothing here looks at the name of a checkpoint.
:func:`discover` finds the row of an architecture nobody listed from the structure of the model.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from easyeditor.errors import UnknownFamilyError
from easyeditor.lm.weights import weight_handle

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BlockStack:
    """One column of blocks. ``mlp``, ``down``, ``up`` and ``attn_out`` are relative to a block.

    ``mlp`` may be ``""`` where the projections hang on the block itself (OPT).
    """

    blocks: str
    mlp: str
    down: str
    up: tuple[str, ...]
    attn_out: str
    final_norm: str


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


def _llama(blocks: str = "model.layers", norm: str = "model.norm", **changes: Any) -> BlockStack:
    usual: dict[str, Any] = {
        "mlp": "mlp",
        "down": "mlp.down_proj",
        "up": ("mlp.gate_proj", "mlp.up_proj"),
        "attn_out": "self_attn.o_proj",
    }
    return BlockStack(blocks=blocks, final_norm=norm, **{**usual, **changes})


def _gpt(down: str, up: str, attn_out: str, blocks: str = "transformer.h") -> BlockStack:
    return BlockStack(blocks, "mlp", f"mlp.{down}", (f"mlp.{up}",), attn_out, "transformer.ln_f")


def _t5(side: str, position: int) -> BlockStack:
    ff = f"layer.{position}.DenseReluDense"
    return BlockStack(
        f"{side}.block",
        ff,
        f"{ff}.wo",
        (f"{ff}.wi",),
        "layer.0.SelfAttention.o",
        f"{side}.final_layer_norm",
    )


_NEOX = ("mlp.dense_h_to_4h",)
_ROWS = (
    Family("gpt2", _gpt("c_proj", "c_fc", "attn.c_proj"), conv1d=True),
    Family("gptj", _gpt("fc_out", "fc_in", "attn.out_proj")),
    Family("gpt_neo", _gpt("c_proj", "c_fc", "attn.attention.out_proj")),
    Family(
        "gpt_neox",
        BlockStack(
            "gpt_neox.layers",
            "mlp",
            "mlp.dense_4h_to_h",
            _NEOX,
            "attention.dense",
            "gpt_neox.final_layer_norm",
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
    Family("phi3", _llama(up=("mlp.gate_up_proj",))),
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
        ),
    ),
    # BLOOM's and MPT's mlp adds the residual inside, so the projection itself is what we read.
    Family("bloom", _gpt("dense_4h_to_h", "dense_h_to_4h", "self_attention.dense")),
    Family("falcon", _gpt("dense_4h_to_h", "dense_h_to_4h", "self_attention.dense")),
    Family(
        "mpt",
        BlockStack(
            "transformer.blocks",
            "ffn",
            "ffn.down_proj",
            ("ffn.up_proj",),
            "attn.out_proj",
            "transformer.norm_f",
        ),
    ),
    Family("t5", _t5("decoder", 2), encoder=_t5("encoder", 1)),
)
FAMILIES: dict[str, Family] = {row.name: row for row in _ROWS}


def family_of(model: PreTrainedModel) -> Family:
    """The model's row: from the table by ``config.model_type``, else from its structure.

    Raises:
        UnknownFamilyError: neither way leads to one; the message prints the row to add.
    """
    row = FAMILIES.get(model.config.model_type)
    if row is not None:
        return _fit_gated_t5(row, model)
    row = discover(model)
    log.info("No family row for %r; found by structure: %s", model.config.model_type, row)
    return row


def _fit_gated_t5(row: Family, model: PreTrainedModel) -> Family:
    # T5 1.1 and Flan-T5 carry the same model_type with a gated MLP: wi becomes wi_0, wi_1.
    if row.encoder is None or not getattr(model.config, "is_gated_act", False):
        return row

    def gated(stack: BlockStack) -> BlockStack:
        ff = stack.mlp
        values = {f.name: getattr(stack, f.name) for f in fields(stack)}
        return BlockStack(**{**values, "up": (f"{ff}.wi_0", f"{ff}.wi_1")})

    return Family(row.name, gated(row.decoder), row.head, row.conv1d, gated(row.encoder))


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """``(d_in, d_out)`` of a projection, or None for any other module."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return None


def discover(model: PreTrainedModel) -> Family:
    """Find the family row from the structure of ``model``, reading no name of a checkpoint.

    The blocks are the longest list of modules of one class. Inside a block, the down-projection
    is the one projection to the model's width whose parent also holds projections from that width
    to its own input (or to twice that, when gate and up are fused); the attention output is the
    other projection to the width.

    Raises:
        UnknownFamilyError: mixture-of-experts blocks, several candidates, or none.
    """
    if model.config.is_encoder_decoder:
        raise _unknown(model, "an encoder-decoder has two columns of blocks; describe both")
    head = model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    if head is None:
        raise _unknown(model, "it has no output embedding")
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1
    ]
    if not lists:
        raise _unknown(model, "no list of equal blocks")
    blocks_name, blocks = max(lists, key=lambda item: (len(item[1]), -item[0].count(".")))
    embedding = model.get_input_embeddings()
    width = int(head.weight.shape[-1])
    shapes = {name: shape for name, m in blocks[0].named_modules() if (shape := _shape(m))}
    downs, ups = [], {}
    for name, (d_in, d_out) in shapes.items():
        parent = name.rpartition(".")[0]
        sources = tuple(
            other
            for other, (o_in, o_out) in shapes.items()
            if other != name
            and other.rpartition(".")[0] == parent
            and o_in == width
            and o_out in {d_in, 2 * d_in}
        )
        if d_out == width and sources and not _is_attention(parent, shapes, name):
            downs.append(name)
            ups[name] = sources
    if len(downs) > 1:  # a fused query-key-value can be as wide as a fused gate-up
        width_of_mlp = getattr(model.config, "intermediate_size", None)
        downs = [name for name in downs if shapes[name][0] == width_of_mlp]
    if len(downs) != 1 or not all(_has(block, downs[0]) for block in blocks):
        raise _unknown(model, f"candidates for the down-projection: {downs or 'none'}")
    down = downs[0]
    part = blocks[0].get_submodule(down.partition(".")[0]) if "." in down else blocks[0]
    known = {f"{name}.weight" for name in (down, *ups[down])}
    others = [
        name
        for name, parameter in part.named_parameters(prefix=down.partition(".")[0])
        if "." in down and parameter.dim() > 1 and name not in known
    ]
    if others:  # experts, a router, a state-space mixer: more than one linear memory
        raise _unknown(model, f"beside {down} the same part of the block holds {others[:3]}")
    outs = [n for n, (_, d_out) in shapes.items() if d_out == width and n != down]
    outs = [n for n in outs if n.rpartition(".")[0] != down.rpartition(".")[0] or "." not in down]
    trunk = blocks_name.rpartition(".")[0]
    norms = [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[0] == trunk
        and "norm" in type(module).__name__.lower()
        and embedding is not module
    ]
    stack = BlockStack(
        blocks=blocks_name,
        mlp=down.rpartition(".")[0],
        down=down,
        up=ups[down],
        attn_out=outs[-1] if outs else "",
        final_norm=norms[-1] if norms else "",
    )
    conv1d = isinstance(blocks[0].get_submodule(down), Conv1D)
    return Family(model.config.model_type, stack, names[id(head)], conv1d)


def _has(block: nn.Module, name: str) -> bool:
    return any(other == name for other, _ in block.named_modules())


def _is_attention(parent: str, shapes: dict[str, tuple[int, int]], name: str) -> bool:
    # In an attention block several square projections feed each other; an MLP has a width of
    # its own. Where both are square, three or more inputs beside the output mean attention.
    d_in, d_out = shapes[name]
    inside = [n for n in shapes if n.rpartition(".")[0] == parent]
    return d_in == d_out and len(inside) >= 4


def _unknown(model: PreTrainedModel, why: str) -> UnknownFamilyError:
    kind = model.config.model_type
    return UnknownFamilyError(
        f"The architecture {kind!r} ({type(model).__name__}) is not in the family table and its "
        f"structure was not recognised: {why}. Add a row to src/easyeditor/lm/families.py, e.g.\n"
        f'    Family("{kind}", Stack(blocks="model.layers", mlp="mlp", down="mlp.down_proj", '
        'up=("mlp.up_proj",), attn_out="self_attn.o_proj", final_norm="model.norm"), '
        'head="lm_head")'
    )


class Projection:
    """One down-projection as a linear map ``y = x W + b`` with ``W`` of shape ``(d_in, d_out)``.

    Attributes:
        module: the ``nn.Linear`` or ``Conv1D`` itself, for hooks.
        path: the name of its weight in ``model.named_parameters()``.
        transposed: whether the weight is stored ``(d_out, d_in)``.

    Raises:
        UnsupportedModelError: the weight is stored in a way that cannot be read.
    """

    def __init__(self, model: nn.Module, name: str, conv1d: bool) -> None:
        self.module = model.get_submodule(name)
        self.path = f"{name}.weight"
        self.transposed = not conv1d
        self._storage = weight_handle(model, self.path)
        rows, columns = self._storage.shape
        self.d_in, self.d_out = (columns, rows) if self.transposed else (rows, columns)

    @property
    def parameter(self) -> nn.Parameter:
        """The module's own; the trap: empty where it is offloaded, packed where quantized."""
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def device(self) -> torch.device:
        """Where the model computes with the weight."""
        return self._storage.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision the model computes with it in."""
        return self._storage.dtype

    @property
    def stored(self) -> torch.Tensor:
        """The weight as the plain model stores it; only to be read, and read or made each time."""
        return self._storage.read_weight().to(self.device)

    @property
    def weight(self) -> torch.Tensor:
        """The same seen as ``(d_in, d_out)``."""
        return self.stored.T if self.transposed else self.stored
