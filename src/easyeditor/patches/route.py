"""``RoutePatch``: an edit that changes no weight, but who is asked and what.

A model that carries one answers through it wherever it is given text: ``LM.score``, ``LM.generate``
and its own ``model.generate``. A bare forward pass has no prompt and stays the unedited model's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from easyeditor.edits import Prompt
from easyeditor.errors import PatchStateError
from easyeditor.lm.forward.context import generation_context, restore_generate
from easyeditor.lm.model import LM
from easyeditor.lm.originals import Originals
from easyeditor.lm.routing import Rerouted, rerouted, set_routers, tokenizer_of
from easyeditor.patches.patch import Patch, merge


class RoutePatch(Patch):
    """Sends prompts elsewhere: with more text around them, or to another model."""

    __slots__ = ()

    @abstractmethod
    def reroute(self, lm: LM, prompts: Sequence[Prompt | str]) -> list[Rerouted | None]:
        """What each prompt becomes, or None where the edit does not concern it."""

    @classmethod
    def install(cls, model: nn.Module, patches: Sequence[RoutePatch], originals: Originals) -> None:
        """See :class:`~easyeditor.patches.patch.Patch`; the latest class of patches is asked first.

        Patches of one class act as one: several facts are one context, one memory.
        """
        classes: dict[type, list[RoutePatch]] = {}
        for patch in patches:
            classes.setdefault(type(patch), []).append(patch)
        routers = [merge(alike) for alike in reversed(classes.values())]
        set_routers(model, routers)
        if routers:
            vars(model)["generate"] = _Generate(model)
        elif isinstance(vars(model).get("generate"), _Generate):
            del vars(model)["generate"]
            restore_generate(model)

    def rows(self) -> list[dict[str, Any]]:
        """No weight is changed."""
        return []


class _Generate:
    """Stands for ``model.generate`` while the model is routed: rows are read back as prompts."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **options: Any
    ) -> torch.Tensor:
        """Each row's tokens with the continuation of its turn (an encoder-decoder's: alone).

        The trap: a prompt is decoded and tokenised again; special tokens in it are dropped.
        """
        tokenizer = tokenizer_of(self._model)
        if tokenizer is None:
            raise PatchStateError(
                "This model carries an edit that works on text, and no tokenizer is known for it: "
                "make an LM(model, tokenizer) once, then generate."
            )
        lm = LM(self._model, tokenizer)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = [row[keep.bool()] for row, keep in zip(input_ids, mask, strict=True)]
        prompts = [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
        reroute = rerouted(lm, prompts)
        result = []
        for row, full, prompt in zip(rows, input_ids, prompts, strict=True):
            turn = reroute.get(prompt)
            who = (turn and turn.lm) or lm
            ids = row if turn is None else torch.tensor(who.text.row(turn.prompt).ids)
            ids = ids.to(who.device)[None]
            alone = torch.ones_like(ids)
            with generation_context(who.model, alone):
                out = type(who.model).generate(
                    who.model, input_ids=ids, attention_mask=alone, **options
                )[0]
            new = out if who.encoder_decoder else out[ids.shape[1] :]
            new = new.to(full.device)
            result.append(new if lm.encoder_decoder else torch.cat([full, new]))
        return nn.utils.rnn.pad_sequence(result, batch_first=True, padding_value=lm.text.pad_id)
