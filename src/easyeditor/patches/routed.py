"""``RoutedAdapter``: an adapter of a linear layer that changes only the rows it has routed.

Which rows those are is decided once per row, from its prompt alone, and holds through cached
decoding: scoring an answer and writing it step by step meet the same decision. Rows that are not
routed get the layer's own output, to the bit.
"""

from __future__ import annotations

import torch

from easyeditor.lm.forward.context import ForwardContext
from easyeditor.patches.adapter import Adapter


class RoutedAdapter(Adapter):
    """Base of codebooks and side memories; a subclass says how it routes and what it computes."""

    def route(self, x: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """Which entry answers each row, ``(rows,)``; −1 for none.

        Only positions of the prompt may be read: ``context.at_prompt_end(x)`` or those of
        ``context.prompt_tokens()``. A row's result must not depend on the other rows.
        """
        raise NotImplementedError

    def places(self, context: ForwardContext) -> torch.Tensor:
        """Where a routed row's output is replaced, ``(rows, length)``; every token by default."""
        return context.mask[:, context.start :].bool()

    def expert(self, x: torch.Tensor, y: torch.Tensor, entry: torch.Tensor) -> torch.Tensor:
        """The new outputs ``(n, length, d_out)`` of ``n`` routed rows.

        Args:
            x: the layer's inputs, ``(n, length, d_in)``.
            y: its outputs, ``(n, length, d_out)``.
            entry: what :meth:`route` said of them, ``(n,)``.
        """
        raise NotImplementedError

    def forward(self, x: torch.Tensor, y: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""
        entry = context.decide(self, lambda: self.route(x, context)).to(y.device)
        rows = (entry >= 0).nonzero()[:, 0]
        if not len(rows):
            return y
        places = self.places(context).to(y.device)[rows]
        new = self.expert(x[rows.to(x.device)], y[rows], entry[rows]).to(y)
        return y.index_put((rows,), torch.where(places[..., None], new, y[rows]))
