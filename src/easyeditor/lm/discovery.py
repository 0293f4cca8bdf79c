"""The family row of an architecture nobody listed, read off the structure of a model.

The names of checkpoints are never looked at, those of modules only to choose among projections
of one shape. The search stays below the module that holds the input embedding, so that the
column of blocks is the text's, not a vision tower's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from easyeditor.errors import UnknownFamilyError
from easyeditor.lm.families import FAMILIES, BlockStack, Family

log = logging.getLogger(__name__)

_OUTPUT_NAME = re.compile(r"(^|_)(o|out|wo|dense|c_proj)(_|$)|output(_linear)?$")
_IN_LIST = re.compile(r"\.\d+\.")
Shapes = dict[str, tuple[int, int]]


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
        return replace(stack, up=(f"{stack.mlp}.wi_0", f"{stack.mlp}.wi_1"))

    return replace(row, decoder=gated(row.decoder), encoder=gated(row.encoder))


def discover(model: PreTrainedModel) -> Family:
    """The family row read off the structure of ``model``.

    The blocks are the longest list of modules below the owner of the input embedding. Inside a
    block, the down-projection is the one projection to the model's width whose parent also holds
    projections from that width to its own input (or to twice that, when gate and up are fused);
    the attention output is the last other projection to the width, ``attn_in`` are the
    projections from the width beside it. Among several candidates for the down-projection those
    whose parent holds nothing but projections win (an MLP beside a state-space mixer), then those
    of the configuration's ``intermediate_size``. A block of routed experts alone has no
    down-projection: ``down`` is empty and ``experts`` names the module of its 3-D weights.

    Raises:
        UnknownFamilyError: an encoder-decoder, no output embedding, no list of blocks, two lists
            of one length, or several candidates for the down-projection.
    """
    if model.config.is_encoder_decoder:
        raise unknown(model, "an encoder-decoder has two columns of blocks; describe both")
    head = model.get_output_embeddings()
    if head is None:
        raise unknown(model, "it has no output embedding")
    names = {id(module): name for name, module in model.named_modules()}
    blocks_name = _column(model, names)
    blocks = model.get_submodule(blocks_name)
    width = int(head.weight.shape[-1])
    ff = getattr(model.config.get_text_config(), "intermediate_size", None)
    layers = [_block_paths(model, block, width, ff) for block in blocks.children()]
    usual = max(layers, key=lambda paths: (bool(paths.down), layers.count(paths)))
    usual = replace(usual, blocks=blocks_name, final_norm=_final_norm(model, blocks_name))
    layers = [replace(paths, blocks=blocks_name, final_norm=usual.final_norm) for paths in layers]
    differing = {i: paths for i, paths in enumerate(layers) if paths != usual}
    stack = replace(usual, differing=differing)
    first = layers.index(usual)
    conv1d = bool(usual.down) and isinstance(blocks[first].get_submodule(usual.down), Conv1D)
    return Family(model.config.model_type, stack, names[id(head)], conv1d)


def _column(model: PreTrainedModel, names: Mapping[int, str]) -> str:
    """The name of the list of blocks that reads the input embedding."""
    embedding = model.get_input_embeddings()
    owner = names.get(id(embedding), "").rpartition(".")[0]
    while True:
        lists = outermost_lists(model.get_submodule(owner), owner)
        if lists or not owner:
            break
        owner = owner.rpartition(".")[0]
    if not lists:
        raise unknown(model, "no list of blocks below the input embedding's module")
    depth = max(lists.values())
    deepest = [name for name, n in lists.items() if n == depth]
    if len(deepest) > 1:
        raise unknown(
            model, f"{' and '.join(deepest)} are lists of {depth} blocks each; describe the text's"
        )
    return deepest[0]


def outermost_lists(root: nn.Module, prefix: str) -> dict[str, int]:
    """``{name: length}`` of the lists of composite modules that lie in no other list."""
    result: dict[str, int] = {}
    for name, module in root.named_modules(prefix=prefix):
        inside = any(name.startswith(f"{other}.") for other in result)
        if inside or not isinstance(module, nn.ModuleList) or not len(module):
            continue
        if all(any(True for _ in block.children()) for block in module):
            result[name] = len(module)
    return result


def _final_norm(model: PreTrainedModel, blocks: str) -> str:
    trunk = blocks.rpartition(".")[0]
    norms = [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[0] == trunk and "norm" in type(module).__name__.lower()
    ]
    return norms[-1] if norms else ""


def _block_paths(
    model: PreTrainedModel, block: nn.Module, width: int, ff: int | None
) -> BlockStack:
    """The paths inside one block; ``blocks`` and ``final_norm`` are left empty."""
    shapes = {name: s for name, m in block.named_modules() if (s := _shape(m))}
    expert_down = _fused_experts(block, width)
    ups = _down_candidates(shapes, width)
    in_lists = [name for name in ups if _IN_LIST.search(name)]
    if len(in_lists) > 1:  # one module per expert
        expert_down = expert_down or _IN_LIST.sub(".{}.", in_lists[0], count=1)
        ups = {name: sources for name, sources in ups.items() if name not in in_lists}
    if expert_down:  # beside routed experts: a shared one, not square attention
        moe = f"{_parent(_parent(expert_down))}."
        ups = {
            name: sources
            for name, sources in ups.items()
            if name.startswith(moe) or shapes[name][0] != width
        }
    downs = list(ups)
    if len(downs) > 1:
        downs = [name for name in downs if _only_projections(block, _parent(name), shapes)] or downs
    if len(downs) > 1:  # a fused query-key-value can be as wide as a fused gate-up
        downs = [name for name in downs if shapes[name][0] == ff] or downs
    if len(downs) > 1:
        raise unknown(model, f"candidates for the down-projection: {', '.join(downs)}")
    down = downs[0] if downs else ""
    outside = {
        name: shape
        for name, shape in shapes.items()
        if name != down and name not in ups.get(down, ()) and name not in in_lists
    }
    outs = [
        name
        for name, (_, d_out) in outside.items()
        if d_out == width and ("." not in down or _parent(name) != _parent(down))
    ]
    named = [name for name in outs if _OUTPUT_NAME.search(name.rpartition(".")[2])]
    attn_out = (named or outs or [""])[-1]
    attn_in = tuple(
        name
        for name, (d_in, _) in outside.items()
        if attn_out and d_in == width and _parent(name) == _parent(attn_out) and name != attn_out
    )
    return BlockStack(
        blocks="",
        mlp=_parent(down),
        down=down,
        up=ups.get(down, ()),
        attn_out=attn_out,
        final_norm="",
        attn_in=attn_in,
        expert_down=expert_down,
    )


def _fused_experts(block: nn.Module, width: int) -> str:
    """The name of the 3-D down-projection of routed experts, or an empty string.

    Two or more 3-D parameters of one module with the same number of experts, of which one side is
    the model's width; the smallest is the down-projection, as gate and up are mostly fused.
    """
    for name, module in block.named_modules():
        fused = {
            leaf: parameter
            for leaf, parameter in module.named_parameters(recurse=False)
            if parameter.dim() == 3 and width in parameter.shape[1:]
        }
        if len(fused) > 1 and len({parameter.shape[0] for parameter in fused.values()}) == 1:
            sizes = {leaf: (p.numel(), "down" not in leaf) for leaf, p in fused.items()}
            return f"{name}.{min(sizes, key=lambda leaf: sizes[leaf])}".lstrip(".")
    return ""


def _down_candidates(shapes: Shapes, width: int) -> dict[str, tuple[str, ...]]:
    """``{down: its up-projections}`` of every projection that may be one."""
    candidates = {}
    for name, (d_in, d_out) in shapes.items():
        sources = tuple(
            other
            for other, (o_in, o_out) in shapes.items()
            if other != name
            and _parent(other) == _parent(name)
            and o_in == width
            and o_out in {d_in, 2 * d_in}
        )
        if d_out == width and sources and not _is_attention(shapes, name):
            candidates[name] = sources
    return candidates


def mlp_output(block: nn.Module) -> str:
    """The path of a block's down-projection: the projection behind the widest one.

    Raises:
        UnknownFamilyError: the block has no pair of an up- and a down-projection.
    """
    shapes = {name: s for name, m in block.named_modules() if (s := _shape(m))}
    pairs = [
        (d_out, other)
        for name, (d_in, d_out) in shapes.items()
        for other, (o_in, o_out) in shapes.items()
        if other != name and _parent(other) == _parent(name) and o_in == d_out > d_in == o_out
    ]
    if not pairs:
        raise UnknownFamilyError(
            f"A {type(block).__name__} has no up- and down-projection side by side; name the "
            "weights with modules."
        )
    return max(pairs)[1]


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """``(d_in, d_out)`` of a projection, or None for any other module."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return None


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _only_projections(block: nn.Module, parent: str, shapes: Shapes) -> bool:
    """Whether every parameter below ``parent`` belongs to a projection."""
    below = block.get_submodule(parent) if parent else block
    owners = {_parent(name) for name, _ in below.named_parameters(prefix=parent)}
    return owners <= shapes.keys()


def _is_attention(shapes: Shapes, name: str) -> bool:
    # In an attention block several square projections feed each other; an MLP has a width of
    # its own. Where both are square, three or more inputs beside the output mean attention.
    d_in, d_out = shapes[name]
    inside = [other for other in shapes if _parent(other) == _parent(name)]
    return d_in == d_out and len(inside) >= 4


def unknown(model: PreTrainedModel, why: str) -> UnknownFamilyError:
    """The error for an architecture that was not recognised; its message prints a row to add."""
    kind = model.config.model_type
    return UnknownFamilyError(
        f"The architecture {kind!r} ({type(model).__name__}) is not in the family table and its "
        f"structure was not recognised: {why}. Methods that change no weight work all the same; "
        "for the others add a row to src/easyeditor/lm/families.py, e.g.\n"
        f'    Family("{kind}", BlockStack(blocks="model.layers", mlp="mlp", down="mlp.down_proj", '
        'up=("mlp.up_proj",), attn_out="self_attn.o_proj", final_norm="model.norm"), '
        'head="lm_head")'
    )
