"""Taking a direction out of everything that a model writes into its residual stream.

Where a matrix writes into the stream directly, the direction is removed from the matrix:
``W − W r rᵀ`` and ``b − (b · r) r``, a change of rank one. That is the same function as removing it
from the outputs (Arditi et al., arXiv 2406.11717). It is not where a norm comes between (Gemma 2
and 3, OLMo 2), and for an embedding that the output head shares, which would change the head: there
the outputs are changed, by adapters. Models that route tokens to experts are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from easyeditor.associative.keys import write_scale
from easyeditor.errors import HyperParamsError, UnsupportedModelError
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.hooks import hidden_of, reading_inputs, reading_output, stopping
from easyeditor.lm.model import LM
from easyeditor.lm.originals import unedited
from easyeditor.lm.projection import NamedWeight
from easyeditor.lm.weights import weight_handle
from easyeditor.patches.ablation import Ablate
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.parts import Dense, LowRank, WeightPart
from easyeditor.patches.patch import Patch, PatchInfo
from easyeditor.patches.stack import applied, without_patches
from easyeditor.patches.weight import WeightPatch, weight_patch
from easyeditor.steering.activations import path_of

POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
"""The norms between a sublayer and the stream, where there are any."""
EMBEDDING_NORMS = ("word_embeddings_layernorm", "embed_norm", "emb_norm")
SMALL = 1e-3
"""Share of a state's norm along the direction that counts as removed."""
NAME = "DIRECTION-ABLATION"


class AblationSettings(HyperParams):
    """Where an ablated direction comes from; stored in its patch."""

    alg_name: str = "ABLATION"
    source: str = ""
    """``refusal``, ``random`` or the user's own word."""
    layer: int | None = None
    token: int | None = None
    """Of the residual stream that it was read at; the token from the prompt's end."""


@dataclass(frozen=True, slots=True, eq=False)
class Ablation:
    """A direction taken out of a model, as far as possible in its weights.

    Attributes:
        weights: of every matrix that writes into the stream directly; None: there is none.
        activations: the rest, by adapters; None: the weights are all.
    """

    weights: WeightPatch | None
    activations: ModulePatch | None

    @property
    def patches(self) -> list[Patch]:
        """What has to be applied, in this order."""
        return [patch for patch in (self.weights, self.activations) if patch is not None]


def ablation_hooks(
    lm: LM, direction: torch.Tensor, settings: AblationSettings | None = None
) -> ModulePatch:
    """The direction taken out of every output, by adapters alone: for any model.

    Raises:
        HyperParamsError: the direction has another width than the stream, or no length.
        UnsupportedModelError: an encoder-decoder, or a block whose outputs are not known.
    """
    unit = _unit(lm, direction)
    modules = [*_embeddings(lm), *_outputs(lm)]
    return _checked_hooks(lm, unit, modules, settings)


def ablation_weights(
    lm: LM, direction: torch.Tensor, settings: AblationSettings | None = None
) -> Ablation:
    """The same function as :func:`ablation_hooks`, in the weights as far as it can be.

    Raises:
        HyperParamsError, UnsupportedModelError: see :func:`ablation_hooks`.
    """
    ablation_hooks(lm, direction, settings)  # whether nothing else writes along the direction
    unit = _unit(lm, direction)
    settings = settings or AblationSettings()
    entries: dict[str, list[WeightPart]] = {}
    rest: list[nn.Module] = []
    for module in _embeddings(lm):
        path = f"{path_of(lm, module)}.weight"
        if isinstance(module, nn.Embedding) and not _tied(lm, module):
            entries[path] = [_rank_one(lm, path, unit, transposed=False)]
        else:
            rest.append(module)
    for module in _outputs(lm):
        weight = getattr(module, "weight", None)
        name = path_of(lm, module)
        if weight is None or not hasattr(module, "bias") or _is_norm(module):
            rest.append(module)
            continue
        path = f"{name}.weight"
        entries[path] = [_rank_one(lm, path, unit, NamedWeight(lm.model, path).transposed)]
        if module.bias is not None:
            bias = _original(lm, f"{name}.bias")
            entries[f"{name}.bias"] = [Dense(-(bias @ unit) * unit)]
    weights = weight_patch(lm, NAME, (), settings, entries, {}) if entries else None
    activations = _hooks(lm, unit, rest, settings) if rest else None
    return Ablation(weights, activations)


def _unit(lm: LM, direction: torch.Tensor) -> torch.Tensor:
    if lm.encoder_decoder:
        raise UnsupportedModelError(
            f"{lm.name} is an encoder-decoder, whose two residual streams have no common "
            "direction. Use a model that continues a text."
        )
    width = lm.model.config.get_text_config().hidden_size
    given = direction.detach().float().cpu()
    if tuple(given.shape) != (width,) or not given.isfinite().all() or not float(given.norm()):
        raise HyperParamsError(
            f"A direction of shape {tuple(given.shape)} and norm {float(given.norm()):.3g}; the "
            f"residual stream of {lm.name} has {width} numbers, and a direction some length."
        )
    return given / given.norm()


def _embeddings(lm: LM) -> list[nn.Module]:
    """What gives the first block its input: tables of tokens and positions, or a norm of both."""
    tokens: Any = lm.model.get_input_embeddings()
    name = path_of(lm, tokens)
    parent = lm.model.get_submodule(name.rpartition(".")[0])
    for norm in EMBEDDING_NORMS:
        if isinstance(getattr(parent, norm, None), nn.Module):
            return [getattr(parent, norm)]
    width = tokens.weight.shape[-1]
    tables = [
        module
        for module in parent.children()
        if module is not tokens
        and isinstance(module, nn.Embedding)
        and module.weight.shape[-1] == width
    ]
    return [tokens, *tables]


def _outputs(lm: LM) -> list[nn.Module]:
    """What every block adds to the stream: its projections, or the norms after them."""
    result: list[nn.Module] = []
    for layer in range(lm.n_layers):
        block = lm.blocks[layer]
        normed = not lm.has_experts(layer) and write_scale(lm, layer) is None
        norms = [getattr(block, name, None) for name in POST_NORMS]
        if normed and not all(isinstance(norm, nn.Module) for norm in norms):
            raise UnsupportedModelError(
                f"Block {layer} of {type(lm.model).__name__} changes what its MLP writes before it "
                "adds it to the residual stream, in a way that is not known here, so a direction "
                "cannot be taken out of it."
            )
        if normed:
            result += [norm for norm in norms if isinstance(norm, nn.Module)]
        else:
            result += _sublayers(lm, layer)
    return list(dict.fromkeys(result))


def _sublayers(lm: LM, layer: int) -> list[nn.Module]:
    """Those that the block has; whether something else writes, too, is measured later."""
    result = []
    kinds: tuple[Literal["attention", "mlp"], ...] = ("attention", "mlp")
    for kind in kinds:
        with suppress(UnsupportedModelError):
            result.append(lm.sublayer(layer, kind))
    return result


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _tied(lm: LM, embedding: nn.Embedding) -> bool:
    """Whether the output head computes with the same numbers."""
    return getattr(lm.head, "weight", None) is embedding.weight


def _original(lm: LM, path: str) -> torch.Tensor:
    handle = weight_handle(lm.model, path)
    return handle.read(unedited(lm.model, path, handle)).detach().float().cpu()


def _rank_one(lm: LM, path: str, unit: torch.Tensor, transposed: bool) -> LowRank:
    """``−W r rᵀ`` of a weight as ``(d_in, d_out)``."""
    weight = _original(lm, path)
    along = unit @ weight if transposed else weight @ unit
    return LowRank(-along[:, None].contiguous(), unit[None].contiguous())


def _hooks(
    lm: LM, unit: torch.Tensor, modules: Sequence[nn.Module], settings: AblationSettings | None
) -> ModulePatch:
    info = PatchInfo.of(lm, NAME, (), settings or AblationSettings(), {})
    return ModulePatch({path_of(lm, module): (Ablate(unit),) for module in modules}, info)


@torch.no_grad()
def _checked_hooks(
    lm: LM, unit: torch.Tensor, modules: Sequence[nn.Module], settings: AblationSettings | None
) -> ModulePatch:
    """The adapters, once every block is seen to read and write nothing along the direction.

    Raises:
        UnsupportedModelError: one does.
    """
    patch = _hooks(lm, unit, modules, settings)
    batch = lm.pad([lm.text.plain("The river is long.")])
    states: list[torch.Tensor] = []
    with without_patches(lm.model), applied(lm.model, patch), lm.at_rest():
        with reading_inputs([lm.blocks[0]], [_first_tensor]) as inputs, stopping():
            lm.call(batch)
        states += [state for state in inputs if state is not None]
        with reading_output(lm.blocks[lm.n_layers - 1], stop=True) as outputs, stopping():
            lm.call(batch)
        states.append(hidden_of(outputs[0]))
    for state in states:
        wide = state.float().cpu()
        share = float((wide @ unit).norm() / wide.norm().clamp(min=1e-12))
        if share > SMALL:
            raise UnsupportedModelError(
                f"{type(lm.model).__name__} writes into its residual stream elsewhere, too: "
                f"{share:.1%} of a state still lies along the direction, which cannot be taken out "
                "of this model."
            )
    return patch


def _first_tensor(args: tuple[Any, ...]) -> torch.Tensor:
    tensor: torch.Tensor = args[0]
    return tensor.detach().clone()
