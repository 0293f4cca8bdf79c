"""``LM``: the model being edited, exactly as it is, with its tokenizer and its family row."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from easyeditor.errors import ModelLoadError, UnknownFamilyError
from easyeditor.hyperparams import resolve_layers
from easyeditor.lm.caches import CacheStore
from easyeditor.lm.classic_names import check_module_names
from easyeditor.lm.discovery import family_of
from easyeditor.lm.families import BlockStack, Family
from easyeditor.lm.forward.context import ForwardContext, forward_context, last_token
from easyeditor.lm.hooks import gathering
from easyeditor.lm.projection import NamedWeight, Projection
from easyeditor.lm.quantized import keep_readable
from easyeditor.lm.restoring import restoring
from easyeditor.lm.routed import RoutedExperts
from easyeditor.lm.structure import (
    down_map,
    down_projection,
    down_weight,
    mlp_projections,
    sublayer,
    weights_named,
)
from easyeditor.lm.tokens import Batch, Row, Text, attach_tokenizer, pad
from easyeditor.lm.unwrapping import (
    context_length,
    embedding_rows,
    forward_inputs,
    public_name,
    refuse_missing,
    unwrap,
)
from easyeditor.lm.weights import require_weights, weight_handle


class LM:
    """A Hugging Face model, its tokenizer, and one row of the family table.

    It is the only thing that knows how a model is built. It never changes weights; the trap is
    that it *holds* the caller's model, so whatever changes that model changes this.

    Attributes:
        model: the caller's model, the same object; of a wrapped one, what is inside.
        tokenizer: its fast tokenizer.
        checkpoint, checkpoint_dtype: the folder or hub name of its checkpoint, and the precision.
        text: the rules that turn prompts into tokens.
        in_encoder: whether ``blocks``, ``n_layers`` and ``projection`` are an encoder's.
        caches: entries of the caches that :mod:`easyeditor.lm.caches` declares.

    Raises:
        MetaDeviceError: weights are nowhere, neither in memory nor offloaded.
        ModelLoadError: the tokenizer gives no offsets.
        UnsupportedModelError: a wrapper that cannot be opened, or adapters of peft.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, *, chat_template: bool = False
    ) -> None:
        model = unwrap(model)
        require_weights(model)
        keep_readable(model)
        self.model = model
        self.tokenizer = tokenizer
        self.checkpoint_dtype: torch.dtype | None = None
        self.checkpoint: str | None = None
        self.text = Text(
            tokenizer, encoder_decoder=self.encoder_decoder, chat_template=chat_template
        )
        self.caches = CacheStore()
        self._encoder_caches = CacheStore()
        self.in_encoder = False
        self._embedding_rows = embedding_rows(model)
        attach_tokenizer(model, tokenizer)
        self._accepts, self._requires = forward_inputs(model)

    # -- how it is built ------------------------------------------------------------------

    @cached_property
    def family(self) -> Family:
        """The row that says where the model's parts are; looked up when it is first needed.

        Scoring, generation and methods that change no weight need none.

        Raises:
            UnknownFamilyError: nobody described this architecture and it was not recognised.
        """
        return family_of(self.model)

    @property
    def encoder_decoder(self) -> bool:
        """Whether prompts go to an encoder and targets to a decoder."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def context_length(self) -> int | None:
        """The largest number of positions the configuration allows; None: no limit."""
        return context_length(self.model.config)

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a text, padding included."""
        named = getattr(self.model.generation_config, "eos_token_id", None)
        listed = named if isinstance(named, (list, tuple)) else [named]
        ends = [*listed, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id]
        return frozenset(token for token in ends if token is not None)

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        embedding = self.model.get_input_embeddings()
        device = embedding.weight.device
        if device.type == "meta":  # offloaded: where it is brought to
            device = weight_handle(self.model, _path(self.model, embedding)).device
        assert isinstance(device, torch.device)
        return device

    @property
    def name(self) -> str:
        """The hub id or the folder's own name the model was loaded by, else its class."""
        given = str(getattr(self.model.config, "_name_or_path", "") or "")
        return public_name(given) or type(self.model).__name__

    def encoder_side(self) -> LM:
        """This model with its encoder's blocks as ``blocks``; itself if it has no encoder."""
        if not self.encoder_decoder:
            return self
        view = copy.copy(self)
        view.in_encoder = True
        view.caches = self._encoder_caches
        return view

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

    def weights(self, layers: Sequence[int], names: Sequence[str] = ()) -> list[NamedWeight]:
        """The weights called ``names``, ``{}`` being each of ``layers``; see :func:`weights_named`.

        Without names, at each layer of each column what writes the MLP's output: the
        down-projection, or the routed experts' fused ones (three-dimensional).

        Raises:
            HyperParamsError: no such weight.
            UnsupportedModelError: a block without an MLP, or a weight that cannot be read.
        """
        if names:
            return weights_named(self.model, names, layers)
        return [
            down_weight(self.model, self.family, stack, layer)
            for layer in layers
            for stack in self._stacks
            if layer < len(self._blocks(stack))
        ]

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

    # -- forward passes -------------------------------------------------------------------

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """A context with evaluation mode and no parameter gradients; both are restored after it.

        The trap: both are states of the model, so only one thread may be inside at a time, as an
        editor is that holds :func:`~easyeditor.lm.locking.lock_of` the model.
        """
        training = [m for m in self.model.modules() if m.training]
        learning = [p for p in self.model.parameters() if p.requires_grad]

        def undo() -> None:
            for parameter in learning:
                parameter.requires_grad_(True)
            for module in training:
                module.training = True

        with restoring(undo):
            self.model.eval()
            for parameter in learning:
                parameter.requires_grad_(False)
            yield

    def pad(self, sequences: Sequence[Sequence[int]], *, left: bool = False) -> Batch:
        """Pad token sequences into a batch on the model's input device.

        Raises:
            ModelLoadError: a token has no row in the input embedding.
        """
        rows = self._embedding_rows
        unknown = max((max(ids) for ids in sequences if ids), default=0)
        if rows is not None and unknown >= rows:
            raise ModelLoadError(
                f"The token {self.tokenizer.decode([unknown])!r} (id {unknown}) has no row in the "
                f"model's embedding, which has {rows}. It was added to the tokenizer alone: call "
                "model.resize_token_embeddings(len(tokenizer)) and train the new rows, or use the "
                "tokenizer the model came with."
            )
        return pad(sequences, self.text.pad_id, self.device, left=left)

    def call(
        self,
        batch: Batch,
        *,
        prompt_end: Sequence[int] | None = None,
        patch_of_row: Sequence[int] | None = None,
        **more: Any,
    ) -> Any:
        """One forward pass of the model's own code, with positions where it takes them.

        A decoder that gets no ``decoder_input_ids`` reads its first position.

        Args:
            batch: the tokens; with a cache in ``more``, its mask covers the cached ones, too.
            prompt_end: per row the column of the mask with the prompt's last token; by default
                the row's last token. Adapters read it (:mod:`easyeditor.lm.forward.context`).
            patch_of_row: per row which of several changes it asks about.
            **more: of the model's forward.
        """
        with self._context(batch, prompt_end, patch_of_row, more.get("past_key_values")):
            return self._call(batch, more)

    def _context(
        self,
        batch: Batch,
        prompt_end: Sequence[int] | None,
        patch_of_row: Sequence[int] | None,
        cache: Any,
    ) -> AbstractContextManager[None]:
        if prompt_end is None and patch_of_row is None:
            return nullcontext()  # what encloses the pass says it, or it follows from the mask
        end = last_token(batch.mask) if prompt_end is None else torch.tensor(prompt_end)
        return forward_context(
            self.model,
            ForwardContext(
                batch.mask,
                end.to(batch.mask.device),
                None if patch_of_row is None else torch.tensor(patch_of_row),
                start=0 if cache is None else int(cache.get_seq_length()),
            ),
        )

    def _call(self, batch: Batch, more: dict[str, Any]) -> Any:
        if self.encoder_decoder and "decoder_input_ids" not in more:
            more["decoder_input_ids"] = self.decoder_inputs([()] * len(batch.ids))
        arguments = {"input_ids": batch.ids, "attention_mask": batch.mask, "use_cache": False}
        if "position_ids" in self._accepts:
            arguments["position_ids"] = batch.positions
        self.check_inputs({*arguments, *more})
        return self.model(**{**arguments, **more})

    def check_inputs(self, given: Collection[str] = ("input_ids", "attention_mask")) -> None:
        """Refuse a pass without an input that the model's forward cannot do without: an image.

        Raises:
            UnsupportedModelError: it names what is missing.
        """
        if not self._requires.issubset(given):
            refuse_missing(self.model, self._requires.difference(given))

    def decoder_inputs(self, targets: Sequence[Sequence[int]]) -> torch.Tensor:
        """What an encoder-decoder's decoder reads to predict these targets: shifted by one.

        An empty target stands for the first position alone.
        """
        labels = pad([target or (0,) for target in targets], 0, self.device).ids
        start = self.model.config.decoder_start_token_id
        first = torch.full_like(labels[:, :1], start if start is not None else self.text.pad_id)
        return torch.cat([first, labels[:, :-1]], 1)

    def target_logits(self, rows: Sequence[Row], **more: Any) -> torch.Tensor:
        """Logits at every target token of every row, ``(sum of target lengths, vocabulary)``.

        One forward pass; computed only where read; differentiable. The last target token is not
        fed.
        """
        lengths = [len(row.target) for row in rows]
        index = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(lengths))
        if self.encoder_decoder:
            more["decoder_input_ids"] = self.decoder_inputs([row.target for row in rows])
            positions = torch.cat([torch.arange(n) for n in lengths])
            batch = self.pad([row.ids for row in rows])
        else:
            positions = torch.cat(
                [torch.arange(row.prompt_length - 1, len(row.ids) - 1) for row in rows]
            )
            batch = self.pad([row.ids[:-1] for row in rows])
        ends = [len(row.ids) - 1 if self.encoder_decoder else row.prompt_length - 1 for row in rows]
        with gathering(self.head, index, positions):
            logits: torch.Tensor = self.call(batch, prompt_end=ends, **more).logits
        return logits[0]


def _path(model: nn.Module, module: nn.Module) -> str:
    """Of a module's weight."""
    return next(f"{name}.weight" for name, inner in model.named_modules() if inner is module)
