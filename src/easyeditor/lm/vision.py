"""The parts of a model that see: the vision tower's blocks, and the projector behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from easyeditor.errors import HyperParamsError, UnsupportedModelError
from easyeditor.lm.discovery import mlp_output, outermost_lists
from easyeditor.lm.projection import NamedWeight

Site = Literal["text", "projector", "vision"]
_TOWERS = ("vision_tower", "vision_model", "visual", "vision_encoder")
_PROJECTORS = (
    "multi_modal_projector",
    "connector",
    "merger",
    "language_projection",
    "embed_vision",
)


def _named(model: nn.Module, names: Sequence[str]) -> str:
    """The path of the first, outermost module with one of these names; empty without one."""
    paths = [path for path, _ in model.named_modules() if path.rpartition(".")[2] in names]
    return min(paths, key=lambda path: path.count("."), default="")


def vision_blocks(model: PreTrainedModel) -> str:
    """The path of the list of the vision tower's blocks.

    Raises:
        UnsupportedModelError: the model has no vision tower that is known here.
    """
    tower = _named(model, _TOWERS)
    lists = outermost_lists(model.get_submodule(tower), tower) if tower else {}
    if not lists:
        raise _without(model, "vision", "no vision tower with a list of blocks")
    return max(lists, key=lambda name: lists[name])


def vision_depth(model: PreTrainedModel, site: Site) -> int:
    """Number of the vision tower's blocks; 1 for the projector.

    Raises:
        UnsupportedModelError: the model has no such site.
    """
    if site == "vision":
        return len(model.get_submodule(vision_blocks(model)))
    if not _named(model, _PROJECTORS):
        raise _without(model, site, "no projector")
    return 1


def vision_weights(model: PreTrainedModel, site: Site, layers: Sequence[int]) -> list[NamedWeight]:
    """What writes into the image features: the blocks' down-projections, or the projector's last.

    Raises:
        HyperParamsError: a layer lies outside the tower.
        UnsupportedModelError: the model has no such site.
    """
    if site == "projector":
        path = _named(model, _PROJECTORS)
        if not path:
            raise _without(model, site, "no projector")
        matrices = [
            name
            for name, weight in model.get_submodule(path).named_parameters(prefix=path)
            if weight.dim() == 2
        ]
        return [NamedWeight(model, matrices[-1])]
    blocks = vision_blocks(model)
    depth = vision_depth(model, site)
    outside = [layer for layer in layers if not 0 <= layer < depth]
    if outside:
        raise HyperParamsError(
            f"site='vision': layer {outside[0]} is none of the vision tower's {depth} blocks; use "
            f"0 to {depth - 1}."
        )
    return [
        NamedWeight(
            model, f"{blocks}.{layer}.{mlp_output(model.get_submodule(blocks)[layer])}.weight"
        )
        for layer in layers
    ]


def _without(model: PreTrainedModel, site: str, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"site={site!r}: {type(model).__name__} has {why} that is known here. Use site='text', or "
        "name the weights with modules."
    )
