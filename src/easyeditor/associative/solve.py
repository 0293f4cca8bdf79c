r"""The one closed form behind ROME, EMMET and MEMIT.

.. math:: \Delta = R\,(E + K^\top C^{-1} K)^{-1} K^\top C^{-1}

``K`` ``(d_in, n)`` are the keys, ``R`` ``(d_out, n)`` what each must additionally produce, ``C``
the
second moment of the layer's keys and ``E`` a diagonal of slacks: 0 makes a key exact, a larger one
lets
it give way (ROME: 0, arXiv 2202.05262 eq. 2; MEMIT: its λ, arXiv 2210.07229 eq. 14 divided by λ).
Only an ``n × n`` system is solved; ``C`` comes factored once.
"""

from __future__ import annotations

import torch


def double(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` in float64, on the CPU where its device has no such numbers (Apple GPUs)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


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
    def of(cls, moment: torch.Tensor) -> Factor:
        """Factor a symmetric positive semi-definite ``(d_in, d_in)`` matrix."""
        on = "cpu" if moment.device.type == "mps" else moment.device
        ridge = 1e-5
        while True:
            c = moment.to(on, torch.float64, copy=True)
            c.diagonal().add_(ridge * c.diagonal().mean())
            lower, info = c.mT, torch.empty((), dtype=torch.int32, device=c.device)
            torch.linalg.cholesky_ex(lower, out=(lower, info))  # in place: these are large
            if int(info) == 0 or ridge > 1:
                return cls(lower.float())
            ridge *= 10

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return 0 if self._lower is None else self._lower.untyped_storage().nbytes()

    def solve(self, keys: torch.Tensor) -> torch.Tensor:
        """``C⁻¹ K`` for ``K`` ``(d_in, n)``, float64."""
        k = double(keys)
        if self._lower is None:
            return k
        lower = double(self._lower)
        half = torch.linalg.solve_triangular(lower, k.to(lower.device), upper=False)
        return torch.linalg.solve_triangular(lower.mT, half, upper=True).to(k.device)


def closed_form(keys: torch.Tensor, factor: Factor, slack: float | torch.Tensor) -> torch.Tensor:
    """``U = C⁻¹ K (E + Kᵀ C⁻¹ K)⁻¹`` of shape ``(d_in, n)``, so that ``Δᵀ = U Rᵀ``.

    Args:
        keys: ``(d_in, n)``.
        factor: of the second moment.
        slack: one number for all keys or ``(n,)``, in units of ``Kᵀ C⁻¹ K``.
    """
    k = double(keys)
    solved = factor.solve(k)
    small = k.T @ solved
    diagonal = torch.as_tensor(slack, dtype=small.dtype, device=small.device)
    small.diagonal().add_(diagonal)
    if bool((diagonal > 0).all()):
        return torch.linalg.solve(small, solved.T).T
    # Two exact keys may be parallel (one prompt twice); the minimum-norm answer is then right.
    return solved @ torch.linalg.pinv(small, hermitian=True, rtol=1e-12)
