"""Norms of a change, matrix by matrix: Frobenius, relative to the unedited weight, spectral."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from easyeditor.lm.model import LM
from easyeditor.lm.originals import unedited
from easyeditor.lm.weights import weight_handle
from easyeditor.patches.parts import LowRank, Part
from easyeditor.patches.patch import Patch
from easyeditor.patches.weight import WeightPatch

EXACT_WIDTH = 1024
"""Rows of a Gram matrix up to which all its eigenvalues are computed, in float64."""
MIN_NORM = 1e-30
"""Stands for the norm of a weight of zeros."""


@torch.no_grad()
def change_norms(lm: LM, patch: Patch) -> dict[str, dict[str, float]]:
    """``{matrix: {"norm": ‖ΔW‖, "relative": ‖ΔW‖/‖W‖, "spectral": largest singular value}}``.

    ``norm`` and ``relative`` are Frobenius norms, ``W`` is the unedited weight. A patch that
    changes no weight has none.
    """
    if not isinstance(patch, WeightPatch):
        return {}
    result = {}
    for path, parts in patch.entries.items():
        handle = weight_handle(lm.model, path)
        weight = handle.read(unedited(lm.model, path, handle))
        norm = patch.dense(path).norm().item()
        result[path] = {
            "norm": norm,
            "relative": norm / max(weight.detach().float().norm().item(), MIN_NORM),
            "spectral": spectral_norm(parts),
        }
    return result


def spectral_norm(parts: Sequence[Part]) -> float:
    """The largest singular value of the sum of ``parts``, as a matrix.

    With ``U V`` of low rank it is that of ``R_U R_Vᵀ``, the factors of ``U = Q_U R_U`` and
    ``Vᵀ = Q_V R_V``: exact, and the product is never formed. Otherwise it is the root of the Gram
    matrix's largest eigenvalue: exact up to :data:`EXACT_WIDTH` rows, then by LOBPCG from the row
    of greatest norm (relative error about 1e-5, no random numbers). A weight that is no matrix
    counts as one with its first dimension as rows.
    """
    low = [part for part in parts if isinstance(part, LowRank)]
    if len(low) == len(parts) and sum(part.rank for part in low) <= min(parts[0].shape):
        left = torch.linalg.qr(torch.cat([part.u for part in low], 1).double()).R
        right = torch.linalg.qr(torch.cat([part.v for part in low]).double().T).R
        return torch.linalg.matrix_norm(left @ right.T, 2).item()
    change = torch.stack([part.dense() for part in parts]).sum(0)
    return _largest_singular_value(change.reshape(len(change), -1))


def _largest_singular_value(matrix: torch.Tensor) -> float:
    scale = matrix.abs().max().item()
    if not scale:
        return 0.0
    matrix = matrix / scale  # squares of tiny numbers would vanish
    if len(matrix) > matrix.shape[1]:
        matrix = matrix.T
    if len(matrix) <= EXACT_WIDTH:
        largest = torch.linalg.eigvalsh(matrix.double() @ matrix.double().T)[-1]
    else:
        gram = matrix @ matrix.T
        start = gram[:, gram.diagonal().argmax()][:, None].clone()
        largest = torch.lobpcg(gram, k=1, X=start, largest=True)[0][0]
    return scale * largest.clamp(min=0).sqrt().item()
