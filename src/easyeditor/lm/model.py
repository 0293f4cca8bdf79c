"""``LM``: the model being edited, exactly as it is, with its tokenizer and its family row."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from easyeditor.errors import ModelLoadError
from easyeditor.lm.caches import CacheStore
from easyeditor.lm.forward.context import ForwardContext, forward_context, last_token
from easyeditor.lm.hooks import gathering
from easyeditor.lm.image_tokens import ImageToken
from easyeditor.lm.images import ImageReader, keeping_position_offsets
from easyeditor.lm.model_structure import ModelStructure
from easyeditor.lm.quantized import keep_readable
from easyeditor.lm.restoring import restoring
from easyeditor.lm.tokens import (
    Batch,
    Row,
    Text,
    attach_tokenizer,
    pad,
    processor_of,
    with_images,
)
from easyeditor.lm.unwrapping import (
    context_length,
    embedding_rows,
    forward_inputs,
    public_name,
    refuse_missing,
    unwrap,
)
from easyeditor.lm.weights import require_weights, weight_handle


class LM(ModelStructure):
    """A Hugging Face model, its tokenizer, and one row of the family table.

    It is the only thing that knows how a model is built. It never changes weights; the trap is
    that it *holds* the caller's model, so whatever changes that model changes this.

    Attributes:
        model: the caller's model, the same object; of a wrapped one, what is inside.
        tokenizer: its fast tokenizer.
        checkpoint, checkpoint_dtype: the folder or hub name of its checkpoint, and the precision.
        text: the rules that turn prompts into tokens.
        images: reads images for the model; None where it sees none or has no processor.
        in_encoder: whether ``blocks``, ``n_layers`` and ``projection`` are an encoder's.
        caches: entries of the caches that :mod:`easyeditor.lm.caches` declares.

    Raises:
        MetaDeviceError: weights are nowhere, neither in memory nor offloaded.
        ModelLoadError: the tokenizer gives no offsets.
        UnsupportedModelError: a wrapper that cannot be opened, or adapters of peft.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        chat_template: bool = False,
        processor: Any = None,
    ) -> None:
        model = unwrap(model)
        require_weights(model)
        keep_readable(model)
        self.model = model
        self.tokenizer = tokenizer
        self.checkpoint_dtype: torch.dtype | None = None
        self.checkpoint: str | None = None
        processor = processor or processor_of(model)
        self.images = None if processor is None else ImageReader(model, tokenizer, processor)
        self.text = Text(
            tokenizer,
            encoder_decoder=self.encoder_decoder,
            chat_template=chat_template,
            images=self.images,
        )
        if processor is None and getattr(model.config, "vision_config", None) is not None:
            self.text.unseen = ModelLoadError(
                f"This {type(model).__name__} came without its processor of images, so it can be "
                "asked about text alone. Give AutoProcessor.from_pretrained(<the model>), too."
            )
        self.caches = CacheStore()
        self._encoder_caches = CacheStore()
        self.in_encoder = False
        self._embedding_rows = embedding_rows(model)
        attach_tokenizer(model, tokenizer, processor)
        self._accepts, self._requires = forward_inputs(model)

    # -- how it is built ------------------------------------------------------------------

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

        offsets = nullcontext() if self.images is None else keeping_position_offsets(self.model)
        with offsets, restoring(undo):
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
        batch = pad(sequences, self.text.pad_id, self.device, left=left)
        return batch if self.images is None else self._seen(batch, sequences, left=left)

    def pad_after(
        self, past: Sequence[Sequence[int]], rests: Sequence[Sequence[int]], *, width: int
    ) -> Batch:
        """``rests`` padded on the right, to be run with a cache of ``past`` padded on the left.

        Args:
            past: the tokens in the cache, of each row.
            rests: the tokens after them.
            width: columns of the cache.
        """
        rest = self.pad(rests)
        lengths = torch.tensor([len(ids) for ids in past], device=self.device)
        columns = torch.arange(width, device=self.device)
        before = (columns[None] >= width - lengths[:, None]).to(rest.mask.dtype)
        mask = torch.cat([before, rest.mask], 1)
        positions = rest.positions + lengths[:, None]
        if self.images is not None and self.images.plane:
            positions = self._plane_positions(past, rests, positions)
        return replace(rest, mask=mask, positions=positions)

    def _seen(self, batch: Batch, sequences: Sequence[Sequence[int]], *, left: bool) -> Batch:
        """The batch with its images, and with positions in a plane where the model has such."""
        batch = with_images(batch, sequences, left=left)
        assert self.images is not None
        if batch.marks is None or not self.images.plane:
            return batch
        positions = self.images.positions(
            self.model, batch.ids, batch.mask, batch.marks, batch.images
        )
        return replace(batch, positions=positions)

    def _plane_positions(
        self,
        past: Sequence[Sequence[int]],
        rests: Sequence[Sequence[int]],
        plain: torch.Tensor,
    ) -> torch.Tensor:
        """Positions of ``rests``, images in them or in ``past``; padding keeps its plain ones."""
        whole = self.pad([(*a, *b) for a, b in zip(past, rests, strict=True)])
        if whole.positions.dim() == 2:
            return plain
        positions = plain.clone() if plain.dim() == 3 else plain[None].repeat(3, 1, 1)
        for i, (a, b) in enumerate(zip(past, rests, strict=True)):
            positions[:, i, : len(b)] = whole.positions[:, i, len(a) : len(a) + len(b)]
        return positions

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
        arguments.update(self.image_inputs(batch))
        model = self.reader_of(arguments)
        if "position_ids" in (self._accepts if model is self.model else forward_inputs(model)[0]):
            arguments["position_ids"] = batch.positions
        if model is self.model:
            self.check_inputs({*arguments, *more})
        return model(**{**arguments, **more})

    def reader_of(self, given: Collection[str]) -> Any:
        """What reads these inputs: the model, or without an image the language model inside it.

        BLIP-2's forward cannot do without pixels.
        """
        inner = getattr(self.model, "language_model", None)
        alone = self.images is not None and "pixel_values" in self._requires.difference(given)
        return inner if alone and isinstance(inner, nn.Module) else self.model

    def image_inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Pixels and what else the model's forward takes for the images of a batch."""
        if self.images is None:
            return {}
        if batch.marks is None:  # the trap: without types such a model reads text both ways
            causal = self.images.prefix_lm and batch.mask.shape == batch.ids.shape
            return {"token_type_ids": torch.ones_like(batch.ids)} if causal else {}
        weight = self.model.get_input_embeddings().weight
        return self.images.inputs(
            batch.ids, batch.marks, batch.images, self._accepts, weight, self.device
        )

    def check_inputs(self, given: Collection[str] = ("input_ids", "attention_mask")) -> None:
        """Refuse a pass without an input that the model's forward cannot do without: an image.

        Raises:
            UnsupportedModelError: it names what is missing.
        """
        if not self._requires.issubset(given):
            refuse_missing(self.model, self._requires.difference(given))

    def alike(self, sequences: Sequence[Sequence[int]]) -> list[list[int]]:
        """Numbers of the sequences that can share a pass: mostly all.

        Mllama skips the blocks that read images where a whole batch has none, and BLIP-2 reads text
        without an image by the language model inside it: there those with images are apart.
        """
        if self.images is None or not self.images.apart:
            return [list(range(len(sequences)))]
        groups: tuple[list[int], list[int]] = ([], [])
        for i, ids in enumerate(sequences):
            groups[any(isinstance(token, ImageToken) for token in ids)].append(i)
        return [group for group in groups if group]

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
        groups = self.alike([row.ids for row in rows])
        if len(groups) > 1:
            parts = [self.target_logits([rows[i] for i in group], **more) for group in groups]
            sizes = [[len(rows[i].target) for i in group] for group in groups]
            pieces = {
                i: piece
                for group, part, size in zip(groups, parts, sizes, strict=True)
                for i, piece in zip(group, torch.split(part, size), strict=True)
            }
            return torch.cat([pieces[i] for i in range(len(rows))])
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
