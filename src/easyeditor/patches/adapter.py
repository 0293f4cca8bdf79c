"""``Adapter``: a small module that changes what a module of the model gives.

An adapter decides from the context of the pass (:class:`~easyeditor.lm.forward.ForwardContext`),
never from the batch: what a row gets must not depend on the other rows, on which side is padded, or
on whether tokens come one by one from a cache. Where it does not concern a row, it returns that
row's output as it is, so that the row keeps the unedited model's bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from easyeditor.lm.forward.context import ForwardContext

A = TypeVar("A", bound="Adapter")


class Adapter(nn.Module):
    """Changes the output of the module it is put on; the model's own tensors stay as they are.

    A subclass takes its tensors and its settings as keyword arguments, registers every tensor as a
    buffer or parameter of the argument's name, and is listed in
    :data:`~easyeditor.patches.kinds.ADAPTERS`.
    """

    name: ClassVar[str]

    def forward(self, x: torch.Tensor, y: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """The module's new output.

        Args:
            x: the module's input, ``(rows, length, d_in)``.
            y: its output, ``(rows, length, d_out)``; not to be changed in place.
            context: of the pass; ``x[i, c - context.start]`` belongs to column ``c`` of its mask.
        """
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments that are no tensors, as JSON."""
        return {}

    @property
    def output_width(self) -> int | None:
        """The width of the output it is made for, checked where it is put on; None: any."""
        return None

    @classmethod
    def build(cls: type[A], tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> A:
        """The adapter that ``state_dict()`` and :meth:`settings` describe.

        Raises:
            TypeError, ValueError: they describe none.
        """
        return cls(**tensors, **settings)

    @classmethod
    def merge(cls: type[A], adapters: Sequence[A]) -> Adapter:
        """One adapter that does what several of this class do at one place, oldest first.

        By default one after the other; a codebook joins its entries, so that the nearest of all
        counts.
        """
        return adapters[0] if len(adapters) == 1 else InOrder(adapters)


class InOrder(Adapter):
    """Adapters that act one after the other; never saved as one."""

    name = "InOrder"

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(adapters)

    def forward(self, x: torch.Tensor, y: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """See :class:`Adapter`."""
        for adapter in self.adapters:
            y = adapter(x, y, context)
        return y


class AddVector(Adapter):
    """Adds one vector to the output at every token that is read: a steering vector.

    Args:
        vector: ``(d_out,)``.
        answer_only: only from the last prompt token on, where the answer is predicted.
    """

    name = "AddVector"

    def __init__(self, vector: torch.Tensor, answer_only: bool = False) -> None:
        super().__init__()
        numbers = vector.dim() == 1 and vector.is_floating_point()
        if not numbers or not isinstance(answer_only, bool):
            raise ValueError(
                f"a vector of shape {tuple(vector.shape)} and {vector.dtype}, {answer_only!r}"
            )
        self.register_buffer("vector", vector.detach().clone())
        self.answer_only = answer_only

    def settings(self) -> dict[str, Any]:
        """See :class:`Adapter`."""
        return {"answer_only": self.answer_only}

    @property
    def output_width(self) -> int:
        """See :class:`Adapter`."""
        return len(self.get_buffer("vector"))

    def forward(self, x: torch.Tensor, y: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """See :class:`Adapter`."""
        vector = self.get_buffer("vector").to(y.device, y.dtype)
        read = context.mask[:, context.start :].bool()
        where = context.answering() if self.answer_only else read
        return torch.where(where[..., None].to(y.device), y + vector, y)
