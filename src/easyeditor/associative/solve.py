r"""The one closed form behind ROME, EMMET and MEMIT.

.. math:: \Delta = R\,(E + K^\top C^{-1} K)^{-1} K^\top C^{-1}

``K`` ``(d_in, n)`` are the keys, ``R`` ``(d_out, n)`` what each must additionally produce, ``C``
the second moment of the layer's keys and ``E`` a diagonal of slacks: 0 makes a key exact, a larger
one lets it give way (ROME: 0, arXiv 2202.05262 eq. 2; MEMIT: its λ, arXiv 2210.07229 eq. 14
divided by λ). Only an ``n × n`` system is solved; ``C`` comes factored once.
"""

from __future__ import annotations

import torch

BLOCK = 2048
"""Rows and columns that are turned into float64 at once."""


def home(device: torch.device) -> torch.device:
    """Where float64 matrices of ``device`` live: on the CPU if it has no such numbers."""
    return torch.device("cpu") if device.type == "mps" else device


def double(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` in float64, on the CPU where its device has no such numbers (Apple GPUs)."""
    return tensor.to(home(tensor.device)).double()


class Factor:
    """Cholesky factor of ``C + ridge·I``, ready to apply ``C⁻¹``.

    Found and applied in float64, kept in float32: that changes ``C`` by its own rounding, and
    whatever ``C`` is, exact keys stay exact. ``Factor.identity()`` stands for ``C = I`` (no
    second-moment adjustment). The ridge is a thousandth of a percent of the mean diagonal, raised
    tenfold until the factorisation succeeds.
    """

    def __init__(self, lower: torch.Tensor | None) -> None:
        self._lower = lower

    @classmethod
    def identity(cls) -> Factor:
        """``C = I``."""
        return cls(None)

    @classmethod
    def of(cls, moment: torch.Tensor, *, overwrite: bool = False) -> Factor:
        """Factor a symmetric positive semi-definite ``(d_in, d_in)`` matrix.

        ``overwrite`` lets the factor take the memory of the matrix, whose numbers are then gone:
        of a model with 7 billion parameters it is 4 % of the weights.
        """
        ridge = 1e-5
        while True:
            c = moment.to(home(moment.device), torch.float64, copy=True)
            c.diagonal().add_(ridge * c.diagonal().mean())
            lower, info = c.mT, torch.empty((), dtype=torch.int32, device=c.device)
            torch.linalg.cholesky_ex(lower, out=(lower, info))  # in place: these are large
            if int(info) == 0 or ridge > 1:
                kept = moment.mT if overwrite and moment.dtype == torch.float32 else None
                return cls(lower.float() if kept is None else kept.copy_(lower))
            ridge *= 10

    @property
    def upper(self) -> torch.Tensor:
        """``Lᵀ``, as it lies in memory (L is found in place in the transposed ``C``)."""
        assert self._lower is not None, "C = I has no factor"
        return self._lower.mT

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return 0 if self._lower is None else self._lower.untyped_storage().nbytes()

    def solve(self, keys: torch.Tensor) -> torch.Tensor:
        """``C⁻¹ K`` for ``K`` ``(d_in, n)``, float64."""
        k = double(keys)
        if self._lower is None:
            return k
        # By blocks, as L in float64 is as large as a tenth of a model.
        x = k.to(home(self._lower.device), copy=True)
        starts = range(0, len(x), BLOCK)
        for own, done in ((slice(i, i + BLOCK), slice(0, i)) for i in starts):
            x[own] -= double(self._lower[own, done]) @ x[done]
            x[own] = torch.linalg.solve_triangular(
                double(self._lower[own, own]), x[own], upper=False
            )
        for own, done in ((slice(i, i + BLOCK), slice(i + BLOCK, None)) for i in reversed(starts)):
            x[own] -= double(self._lower[done, own]).mT @ x[done]
            x[own] = torch.linalg.solve_triangular(
                double(self._lower[own, own]).mT, x[own], upper=True
            )
        return x.to(k.device)


def closed_form(
    keys: torch.Tensor, factor: Factor, regularization: float | torch.Tensor
) -> torch.Tensor:
    """``U = C⁻¹ K (E + Kᵀ C⁻¹ K)⁻¹`` of shape ``(d_in, n)``, so that ``Δᵀ = U Rᵀ``.

    Args:
        keys: ``(d_in, n)``.
        factor: of the second moment.
        regularization: one number for all keys or ``(n,)``, in units of ``Kᵀ C⁻¹ K``.
    """
    k = double(keys)
    solved = factor.solve(k)
    small = k.T @ solved
    diagonal = torch.as_tensor(regularization, dtype=small.dtype, device=small.device)
    small.diagonal().add_(diagonal)
    if bool((diagonal > 0).all()):
        return torch.linalg.solve(small, solved.T).T
    # Two exact keys may be parallel (one prompt twice); the minimum-norm answer is then right.
    return solved @ torch.linalg.pinv(small, hermitian=True, rtol=1e-12)


def key_energy(keys: torch.Tensor, factor: Factor) -> torch.Tensor:
    """``kᵀ C⁻¹ k`` of each row of ``keys`` ``(n, d_in)``: the unit of slack; float64."""
    return (double(keys) * factor.solve(keys.T).T).sum(1)
