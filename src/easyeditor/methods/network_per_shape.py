"""Networks on gradients: one per shape of weight, shared by all weights of that shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar, cast

import torch
from torch import nn

T = TypeVar("T", bound=nn.Module)


class NetworkPerShape(nn.Module, Generic[T]):
    """One transformation per shape, and a learnt rate per weight.

    Attributes:
        paths: of the weights, in order.
        transforms: one per shape; a weight's ``mode`` is its number among those of its shape.
        rates: one per weight.

    Args:
        shapes: ``{parameter path: (d_in, d_out)}`` of the weights that are edited, in order.
        transform: makes the transformation of a shape that so many weights share.
        edit_lr: the rates' initial value.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        transform: Callable[[tuple[int, int], int], T],
        edit_lr: float,
    ) -> None:
        super().__init__()
        self.paths = list(shapes)
        alike: dict[tuple[int, int], list[str]] = {}
        for path, shape in shapes.items():
            alike.setdefault(shape, []).append(path)
        self.transforms = nn.ModuleList(
            transform(shape, len(paths)) for shape, paths in alike.items()
        )
        self._place = {
            path: (i, mode)
            for i, paths in enumerate(alike.values())
            for mode, path in enumerate(paths)
        }
        self.rates = nn.Parameter(torch.full((len(self.paths),), edit_lr))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.rates.device

    def transform_of(self, path: str) -> tuple[T, int]:
        """The transformation of one weight, and the weight's mode in it."""
        index, mode = self._place[path]
        return cast(T, self.transforms[index]), mode

    def rate_of(self, path: str) -> torch.Tensor:
        """The rate of one weight, a scalar."""
        return self.rates[self.paths.index(path)]
