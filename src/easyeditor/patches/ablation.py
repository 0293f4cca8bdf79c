"""``Ablate``: an adapter that takes one direction out of a module's output."""

from __future__ import annotations

import torch

from easyeditor.lm.forward.context import ForwardContext
from easyeditor.patches.adapter import Adapter


class Ablate(Adapter):
    """``y − r (r · y)`` at every token: the output's part along ``r`` is removed.

    Args:
        direction: ``r``, ``(d_out,)``, of length one.
    """

    name = "Ablate"

    def __init__(self, direction: torch.Tensor) -> None:
        super().__init__()
        if direction.dim() != 1 or not direction.is_floating_point():
            raise ValueError(f"a direction of {tuple(direction.shape)} and {direction.dtype}")
        if abs(float(direction.float().norm()) - 1) > 1e-3:
            raise ValueError(f"a direction of length {float(direction.float().norm()):.4g}, not 1")
        self.register_buffer("direction", direction.detach().clone())

    @property
    def output_width(self) -> int:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""
        return len(self.get_buffer("direction"))

    def forward(self, x: torch.Tensor, y: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""
        wide = torch.promote_types(y.dtype, torch.float32)
        direction = self.get_buffer("direction").to(y.device, wide)
        outputs = y.to(wide)
        return (outputs - (outputs @ direction)[..., None] * direction).to(y.dtype)
