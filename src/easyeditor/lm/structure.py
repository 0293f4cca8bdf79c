"""Weights of a model by layer or by name: down-projections, routed experts, any parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from easyeditor.errors import HyperParamsError, UnsupportedModelError, did_you_mean
from easyeditor.lm.families import BlockStack, Family
from easyeditor.lm.projection import NamedWeight, Projection
from easyeditor.lm.routed import RoutedExperts

ROUTED = (
    "A method that takes mom2_adjustment=False then writes into the experts that the subject's "
    "token is routed to; second moments of routed experts are not collected. "
)
WITHOUT_DOWN = "Fine-tuning can train it all the same, and methods that change no weight need none."


def down_projection(
    model: PreTrainedModel, family: Family, stack: BlockStack, layer: int
) -> Projection:
    """The down-projection of the block at ``layer`` that every token passes.

    Raises:
        UnsupportedModelError: the block has routed experts alone, or no MLP.
    """
    paths = stack.at(layer)
    if not paths.down:
        others = [i for i in range(len(model.get_submodule(stack.blocks))) if stack.at(i).down]
        has = "routes every token to some of its experts" if paths.expert_down else "has no MLP"
        raise UnsupportedModelError(
            f"Block {layer} of {type(model).__name__} {has}, so there is no one down-projection "
            f"that holds a fact. {f'Layers that have one: {_span(others)}. ' if others else ''}"
            f"{ROUTED if paths.expert_down else ''}{WITHOUT_DOWN}"
        )
    return Projection(model, f"{stack.blocks}.{layer}.{paths.down}", family.conv1d)


def down_map(
    model: PreTrainedModel, family: Family, stack: BlockStack, layer: int
) -> Projection | RoutedExperts:
    """The down-projection of the block at ``layer``, or its routed experts as one linear map.

    Raises:
        UnsupportedModelError: the block has neither.
    """
    paths = stack.at(layer)
    path = f"{stack.blocks}.{layer}.{paths.expert_down}"
    if not paths.down and paths.expert_down and "{}" not in path:
        return RoutedExperts(model, path, model.get_output_embeddings().weight.shape[-1])
    return down_projection(model, family, stack, layer)


def mlp_projections(
    model: PreTrainedModel, family: Family, stack: BlockStack, layer: int
) -> list[Projection]:
    """Up-, gate- and down-projection of the block at ``layer``.

    Raises:
        UnsupportedModelError: see :func:`down_projection`.
    """
    down = down_projection(model, family, stack, layer)
    block = f"{stack.blocks}.{layer}"
    ups = [Projection(model, f"{block}.{name}", family.conv1d) for name in stack.at(layer).up]
    return [*ups, down]


def down_weight(
    model: PreTrainedModel, family: Family, stack: BlockStack, layer: int
) -> NamedWeight:
    """What writes the MLP's output at ``layer``: the down-projection, else the experts' fused ones.

    Raises:
        UnsupportedModelError: the block has neither.
    """
    paths = stack.at(layer)
    path = f"{stack.blocks}.{layer}.{paths.expert_down}"
    if not paths.down and paths.expert_down and "{}" not in path:
        return NamedWeight(model, path)
    return down_projection(model, family, stack, layer)


def sublayer(
    model: PreTrainedModel,
    stack: BlockStack,
    layer: int,
    kind: Literal["mlp", "attention"],
) -> nn.Module:
    """The module whose output the block at ``layer`` adds to its residual stream (before a norm).

    Of attention it is the output projection; of an MLP the down-projection, or the whole MLP where
    tokens are routed to experts.

    Raises:
        UnsupportedModelError: the block has none.
    """
    paths = stack.at(layer)
    shared = bool(paths.down and paths.expert_down)  # a shared expert is a part of the output only
    mlp = paths.mlp if shared or not paths.down else paths.down
    path = mlp if kind == "mlp" else paths.attn_out
    if not path:
        raise UnsupportedModelError(
            f"Block {layer} of {type(model).__name__} has no {'MLP' if kind == 'mlp' else kind}, "
            "so its output cannot be traced. Trace the hidden states (state), or another layer."
        )
    return model.get_submodule(f"{stack.blocks}.{layer}.{path}")


def weights_named(
    model: PreTrainedModel, names: Sequence[str], layers: Sequence[int]
) -> list[NamedWeight]:
    """Parameters by the names of ``print(model)``, each once.

    ``{}`` in a name stands for every one of ``layers``. The name of a module stands for its
    ``weight``; the name of a parameter for itself.

    Raises:
        HyperParamsError: no such module or parameter; all wrong names are listed.
        UnsupportedModelError: a weight that cannot be read.
    """
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    wanted = [
        name.replace("{}", str(layer)) if "{}" in name else name
        for name in names
        for layer in (layers if "{}" in name else (0,))
    ]
    paths = [name if name in known else f"{name}.weight" for name in dict.fromkeys(wanted)]
    wrong = [path for path in paths if path not in known]
    if wrong:
        hints = "; ".join(
            f"{path.removesuffix('.weight')!r}{did_you_mean(path, known)}" for path in wrong
        )
        raise HyperParamsError(
            f"{type(model).__name__} has no weight named {hints}. Name modules or parameters as "
            "print(model) shows them; '{}' stands for each of the layers."
        )
    return [NamedWeight(model, path) for path in dict.fromkeys(paths)]


def weights_in_blocks(
    model: PreTrainedModel, blocks: Mapping[str, nn.Module], names: Sequence[str]
) -> list[NamedWeight]:
    """The weights of the modules in ``blocks`` whose names are, or end with, one of ``names``.

    ``"q_proj"`` stands for ``"model.layers.0.self_attn.q_proj"`` of each block, as in PEFT.

    Args:
        model: the model.
        blocks: blocks by their names in the model.
        names: names of modules, within a block or of their ends.

    Raises:
        HyperParamsError: no block has such a module; all wrong names are listed.
        UnsupportedModelError: a weight that cannot be read.
    """
    inside = {
        f"{block}.{name}": f".{name}"
        for block, module in blocks.items()
        for name, part in module.named_modules()
        if name and isinstance(getattr(part, "weight", None), nn.Parameter)
    }
    wrong = [name for name in names if not any(end.endswith(f".{name}") for end in inside.values())]
    if wrong:
        ends = {end.rpartition(".")[2] for end in inside.values()}
        hints = "; ".join(f"{name!r}{did_you_mean(name, ends)}" for name in wrong)
        raise HyperParamsError(
            f"No block of {type(model).__name__} has a module named {hints}. Its modules with a "
            f"weight: {', '.join(sorted(ends))}."
        )
    chosen = [path for path, end in inside.items() if end.endswith(tuple(f".{n}" for n in names))]
    return [NamedWeight(model, f"{path}.weight") for path in chosen]


def _span(layers: Sequence[int]) -> str:
    shown = ", ".join(map(str, layers[:6]))
    return shown + (f", … {layers[-1]}" if len(layers) > 6 else "")
