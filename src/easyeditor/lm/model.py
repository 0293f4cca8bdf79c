"""``LM``: the model being edited, exactly as it is, with its tokenizer and its family row."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from easyeditor.errors import ModelLoadError
from easyeditor.hyperparams import resolve_layers
from easyeditor.lm.classic_names import check_module_names
from easyeditor.lm.discovery import family_of
from easyeditor.lm.families import BlockStack, Family
from easyeditor.lm.forward.batching import (
    ScoredSequence,
    TokenScores,
    batches_by_length,
    scored_sequences,
)
from easyeditor.lm.forward.prefix_cache import Prefix, cut_after, groups
from easyeditor.lm.hooks import gathering
from easyeditor.lm.projection import NamedWeight, Projection
from easyeditor.lm.quantized import keep_readable
from easyeditor.lm.routing import answer_via_routers, attach_tokenizer, routers_of
from easyeditor.lm.structure import (
    down_projection,
    down_weight,
    mlp_projections,
    weights_named,
)
from easyeditor.lm.tokens import Batch, Row, Text, pad
from easyeditor.lm.unwrapping import context_length, embedding_rows, public_name, unwrap
from easyeditor.lm.weights import require_weights, weight_handle

TOKEN_BUDGET = 2048
"""Padded tokens per forward pass in evaluation."""
LOGIT_BUDGET = 8 * 2**20
"""Logits (numbers, not bytes) held at once."""
GENERATION_BUDGET = 8192
"""Tokens, prompts and continuations together, in one batch of generation."""


class LM:
    """A Hugging Face model, its tokenizer, and one row of the family table.

    It is the only thing that knows how a model is built. It never changes weights; the trap is
    that it *holds* the caller's model, so whatever changes that model changes this.

    Attributes:
        model: the caller's model, the same object; of a wrapped one, what is inside.
        tokenizer: its fast tokenizer.
        checkpoint_dtype: the precision of the checkpoint it was loaded from, where that is known.
        text: the rules that turn prompts into tokens.
        in_encoder: whether ``blocks``, ``n_layers`` and ``projection`` are an encoder's.
        owners: which of several changes each row of the batch being run asks about; read by
            whoever lets the model carry several at once.
        memo: what was computed once for this model (sampled contexts, checks); cleared by no one.

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
        self.text = Text(
            tokenizer, encoder_decoder=self.encoder_decoder, chat_template=chat_template
        )
        self.memo: dict[Any, Any] = {}
        self.owners: list[int] = []
        self.in_encoder = False
        self._embedding_rows = embedding_rows(model)
        attach_tokenizer(model, tokenizer)
        self._accepts = frozenset(inspect.signature(model.forward).parameters)

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
    def stateful(self) -> bool:
        """Whether the model carries a recurrent state beside, or instead of, keys and values.

        Padding on the left may then change what it says, and it cannot be resumed in the middle.
        """
        return bool(getattr(self.model, "_is_stateful", False))

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
        """The same model, with the encoder's blocks where the decoder's are here.

        A model without an encoder is handed back as it is.
        """
        if not self.encoder_decoder:
            return self
        view = copy.copy(self)
        view.in_encoder = True
        view.memo = self.memo.setdefault("encoder", {})
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
        """Number of these blocks."""
        return len(self.blocks)

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
        check_module_names(self.model, self.family, claims)

    # -- forward passes -------------------------------------------------------------------

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Evaluation mode and no parameter gradients inside; both exactly restored after."""
        training = [m for m in self.model.modules() if m.training]
        learning = [p for p in self.model.parameters() if p.requires_grad]
        self.model.eval()
        for parameter in learning:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)
            for module in training:
                module.training = True

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

    def call(self, batch: Batch, **more: Any) -> Any:
        """One forward pass of the model's own code, with positions where it takes them.

        A decoder that is not told what to read gets its first position.
        """
        if self.encoder_decoder and "decoder_input_ids" not in more:
            more["decoder_input_ids"] = self.decoder_inputs([()] * len(batch.ids))
        arguments = {"input_ids": batch.ids, "attention_mask": batch.mask, "use_cache": False}
        if "position_ids" in self._accepts:
            arguments["position_ids"] = batch.positions
        return self.model(**{**arguments, **more})

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
        with gathering(self.head, index, positions):
            logits: torch.Tensor = self.call(batch, **more).logits
        return logits[0]

    def score(
        self, pairs: Sequence[tuple[str, str]], owners: Sequence[int] | None = None
    ) -> list[TokenScores]:
        """Score each ``(prompt, answer)`` under teacher forcing; few, length-sorted forwards.

        Equal pairs are computed once, a causal model runs a prompt once for all its answers, and
        a long beginning of several prompts once for all of them. The model may be in training
        mode; it is read in evaluation mode. ``owners`` says for each pair which of several changes
        it asks about, where the model carries several at once.
        """
        asked = list(zip(pairs, owners or [0] * len(pairs), strict=True))
        unique = list(dict.fromkeys(asked))
        questions, whose = [pair for pair, _ in unique], [owner for _, owner in unique]
        if routers_of(self.model):
            answers = [answer for _, answer in questions]
            scores = answer_via_routers(
                self,
                [prompt for prompt, _ in questions],
                lambda own: self._score([questions[i] for i in own], [whose[i] for i in own]),
                lambda who, own, prompts: who._score(
                    [(p, answers[i]) for i, p in zip(own, prompts, strict=True)], [0] * len(own)
                ),
            )
        else:
            scores = self._score(questions, whose)
        by_question = dict(zip(unique, scores, strict=True))
        return [by_question[question] for question in asked]

    def _score(self, pairs: Sequence[tuple[str, str]], whose: Sequence[int]) -> list[TokenScores]:
        """:meth:`score` of this model itself, for pairs that all differ."""
        rows = [self.text.row(prompt, answer) for prompt, answer in pairs]
        if self.encoder_decoder:  # the decoder's input differs from answer to answer
            plan = [
                ScoredSequence(row.ids, whole := tuple(range(len(row.target))), ((i, whole),))
                for i, row in enumerate(rows)
            ]
        else:
            plan = scored_sequences(rows, whose)
        own = [whose[p.asks[0][0]] for p in plan]
        found: dict[int, TokenScores] = {}
        with self.at_rest(), torch.inference_mode():
            for logits, chunk in self._read(plan, rows, own):
                found.update(_picked(logits, [plan[k] for k in chunk], rows))
        return [found[i] for i in range(len(rows))]

    def _read(
        self, plan: Sequence[ScoredSequence], rows: Sequence[Row], whose: Sequence[int]
    ) -> Iterator[tuple[torch.Tensor, list[int]]]:
        """Logits of every read of some passages, chunk by chunk until all are done."""
        alone = list(range(len(plan)))
        if not self.encoder_decoder:
            alone = []
            for shared, own in groups(plan, whose):
                prefix = Prefix(self, plan[own[0]].ids[:shared]) if shared else None
                if prefix is None or not prefix.usable:
                    alone += own
                    continue
                for chunk in cut_after(plan, own, shared):
                    self.owners = [whose[k] for k in chunk]
                    with gathering(self.head, *_reads([plan[k] for k in chunk], shared)):
                        logits = prefix.call([plan[k].ids[shared:] for k in chunk]).logits[0]
                    yield logits.float(), chunk
        vocabulary = self.model.config.get_text_config().vocab_size
        lengths = [len(plan[k].ids) for k in alone]
        positions = [len(plan[k].positions) for k in alone]
        for part in batches_by_length(lengths, positions, TOKEN_BUDGET, LOGIT_BUDGET // vocabulary):
            chunk = [alone[i] for i in part]
            self.owners = [whose[k] for k in chunk]
            if self.encoder_decoder:
                logits = self.target_logits([rows[plan[k].asks[0][0]] for k in chunk])
            else:
                with gathering(self.head, *_reads([plan[k] for k in chunk])):
                    logits = self.call(self.pad([plan[k].ids for k in chunk])).logits[0]
            yield logits.float(), chunk

    def logprobs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, ...]]:
        """Log-probability (nats) of each token of each answer."""
        return [scores.logprobs for scores in self.score(pairs)]

    def argmax(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[int, ...]]:
        """The most probable token at each position of each answer, under teacher forcing."""
        return [scores.argmax for scores in self.score(pairs)]

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 20,
        owners: Sequence[int] | None = None,
        **options: Any,
    ) -> list[str]:
        """Continuations (no prompt) by the model's own ``generate``; greedy unless asked.

        Equal prompts are continued once (unless sampled); the batches are left-padded. ``owners``
        as for :meth:`score`.
        """
        wanted = list(zip(prompts, owners or [0] * len(prompts), strict=True))
        sampled = bool(options.get("do_sample"))
        asked = wanted if sampled else list(dict.fromkeys(wanted))
        settings = {"do_sample": False, "max_new_tokens": max_new_tokens, **options}
        if routers_of(self.model):
            told = answer_via_routers(
                self,
                [prompt for prompt, _ in asked],
                lambda own: self._generate([asked[i] for i in own], settings),
                lambda who, _, prompts: who._generate([(p, 0) for p in prompts], settings),
            )
        else:
            told = self._generate(asked, settings)
        if sampled:
            return told
        by_question = dict(zip(asked, told, strict=True))
        return [by_question[question] for question in wanted]

    def _generate(self, asked: Sequence[tuple[str, int]], settings: dict[str, Any]) -> list[str]:
        """:meth:`generate` of this model itself, for prompts with their owners."""
        ids = [self.text.row(prompt).ids for prompt, _ in asked]
        lengths = [len(row) + settings["max_new_tokens"] for row in ids]
        told = [""] * len(asked)
        # The class's own, whatever stands for it on a model that is asked through routers.
        generate = type(self.model).generate
        with self.at_rest(), torch.inference_mode():
            for chunk in batches_by_length(lengths, [0] * len(ids), GENERATION_BUDGET, 1):
                batch = self.pad([ids[i] for i in chunk], left=True)
                self.owners = [asked[i][1] for i in chunk]
                out = generate(
                    self.model,
                    input_ids=batch.ids,
                    attention_mask=batch.mask,
                    pad_token_id=self.text.pad_id,
                    **settings,
                )
                start = 0 if self.encoder_decoder else batch.ids.shape[1]
                for i, made in zip(chunk, out, strict=True):
                    told[i] = self.tokenizer.decode(made[start:], skip_special_tokens=True)
        return told


def _path(model: nn.Module, module: nn.Module) -> str:
    """Of a module's weight."""
    return next(f"{name}.weight" for name, own in model.named_modules() if own is module)


def _reads(plan: Sequence[ScoredSequence], shared: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and position of every read, where ``shared`` tokens come before."""
    rows = [k for k, p in enumerate(plan) for _ in p.positions]
    return torch.tensor(rows), torch.tensor([read - shared for p in plan for read in p.positions])


def _picked(
    logits: torch.Tensor, plan: Sequence[ScoredSequence], rows: Sequence[Row]
) -> Iterator[tuple[int, TokenScores]]:
    """The scores that a chunk's logits hold, with the number of their row."""
    norm, best = logits.logsumexp(1), logits.argmax(1).tolist()
    at: list[int] = []
    start = 0
    for p in plan:
        at += [start + k for _, own in p.asks for k in own]
        start += len(p.positions)
    asked = [i for p in plan for i, _ in p.asks]
    targets = [token for i in asked for token in rows[i].target]
    place = torch.tensor(at, device=logits.device)
    picked = logits[place, torch.tensor(targets, device=logits.device)] - norm[place]
    values, done = picked.tolist(), 0
    for i in asked:
        end = done + len(rows[i].target)
        argmax = tuple(best[k] for k in at[done:end])
        yield i, TokenScores(rows[i].target, tuple(values[done:end]), argmax)
        done = end


def chunks(rows: Sequence[Row], tokens: int, positions: int) -> Iterator[list[int]]:
    """:func:`batches_by_length` for rows, each read at its target's tokens."""
    return batches_by_length(
        [len(row.ids) for row in rows], [len(row.target) for row in rows], tokens, positions
    )
