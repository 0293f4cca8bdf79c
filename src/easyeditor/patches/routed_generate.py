"""``model.generate`` of a model whose edits act on the text of a prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.generation.utils import (
    GenerateDecoderOnlyOutput,
    GenerateEncoderDecoderOutput,
)

from easyeditor.errors import PatchStateError
from easyeditor.lm.forward.context import generation_context, prompt_mask
from easyeditor.lm.model import LM
from easyeditor.lm.routing import rerouted, tokenizer_of

NOT_TEXT = (
    "inputs_embeds",
    "past_key_values",
    "encoder_outputs",
    "decoder_input_ids",
    "negative_prompt_ids",
    "assistant_model",
)
"""Arguments that hold a prompt, or belong to one, in another form than its tokens."""
PER_STEP = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
"""Arguments that ask for tensors of the passes, which differ from row to row."""
PER_TOKEN = ("token_type_ids", "position_ids")
"""Arguments with one number per token of a prompt."""


class RoutedGenerate:
    """Stands for ``model.generate`` while the model is routed: rows are read back as prompts.

    Every row is continued by itself. Beams, several sequences per prompt, sampling, a streamer
    and ``return_dict_in_generate`` work as they do for one prompt at a time. The trap: a prompt is
    decoded and tokenised again; special tokens in it are dropped.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, inputs: torch.Tensor | None = None, **options: Any) -> Any:
        """Each row's tokens with the continuations of its turn (an encoder-decoder's: alone).

        Raises:
            PatchStateError: no tokenizer is known; the prompts are not given as tokens; something
                is asked for that a row which goes elsewhere does not have; the message says what.
        """
        tokenizer = tokenizer_of(self._model)
        if tokenizer is None:
            raise PatchStateError(
                "This model carries an edit that works on text, and no tokenizer is known for it: "
                "make an LM(model, tokenizer) once, then generate."
            )
        named = options.pop("input_ids", None)
        input_ids = named if inputs is None else inputs
        self._refuse(input_ids, options)
        lm = LM(self._model, tokenizer)
        mask = options.pop("attention_mask", None)
        mask = prompt_mask(self._model, input_ids) if mask is None else mask
        rows = [row[keep.bool()] for row, keep in zip(input_ids, mask, strict=True)]
        prompts = [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
        targets = rerouted(lm, prompts)
        if not lm.encoder_decoder:
            _count_new_tokens(options, input_ids.shape[1])
        result, as_dict = [], False
        for i, (row, full, prompt) in enumerate(zip(rows, input_ids, prompts, strict=True)):
            target = targets.get(prompt)
            who = (target and target.lm) or lm
            row_options = dict(options)
            for name in PER_TOKEN:
                value = row_options.pop(name, None)
                if value is not None and target is None:
                    row_options[name] = value[i : i + 1][:, mask[i].bool()]
            allowed = options.get("prefix_allowed_tokens_fn")
            if allowed is not None:
                row_options["prefix_allowed_tokens_fn"] = _of_row(allowed, i)
            if options.get("streamer") is not None:
                row_options["streamer"] = _Streamer(options["streamer"], full)
            ids = row if target is None else torch.tensor(who.text.row(target.prompt).ids)
            ids = ids.to(who.device)[None]
            alone = torch.ones_like(ids)
            with generation_context(who.model, alone):
                written = type(who.model).generate(
                    who.model, input_ids=ids, attention_mask=alone, **row_options
                )
            as_dict = as_dict or not isinstance(written, torch.Tensor)
            for sequence in getattr(written, "sequences", written):
                new = sequence if who.encoder_decoder else sequence[ids.shape[1] :]
                new = new.to(full.device)
                result.append(new if lm.encoder_decoder else torch.cat([full, new]))
        sequences = nn.utils.rnn.pad_sequence(
            result, batch_first=True, padding_value=lm.text.pad_id
        )
        if not as_dict:
            return sequences
        if lm.encoder_decoder:
            return GenerateEncoderDecoderOutput(sequences=sequences)
        return GenerateDecoderOnlyOutput(sequences=sequences)

    def _refuse(self, input_ids: torch.Tensor | None, options: dict[str, Any]) -> None:
        """Refuse what cannot be done for prompts that go elsewhere."""
        configured = options.get("generation_config") or self._model.generation_config
        per_step = [name for name in PER_STEP if options.get(name, getattr(configured, name, None))]
        other = [name for name in NOT_TEXT if options.get(name) is not None]
        why = None
        if other or input_ids is None or input_ids.dim() != 2 or input_ids.is_floating_point():
            why = f"{other[0] if other else 'no input_ids'} was given"
        elif per_step:
            why = f"{per_step[0]} was asked for"
        elif options.get("streamer") is not None and len(input_ids) > 1:
            why = f"a streamer was given with {len(input_ids)} prompts"
        if why is not None:
            raise PatchStateError(
                "This model carries an edit that answers some prompts by other text or by another "
                f"model, and {why}. Give the prompts as tokens (input_ids and attention_mask); "
                "ask for sequences alone; give a streamer with one prompt; or undo the edit first."
            )


def _count_new_tokens(options: dict[str, Any], length: int) -> None:
    """Limits that count the prompt as limits that do not: another text may be longer."""
    for limit in ("max", "min"):
        whole = options.pop(f"{limit}_length", None)
        if whole is not None:
            options.setdefault(f"{limit}_new_tokens", max(limit == "max", whole - length))


def _of_row(allowed: Callable[[int, torch.Tensor], Any], row: int) -> Callable[..., Any]:
    """The function of the batch's row, for a batch that holds that row alone."""
    return lambda _row, ids: allowed(row, ids)


class _Streamer:
    """Gives the user's streamer the user's prompt first, whatever was asked in its place."""

    def __init__(self, streamer: Any, prompt: torch.Tensor) -> None:
        self._streamer, self._prompt = streamer, prompt
        self._begun = False

    def put(self, value: torch.Tensor) -> None:
        """Pass tokens on."""
        self._streamer.put(value if self._begun else self._prompt.cpu())
        self._begun = True

    def end(self) -> None:
        """Pass the end on."""
        self._streamer.end()
