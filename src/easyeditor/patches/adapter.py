"""``Adapter``: a small module that changes what a module of the model gives.

An adapter decides from the context of the pass (:class:`~easyeditor.lm.forward.ForwardContext`),
never from the batch: what a row gets must not depend on the other rows, on which side is padded, or
on whether tokens come one by one from a cache. Where it does not concern a row, it returns that
row's output as it is, so that the row keeps the unedited model's bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
from torch import nn

from easyeditor.lm.forward.context import ForwardContext

A = TypeVar("A", bound="Adapter")

Positions = Literal["all", "prompt", "answer", "after_prompt"]
POSITIONS: tuple[str, ...] = get_args(Positions)
"""``answer`` begins at the last prompt token, whose output predicts the answer's first one;
``after_prompt`` one token later, as the first answer token is read."""


class Adapter(nn.Module):
    """Changes the output of the module it is put on; the model's own tensors stay as they are.

    A subclass takes its tensors and its settings as keyword arguments, registers every tensor as a
    buffer or parameter of the argument's name, and is listed in
    :data:`~easyeditor.patches.kinds.ADAPTERS`.
    """

    name: ClassVar[str]
    joins: ClassVar[bool] = False
    """Whether :meth:`merge` gives one of this class, which is stored in place of the several."""

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

    @property
    def input_width(self) -> int | None:
        """The same for the module's input."""
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
    """Adds ``strength * vector`` to the output at some tokens of some rows: a steering vector.

    The condition is read once per row, from the unsteered output at the last prompt token, and
    holds for everything that is written after it. With strength 0 every output keeps its bits.

    Args:
        vector: ``(d_out,)``.
        positions: the tokens it is added at, see :data:`POSITIONS`.
        strength: what the vector is multiplied by.
        condition: ``(d_out,)``; only rows whose output ``y`` at the last prompt token has
            ``y · condition > threshold`` are steered. None: all rows.
        threshold: of the condition.
    """

    name = "AddVector"

    def __init__(
        self,
        vector: torch.Tensor,
        positions: Positions = "all",
        strength: float = 1.0,
        condition: torch.Tensor | None = None,
        threshold: float = 0.0,
    ) -> None:
        super().__init__()
        for tensor in (vector, condition):
            if tensor is not None and not (tensor.dim() == 1 and tensor.is_floating_point()):
                raise ValueError(f"a vector of shape {tuple(tensor.shape)} and {tensor.dtype}")
        if condition is not None and condition.shape != vector.shape:
            raise ValueError(f"a condition of {len(condition)} numbers for {len(vector)}")
        if positions not in POSITIONS:
            raise ValueError(f"positions {positions!r}, which are one of {', '.join(POSITIONS)}")
        if not all(_is_finite(number) for number in (strength, threshold)):
            raise ValueError(f"strength {strength!r} and threshold {threshold!r}")
        self.register_buffer("vector", vector.detach().clone())
        if condition is not None:
            self.register_buffer("condition", condition.detach().clone())
        self.positions: Positions = positions
        self.strength, self.threshold = float(strength), float(threshold)

    @property
    def conditional(self) -> bool:
        """Whether only some rows are steered."""
        return "condition" in self._buffers

    def settings(self) -> dict[str, Any]:
        """See :class:`Adapter`."""
        settings: dict[str, Any] = {"positions": self.positions, "strength": self.strength}
        return {**settings, "threshold": self.threshold} if self.conditional else settings

    @property
    def output_width(self) -> int:
        """See :class:`Adapter`."""
        return len(self.get_buffer("vector"))

    @classmethod
    def build(cls, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> AddVector:
        """See :class:`Adapter`; files of former versions hold ``answer_only``."""
        settings = dict(settings)
        if "answer_only" in settings:
            settings["positions"] = "answer" if settings.pop("answer_only") is True else "all"
        return cls(**{**tensors, **settings})

    @classmethod
    def merge(cls, adapters: Sequence[AddVector]) -> Adapter:
        """See :class:`Adapter`; all conditions read the output before any vector is added."""
        return adapters[0] if len(adapters) == 1 else AddVectors(adapters)

    def forward(self, x: torch.Tensor, y: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """See :class:`Adapter`."""
        return self.added(y, y, context)

    def added(
        self, y: torch.Tensor, unsteered: torch.Tensor, context: ForwardContext
    ) -> torch.Tensor:
        """``y`` with the vector, on the condition that ``unsteered`` says.

        The sum is made in float32 or better and rounded once: 16 bits would round the vector, too.
        """
        if not self.strength:
            return y
        where = self._tokens(context).to(y.device)
        if self.conditional:
            where = where & self._rows(unsteered, context).to(y.device)[:, None]
        wide = torch.promote_types(y.dtype, torch.float32)
        vector = self.strength * self.get_buffer("vector").to(y.device, wide)
        return torch.where(where[..., None], (y.to(wide) + vector).to(y.dtype), y)

    def _tokens(self, context: ForwardContext) -> torch.Tensor:
        """``(rows, length)``, True where the vector is added."""
        if self.positions == "prompt":
            return context.prompt_tokens()
        if self.positions == "answer":
            return context.answering()
        read = context.mask[:, context.start :].bool()
        return read & ~context.prompt_tokens() if self.positions == "after_prompt" else read

    def _rows(self, unsteered: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """``(rows,)``, True where the condition holds."""

        def holds() -> torch.Tensor:
            last = context.at_prompt_end(unsteered)
            condition = self.get_buffer("condition").to(last.device, torch.float32)
            return last.float() @ condition > self.threshold

        return context.decide(self, holds)


class AddVectors(InOrder):
    """Several steering vectors at one place; never saved as one."""

    name = "AddVectors"

    def forward(self, x: torch.Tensor, y: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """See :class:`Adapter`."""
        result = y
        for adapter in self.adapters:
            assert isinstance(adapter, AddVector)
            result = adapter.added(result, y, context)
        return result


def _is_finite(number: object) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and isfinite(number)
