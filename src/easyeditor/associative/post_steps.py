"""What some papers do to a change of a weight after it is solved, so that much else stays.

Matrices are written ``(d_in, d_out)``. RECT and PRUNE make a low-rank change dense; SPHERE keeps it
low-rank.
"""

from __future__ import annotations

from typing import Literal

import torch

from easyeditor.associative.solve import double
from easyeditor.lm.model import LM
from easyeditor.patches.stack import without_patches
from easyeditor.patches.weight import Dense, Part, smallest_part

PostStep = Literal["none", "rect", "prune", "sphere"]


def largest_relative(change: torch.Tensor, weight: torch.Tensor, share: float) -> torch.Tensor:
    """RECT (arXiv 2401.04700): ``change`` where ``|Δ / W|`` is among the largest; zero elsewhere.

    Args:
        change: ``Δ``.
        weight: ``W``, the weight that is being changed, of the same shape.
        share: of the entries that are left, 0.4 in the paper.
    """
    ratio = change.abs() / weight.to(change).abs().clamp(min=torch.finfo(torch.float32).tiny)
    count = max(1, round(share * ratio.numel()))
    kept_from = ratio.flatten().kthvalue(ratio.numel() - count + 1).values
    return torch.where(ratio >= kept_from, change, torch.zeros_like(change))


def bounded_singular_values(change: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """PRUNE (arXiv 2405.16821): ``σ`` over ``σ_max(W₀)`` becomes ``σ_max + ln(σ / σ_max)``.

    Args:
        change: the whole change since the unedited weight, not that of one edit.
        original: ``W₀``.
    """
    bound = torch.linalg.matrix_norm(double(original), 2)
    u, s, vh = torch.linalg.svd(double(change), full_matrices=False)
    small = torch.where(s > bound, bound + (s / bound).clamp(min=1).log(), s)
    return (u * small @ vh).to(change)


def off_principal_directions(
    u: torch.Tensor, weight: torch.Tensor, share: float, strength: float
) -> torch.Tensor:
    """SPHERE (arXiv 2510.01172): ``U − α Q Qᵀ U``, with ``Q`` the principal input directions.

    They are of the weight whose output neurons are scaled to length one, so that they say where
    neurons point and not how long they are.

    Args:
        u: ``(d_in, n)``, the left factor of a change.
        weight: ``(d_in, d_out)`` as it is now.
        share: of the trace that ``Q`` holds, 0.5 in the paper.
        strength: α, 0.5 in the paper.
    """
    neurons = torch.nn.functional.normalize(double(weight), dim=0)
    # The smaller Gram matrix has the same eigenvalues: d_out is a third of d_in.
    values, vectors = torch.linalg.eigh(neurons.T @ neurons)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    count = int((values.cumsum(0) < share * values.sum()).sum()) + 1
    q = neurons @ (vectors[:, :count] / values[:count].sqrt())
    return (double(u) - strength * (q @ (q.T @ double(u)))).to(u)


def part_after(step: PostStep, lm: LM, layer: int, u: torch.Tensor, residual: torch.Tensor) -> Part:
    """The change ``u residual`` of a layer's down-projection, after the named step.

    Args:
        step: which; PRUNE bounds the change by all edits that the model carries.
        lm: the model.
        layer: whose down-projection is changed.
        u: columns of the closed form, ``(d_in, n)``.
        residual: ``(n, d_out)``.
    """
    if step == "none":
        return smallest_part(u, residual)
    weight = double(lm.down_map(layer).weight)
    if step == "sphere":
        return smallest_part(off_principal_directions(u, weight, 0.5, 0.5), residual)
    change = u @ double(residual).to(u)
    if step == "rect":
        return Dense(largest_relative(change, weight, 0.4).float())
    with without_patches(lm.model):
        original = double(lm.down_map(layer).weight).clone()
    earlier = weight - original
    return Dense((bounded_singular_values(earlier + change, original) - earlier).float())
