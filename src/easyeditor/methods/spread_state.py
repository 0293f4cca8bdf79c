"""What the methods that spread a value over layers know of the unedited model and earlier edits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from easyeditor.associative.solve import double
from easyeditor.methods.value_search import ContextState

ANCHOR_EDITS = 50
"""How many edits the norm anchor is the mean of."""


@dataclass(frozen=True, slots=True)
class SpreadState(ContextState):
    """The contexts, and the mean length of the first edits' ``z`` (with ``anchor_norm``)."""

    anchored: int = 0
    anchor: float = 0.0

    def anchored_with(self, z: torch.Tensor) -> SpreadState:
        """The state that has seen the rows of ``z`` ``(edits, width)``, as far as they count."""
        norms = double(z[: max(ANCHOR_EDITS - self.anchored, 0)].norm(dim=1))
        count = self.anchored + len(norms)
        mean = (self.anchor * self.anchored + float(norms.sum())) / count
        return SpreadState(self.contexts, count, mean)
