"""A change of routed experts' joint matrix ``(E · f, d_out)``, laid out as their fused tensor."""

from __future__ import annotations

from torch import nn

from easyeditor.lm.weights import weight_handle
from easyeditor.patches.parts import Dense, LowRank, Rows, WeightPart


def per_expert(model: nn.Module, path: str, part: WeightPart) -> WeightPart:
    """``part`` as it is, unless it changes a 3-D weight as one matrix: then its changed experts.

    The experts of the joint matrix (:mod:`easyeditor.lm.routed`) lie one below the other. Only
    those that the change is not zero for are kept, each whole: a product of two factors cannot be
    told from the tensor's shape once the experts are apart.
    """
    if len(part.shape) != 2 or not isinstance(part, LowRank | Dense):
        return part
    shape = weight_handle(model, path).shape
    if len(shape) != 3:
        return part
    owner, _, _ = path.rpartition(".")
    in_first = bool(getattr(model.get_submodule(owner), "is_transposed", False))
    rows = part.u if isinstance(part, LowRank) else part.delta
    index = rows.view(shape[0], -1).abs().amax(1).nonzero()[:, 0]
    chosen = rows.view(shape[0], -1, rows.shape[-1])[index]
    change = chosen @ part.v if isinstance(part, LowRank) else chosen
    values = change if in_first else change.mT
    return Rows(index.cpu(), values.float().contiguous().cpu(), shape[0])
