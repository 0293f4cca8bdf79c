"""``RoutePatch``: an edit that changes no weight, but who is asked and what.

A model that carries one answers through it wherever it is given text: ``LM.score``, ``LM.generate``
and its own ``model.generate``. A bare forward pass has no prompt and stays the unedited model's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from easyeditor.edits import Prompt
from easyeditor.errors import PatchStateError
from easyeditor.lm.model import LM
from easyeditor.lm.routing import Rerouted, rerouted, set_routers, tokenizer_of
from easyeditor.patches.patch import Patch, merged


class RoutePatch(Patch):
    """Sends prompts elsewhere: with more text around them, or to another model."""

    __slots__ = ()
    kind: ClassVar[str]
    """Names the kind of patch in its file."""

    @property
    def entries(self) -> Mapping[str, Any]:
        """No matrix is changed."""
        return {}

    @property
    def transposed(self) -> bool:
        """Of no matrix."""
        return True

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """No matrix is changed."""
        return {}

    def add_to(self, path: str, weight: torch.Tensor) -> None:
        """Nothing is added to any matrix."""

    @abstractmethod
    def reroute(self, lm: LM, prompts: Sequence[Prompt | str]) -> list[Rerouted | None]:
        """What each prompt becomes, or None where the edit does not concern it."""

    @abstractmethod
    def stored(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What its file holds beside the description: tensors, and plain data."""

    @classmethod
    @abstractmethod
    def restored(
        cls, info: Any, tensors: Mapping[str, torch.Tensor], data: Mapping[str, Any]
    ) -> RoutePatch:
        """The patch that :meth:`stored` wrote.

        Raises:
            KeyError, TypeError, ValueError: the file does not hold one.
        """


def route(model: nn.Module, patches: Sequence[Any]) -> None:
    """Let ``model`` answer through those of ``patches`` that are routes, the latest kind first.

    Patches of one kind act as one: several facts are one context, one memory.
    """
    kinds: dict[type, list[RoutePatch]] = {}
    for patch in patches:
        if isinstance(patch, RoutePatch):
            kinds.setdefault(type(patch), []).append(patch)
    set_routers(model, [merged(own) for own in reversed(kinds.values())])
    if kinds:
        model.__dict__["generate"] = _Generate(model)
    elif isinstance(model.__dict__.get("generate"), _Generate):
        del model.__dict__["generate"]


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
        made = []
        for row, full, prompt in zip(rows, input_ids, prompts, strict=True):
            turn = reroute.get(prompt)
            who = (turn and turn.lm) or lm
            ids = row if turn is None else torch.tensor(who.text.row(turn.prompt).ids)
            ids = ids.to(who.device)[None]
            out = type(who.model).generate(
                who.model, input_ids=ids, attention_mask=torch.ones_like(ids), **options
            )[0]
            new = out if who.encoder_decoder else out[ids.shape[1] :]
            new = new.to(full.device)
            made.append(new if lm.encoder_decoder else torch.cat([full, new]))
        return nn.utils.rnn.pad_sequence(made, batch_first=True, padding_value=lm.text.pad_id)
