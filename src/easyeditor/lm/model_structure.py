"""Where the parts of a model are: columns of blocks, projections, weights, head, vision tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from easyeditor.errors import UnknownFamilyError
from easyeditor.hyperparams import resolve_layers
from easyeditor.lm.classic_names import check_module_names
from easyeditor.lm.discovery import family_of
from easyeditor.lm.families import BlockStack, Family
from easyeditor.lm.projection import NamedWeight, Projection
from easyeditor.lm.routed import RoutedExperts
from easyeditor.lm.structure import (
    down_map,
    down_projection,
    down_weight,
    mlp_projections,
    sublayer,
    weights_named,
)
from easyeditor.lm.vision import Site, vision_depth, vision_weights


class ModelStructure:
    """The parts of a model by its row of the family table.

    Attributes:
        model: a Hugging Face model.
        in_encoder: whether ``blocks``, ``n_layers`` and ``projection`` are an encoder's.
    """

    model: PreTrainedModel
    in_encoder: bool

    @cached_property
    def family(self) -> Family:
        """The row that says where the model's parts are; looked up when it is first needed.

        Scoring, generation and methods that change no weight need none.

        Raises:
            UnknownFamilyError: nobody described this architecture and it was not recognised.
        """
        return family_of(self.model)

    @property
    def _stack(self) -> BlockStack:
        if self.in_encoder:
            assert self.family.encoder is not None
            return self.family.encoder
        return self.family.decoder

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder's blocks (a causal model's only ones)."""
        return self._blocks(self._stack)

    @property
    def n_layers(self) -> int:
        """Number of these blocks; the configuration's where nobody knows where they are."""
        try:
            return len(self.blocks)
        except UnknownFamilyError:
            n = getattr(self.model.config.get_text_config(), "num_hidden_layers", None)
            if not isinstance(n, int):
                raise
            return n

    @property
    def head(self) -> nn.Module:
        """The output embedding."""
        head = self.model.get_output_embeddings()
        return self.model.get_submodule(self.family.head) if head is None else head

    def _blocks(self, stack: BlockStack) -> nn.ModuleList:
        blocks = self.model.get_submodule(stack.blocks)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    @property
    def layers_with_down(self) -> tuple[int, ...]:
        """The layers whose block has a down-projection that every token passes."""
        return tuple(i for i in range(self.n_layers) if self._stack.at(i).down)

    def projection(self, layer: int) -> Projection:
        """The down-projection of the block at ``layer`` that every token passes.

        Raises:
            UnsupportedModelError: the block has routed experts alone, or no MLP.
        """
        return down_projection(self.model, self.family, self._stack, layer)

    def sublayer(self, layer: int, kind: Literal["mlp", "attention"]) -> nn.Module:
        """The module whose output the MLP or attention at ``layer`` adds to the residual stream."""
        return sublayer(self.model, self._stack, layer, kind)

    def has_experts(self, layer: int) -> bool:
        """Whether the block at ``layer`` routes tokens to experts, with or without a shared one."""
        return bool(self._stack.at(layer).expert_down)

    def down_map(self, layer: int) -> Projection | RoutedExperts:
        """The down-projection at ``layer``, or its routed experts as one linear map.

        Raises:
            UnsupportedModelError: the block has neither.
        """
        return down_map(self.model, self.family, self._stack, layer)

    def projections(self, layer: int) -> list[Projection]:
        """The down-projections at ``layer`` of every column, an encoder's first."""
        return [
            down_projection(self.model, self.family, stack, layer)
            for stack in self._stacks
            if layer < len(self._blocks(stack))
        ]

    def mlp_projections(self, layers: tuple[int | float, ...]) -> list[Projection]:
        """Every MLP projection (up, gate, down) at ``layers`` of every column, an encoder's first.

        Layers may be relative; they are resolved in each column by itself.

        Raises:
            HyperParamsError: a layer lies outside a column.
            UnsupportedModelError: a block has routed experts alone, or no MLP.
        """
        return [
            projection
            for stack in self._stacks
            for layer in resolve_layers(layers, len(self._blocks(stack)))
            for projection in mlp_projections(self.model, self.family, stack, layer)
        ]

    def weights(
        self, layers: Sequence[int], names: Sequence[str] = (), *, site: Site = "text"
    ) -> list[NamedWeight]:
        """The weights called ``names``, ``{}`` being each of ``layers``; see :func:`weights_named`.

        Without names, at each layer of each column what writes the MLP's output: the
        down-projection, or the routed experts' fused ones (three-dimensional). Of the site
        ``"vision"`` the down-projections of its blocks, of ``"projector"`` its last linear map.

        Raises:
            HyperParamsError: no such weight.
            UnsupportedModelError: a block without an MLP, a weight that cannot be read, or a site
                that the model does not have.
        """
        if names:
            return weights_named(self.model, names, layers)
        if site != "text":
            return vision_weights(self.model, site, layers)
        return [
            down_weight(self.model, self.family, stack, layer)
            for layer in layers
            for stack in self._stacks
            if layer < len(self._blocks(stack))
        ]

    def depth_of(self, site: Site) -> int:
        """Number of blocks of a site: of text, or of the vision tower.

        Raises:
            UnsupportedModelError: the model has no such site.
        """
        return self.n_layers if site == "text" else vision_depth(self.model, site)

    @property
    def _stacks(self) -> list[BlockStack]:
        """Every column, an encoder's first."""
        return [s for s in (self.family.encoder, self.family.decoder) if s is not None]

    def check_claims(self, claims: Mapping[str, str]) -> None:
        """Compare a classic file's module templates with the family row.

        Raises:
            HyperParamsError: they name other modules than this model's.
        """
        if claims:
            check_module_names(self.model, self.family, claims)
