"""``LM``: the model being edited, exactly as it is, with its tokenizer and its family row."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from easyeditor.errors import HyperParamsError, MetaDeviceError, UnsupportedModelError
from easyeditor.lm.families import Projection, Stack, family_of
from easyeditor.lm.hooks import gathering
from easyeditor.lm.scoring import Passage, TokenScores, cut, passages
from easyeditor.lm.tokens import Batch, Row, Text, pad

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
        model: the caller's model, the same object.
        tokenizer: its fast tokenizer.
        family: the row that says where its parts are.
        text: the rules that turn prompts into tokens.
        owners: which of several changes each row of the batch being run asks about; read by
            whoever lets the model carry several at once.
        memo: what was computed once for this model (sampled contexts, checks); cleared by no one.

    Raises:
        MetaDeviceError: weights are not in memory.
        UnknownFamilyError: nobody described this architecture and it was not recognised.
        ModelLoadError: the tokenizer gives no offsets.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, *, chat_template: bool = False
    ) -> None:
        meta = [name for name, p in model.named_parameters() if p.is_meta]
        if meta:
            raise MetaDeviceError(
                f"{len(meta)} weights of {type(model).__name__} are on the meta device (first: "
                f"{meta[0]}), so there is nothing to edit. Load the checkpoint into memory: "
                "from_pretrained(..., device_map=None), or a map without 'disk'."
            )
        self.model = model
        self.tokenizer = tokenizer
        self.family = family_of(model)
        self.text = Text(
            tokenizer,
            encoder_decoder=self.family.encoder is not None,
            chat_template=chat_template,
        )
        self.memo: dict[Any, Any] = {}
        self.owners: list[int] = []
        self._accepts = frozenset(inspect.signature(model.forward).parameters)

    # -- how it is built ------------------------------------------------------------------

    @property
    def encoder_decoder(self) -> bool:
        """Whether prompts go to an encoder and targets to a decoder."""
        return self.family.encoder is not None

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        device = self.model.get_input_embeddings().weight.device
        assert isinstance(device, torch.device)
        return device

    @property
    def name(self) -> str:
        """What the model was loaded by, as far as its configuration knows."""
        return str(getattr(self.model.config, "_name_or_path", "") or type(self.model).__name__)

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder's blocks (a causal model's only ones)."""
        return self._blocks(self.family.decoder)

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def head(self) -> nn.Module:
        """The output embedding."""
        return self.model.get_submodule(self.family.head)

    def _blocks(self, stack: Stack) -> nn.ModuleList:
        blocks = self.model.get_submodule(stack.blocks)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def projection(self, layer: int) -> Projection:
        """The decoder's MLP down-projection at ``layer``."""
        return self._projection(self.family.decoder, layer)

    def projections(self, layer: int) -> list[Projection]:
        """The down-projections at ``layer`` of every column, an encoder's first."""
        stacks = [self.family.encoder, self.family.decoder]
        return [
            self._projection(stack, layer)
            for stack in stacks
            if stack is not None and layer < len(self._blocks(stack))
        ]

    def _projection(self, stack: Stack, layer: int) -> Projection:
        return Projection(self.model, f"{stack.blocks}.{layer}.{stack.down}", self.family.conv1d)

    def check_claims(self, claims: Mapping[str, str]) -> None:
        """Hold a classic file's module templates against the family row.

        Raises:
            HyperParamsError: they name other modules than this model's.
        """
        stack = self.family.decoder
        layer = f"{stack.blocks}.{{}}"
        attention = stack.attn_out.rpartition(".")[0]
        true = {
            "rewrite_module_tmp": {f"{layer}.{stack.down}"},
            "layer_module_tmp": {layer},
            "mlp_module_tmp": {f"{layer}.{stack.mlp}".rstrip(".")},
            "attn_module_tmp": {
                f"{layer}.{'.'.join(attention.split('.')[: i + 1])}"
                for i in range(attention.count(".") + 1)
            },
            "ln_f_module": {stack.final_norm},
            "lm_head_module": {self.family.head},
        }
        # Classic files name a tied head by the embedding, and FT's end in ".weight".
        embedding = self.model.get_input_embeddings()
        if getattr(self.head, "weight", None) is embedding.weight:
            true["lm_head_module"] |= {n for n, m in self.model.named_modules() if m is embedding}
        if self.encoder_decoder:  # either side may be named, and names that never existed are
            true = {
                "rewrite_module_tmp": {
                    f"{s.blocks}.{{}}.{s.down}"
                    for s in (self.family.decoder, self.family.encoder)
                    if s is not None
                }
            }
            claims = {key: claim for key, claim in claims.items() if key in true}
        wrong = [
            f"{key}={claim!r} (here: {' or '.join(sorted(true[key]))})"
            for key, claim in claims.items()
            if claim.removesuffix(".weight") not in true[key]
        ]
        if wrong:
            raise HyperParamsError(
                f"These module names do not fit {type(self.model).__name__}: {'; '.join(wrong)}. "
                "Leave them out: the family table knows them."
            )

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
        """Pad token sequences into a batch on the model's input device."""
        return pad(sequences, self.text.pad_id, self.device, left=left)

    def call(self, batch: Batch, **more: Any) -> Any:
        """One forward pass of the model's own code, with positions where it takes them."""
        arguments = {"input_ids": batch.ids, "attention_mask": batch.mask, "use_cache": False}
        if "position_ids" in self._accepts:
            arguments["position_ids"] = batch.positions
        return self.model(**{**arguments, **more})

    def target_logits(self, rows: Sequence[Row], **more: Any) -> torch.Tensor:
        """Logits at every target token of every row, ``(sum of target lengths, vocabulary)``.

        One forward pass; computed only where read; differentiable. The last target token is not
        fed.
        """
        lengths = [len(row.target) for row in rows]
        index = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(lengths))
        if self.encoder_decoder:
            labels = pad([row.target for row in rows], 0, self.device).ids
            decoder_ids = self.model._shift_right(labels)
            more = {**more, "decoder_input_ids": decoder_ids}
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

        Equal pairs are computed once, and a causal model runs a prompt once for all its answers.
        The model may be in training mode; it is read in evaluation mode. ``owners`` says for each
        pair which of several changes it asks about, where the model carries several at once.
        """
        asked = list(zip(pairs, owners or [0] * len(pairs), strict=True))
        unique = list(dict.fromkeys(asked))
        rows = [self.text.row(prompt, answer) for (prompt, answer), _ in unique]
        whose = [owner for _, owner in unique]
        if self.encoder_decoder:  # the decoder's input differs from answer to answer
            plan = [
                Passage(row.ids, whole := tuple(range(len(row.target))), ((i, whole),))
                for i, row in enumerate(rows)
            ]
        else:
            plan = passages(rows, whose)
        found: dict[int, TokenScores] = {}
        vocabulary = self.model.config.get_text_config().vocab_size
        lengths, reads = [len(p.ids) for p in plan], [len(p.reads) for p in plan]
        with self.at_rest(), torch.inference_mode():
            for chunk in cut(lengths, reads, TOKEN_BUDGET, LOGIT_BUDGET // vocabulary):
                self.owners = [whose[plan[k].asks[0][0]] for k in chunk]
                found.update(self._score([plan[k] for k in chunk], rows))
        by_question = {question: found[i] for i, question in enumerate(unique)}
        return [by_question[question] for question in asked]

    def _score(
        self, plan: Sequence[Passage], rows: Sequence[Row]
    ) -> Iterator[tuple[int, TokenScores]]:
        if self.encoder_decoder:
            logits = self.target_logits([rows[p.asks[0][0]] for p in plan]).float()
        else:
            index = torch.tensor([k for k, p in enumerate(plan) for _ in p.reads])
            positions = torch.tensor([read for p in plan for read in p.reads])
            with gathering(self.head, index, positions):
                logits = self.call(self.pad([p.ids for p in plan])).logits[0].float()
        norm, best = logits.logsumexp(1), logits.argmax(1).tolist()
        at: list[int] = []
        start = 0
        for p in plan:
            at += [start + k for _, own in p.asks for k in own]
            start += len(p.reads)
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
        ids = [self.text.row(prompt).ids for prompt, _ in asked]
        lengths = [len(row) + max_new_tokens for row in ids]
        told = [""] * len(asked)
        settings = {"do_sample": False, "max_new_tokens": max_new_tokens, **options}
        with self.at_rest(), torch.inference_mode():
            for chunk in cut(lengths, [0] * len(ids), GENERATION_BUDGET, 1):
                batch = self.pad([ids[i] for i in chunk], left=True)
                self.owners = [asked[i][1] for i in chunk]
                out = self.model.generate(
                    input_ids=batch.ids,
                    attention_mask=batch.mask,
                    pad_token_id=self.text.pad_id,
                    **settings,
                )
                start = 0 if self.encoder_decoder else batch.ids.shape[1]
                for i, made in zip(chunk, out, strict=True):
                    told[i] = self.tokenizer.decode(made[start:], skip_special_tokens=True)
        if sampled:
            return told
        by_question = dict(zip(asked, told, strict=True))
        return [by_question[question] for question in wanted]

    def require_causal(self, method: str) -> None:
        """Refuse an encoder-decoder.

        Raises:
            UnsupportedModelError: this model has an encoder.
        """
        if self.encoder_decoder:
            raise UnsupportedModelError(
                f"{method} edits decoder-only models for now; {type(self.model).__name__} has an "
                "encoder. Fine-tuning edits it."
            )


def chunks(rows: Sequence[Row], tokens: int, reads: int) -> Iterator[list[int]]:
    """:func:`cut` for rows, each read at its target's tokens."""
    return cut([len(row.ids) for row in rows], [len(row.target) for row in rows], tokens, reads)
