"""A router at one layer and low-rank blocks above it: what MELO puts on a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from easyeditor.lm.forward.context import ForwardContext
from easyeditor.methods.grace import radii
from easyeditor.patches.adapter import Adapter, InOrder


def _decision(router: str) -> tuple[str, str]:
    """Under what the blocks find what the router at this module decided."""
    return "low-rank block", router


class BlockRouter(Adapter):
    """Decides which block each prompt gets; leaves the output as it is.

    Args:
        keys: ``(n, d_out)``, oldest first.
        blocks: ``(n,)``, the block's number of each key, not negative.
        initial_radii: ``(n,)``, before the keys' neighbours are looked at.
        router: the module's name, by which the blocks know it.
    """

    name = "BlockRouter"

    def __init__(
        self, keys: torch.Tensor, blocks: torch.Tensor, initial_radii: torch.Tensor, router: str
    ) -> None:
        super().__init__()
        if keys.dim() != 2 or not len(keys) == len(blocks) == len(initial_radii) > 0:
            raise ValueError(f"keys {tuple(keys.shape)}, {len(blocks)} blocks")
        if blocks.is_floating_point() or int(blocks.min()) < 0:
            raise ValueError("a block without a number")
        self.register_buffer("keys", keys.detach().float().clone())
        self.register_buffer("blocks", blocks.detach().clone())
        self.register_buffer("initial_radii", initial_radii.detach().float().clone())
        result = radii(self.get_buffer("keys"), blocks, self.get_buffer("initial_radii"))
        self.register_buffer("radii", result, persistent=False)
        self.router = router

    def settings(self) -> dict[str, Any]:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""
        return {"router": self.router}

    @property
    def output_width(self) -> int:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""
        return int(self.get_buffer("keys").shape[1])

    def forward(self, x: torch.Tensor, y: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""

        def nearest() -> torch.Tensor:
            keys, query = self.get_buffer("keys").to(y.device), context.at_prompt_end(y).float()
            distances = torch.cdist(query, keys, compute_mode="donot_use_mm_for_euclid_dist")
            reach = self.get_buffer("radii").to(y.device)
            least, entry = distances.masked_fill(reach < 0, torch.inf).min(1)
            return torch.where(
                least <= reach[entry], self.get_buffer("blocks").to(y.device)[entry], -1
            )

        context.decide(_decision(self.router), nearest)
        return y

    @classmethod
    def merge(cls, adapters: Sequence[BlockRouter]) -> Adapter:
        """One router with the keys of all, in their order."""
        if len(adapters) == 1:
            return adapters[0]
        keys, blocks, initial = (
            torch.cat([a.get_buffer(name).cpu() for a in adapters])
            for name in ("keys", "blocks", "initial_radii")
        )
        return cls(keys, blocks, initial, adapters[0].router)


class RoutedProduct(Adapter):
    """Adds ``x A B`` to the outputs of the rows that the router gave this block.

    Args:
        a: ``(d_in, r)``.
        b: ``(r, d_out)``.
        block: ``()``, its number.
        router: the name of the module at which the router stands.
    """

    name = "RoutedProduct"

    def __init__(self, a: torch.Tensor, b: torch.Tensor, block: torch.Tensor, router: str) -> None:
        super().__init__()
        if a.dim() != 2 or b.dim() != 2 or a.shape[1] != len(b) or block.numel() != 1:
            raise ValueError(f"factors {tuple(a.shape)} and {tuple(b.shape)}")
        self.register_buffer("a", a.detach().float().clone())
        self.register_buffer("b", b.detach().float().clone())
        self.register_buffer("block", block.detach().clone())
        self.router, self.number = router, int(block)

    def settings(self) -> dict[str, Any]:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""
        return {"router": self.router}

    @property
    def output_width(self) -> int:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""
        return int(self.get_buffer("b").shape[1])

    def forward(self, x: torch.Tensor, y: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""
        decided = context.decided(_decision(self.router))
        if decided is None:
            return y
        rows = (decided == self.number).nonzero()[:, 0]
        if not len(rows):
            return y
        a, b = (self.get_buffer(name).to(x.device) for name in ("a", "b"))
        change = ((x[rows.to(x.device)].float() @ a) @ b).to(y)
        rows = rows.to(y.device)
        return y.index_put((rows,), y[rows] + change)

    @classmethod
    def merge(cls, adapters: Sequence[RoutedProduct]) -> Adapter:
        """All of them, of which a row meets one at most."""
        latest = {adapter.number: adapter for adapter in adapters}  # of an edit made twice, one
        return InOrder(list(latest.values())) if len(latest) > 1 else adapters[-1]
