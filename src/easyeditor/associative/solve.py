r"""The one closed form behind ROME, EMMET and MEMIT.

.. math:: \Delta = R\,(E + K^\top M K)^{-1} K^\top M

``K`` ``(d_in, n)`` are the keys, ``R`` ``(d_out, n)`` what each must additionally produce, ``M``
the metric of the keys (:class:`KeyMetric`: the inverse of their second moment, or a projector) and
``E`` a diagonal of regularizations: 0 makes a key exact, a larger one trades its exactness for a
smaller change (ROME: 0, arXiv 2202.05262 eq. 2; MEMIT: its λ, arXiv 2210.07229 eq. 14 divided by
λ). Only an ``n × n`` system is solved. Keys of earlier edits join ``K`` with ``R = 0``.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch

from easyeditor.errors import HyperParamsError, MomentsError
from easyeditor.lm.weights import float64_device

BLOCK = 2048
"""Rows and columns that are turned into float64 at once."""


def double(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` in float64, on the CPU where its device has no such numbers (Apple GPUs)."""
    return tensor.to(float64_device(tensor.device)).double()


class KeyMetric(Protocol):
    """The matrix ``M`` ``(d_in, d_in)`` in which the closed form measures keys.

    ``C⁻¹`` in ROME, MEMIT and EMMET (:class:`Cholesky`), the projector ``P`` onto directions that
    keys hardly use in AlphaEdit (:class:`NullSpace`), the identity in SimIE, UltraEdit and MALMEN
    (``Cholesky.identity()``). It must be symmetric and positive semi-definite.
    """

    def solve(self, keys: torch.Tensor) -> torch.Tensor:
        """``M K`` for ``K`` ``(d_in, n)``, in float64."""
        ...


class NullSpace:
    """The projector ``P`` onto the directions that keys hardly use (AlphaEdit, arXiv 2410.02355).

    A change ``Δᵀ = P K …`` adds nothing to the output for keys in the span of the other directions.
    ``P`` is made from the eigenvectors of the second moment ``C`` with the smallest eigenvalues;
    how many is a share, see :func:`free_directions`. The paper's threshold on the eigenvalues
    themselves is in the units of ``C``, so it means something else in every model.

    Attributes:
        dimensions: the rank of ``P``: how many directions may be changed.
        energy: ``tr(P C)``, the mean of ``‖P k‖²`` over the keys behind ``C``: the unit in which a
            regularization means the same in every model.
    """

    def __init__(self, values: torch.Tensor, vectors: torch.Tensor, dimensions: int) -> None:
        """Keep the thinner half of an eigendecomposition.

        Args:
            values: ``(d_in,)``, ascending.
            vectors: ``(d_in, d_in)``, the eigenvectors as rows, in the same order.
            dimensions: the rank of ``P``.
        """
        self.dimensions = dimensions
        self.energy = float(values[:dimensions].clamp(min=0).sum())
        self._complement = dimensions > len(values) // 2
        rows = vectors[dimensions:] if self._complement else vectors[:dimensions]
        self._rows = rows.clone()  # a slice would keep the other half alive

    @classmethod
    def of(
        cls,
        moment: torch.Tensor,
        share: float = 0.75,
        by: Literal["directions", "trace"] = "directions",
    ) -> NullSpace:
        """The null space of a symmetric positive semi-definite ``(d_in, d_in)`` matrix.

        Raises:
            HyperParamsError: no direction, or every direction, would be free.
        """
        values, vectors = torch.linalg.eigh(double(moment))
        return cls(values, vectors.T, free_directions(values, share, by))

    def solve(self, keys: torch.Tensor) -> torch.Tensor:
        """``P K`` for ``K`` ``(d_in, n)``, in float64."""
        k = double(keys)
        projected = torch.zeros_like(k)
        for start in range(0, len(self._rows), BLOCK):
            rows = double(self._rows[start : start + BLOCK]).to(k.device)
            projected += rows.T @ (rows @ k)
        return k - projected if self._complement else projected


def free_directions(
    values: torch.Tensor, share: float, by: Literal["directions", "trace"] = "directions"
) -> int:
    """How many of the smallest eigenvalues ``(d_in,)``, ascending, belong to the null space.

    ``"directions"``: this share of all directions. ``"trace"``: as many as together hold at most
    this share of the trace, that is of the mean squared length of a key.

    Raises:
        HyperParamsError: it is none, or all.
    """
    if by == "directions":
        count = round(share * len(values))
    else:
        total = values.clamp(min=0).cumsum(0)
        count = int((total <= share * total[-1]).sum())
    if not 0 < count < len(values):
        raise HyperParamsError(
            f"null_space={share} by {by} leaves {count} of {len(values)} directions free; at least "
            "one must be free and one must not. Choose a share further from 0 and 1."
        )
    return count


class Cholesky:
    """Cholesky factor of ``C + ridge·I``, ready to apply ``C⁻¹``.

    Found and applied in float64, kept in float32: that changes ``C`` by its own rounding, and
    whatever ``C`` is, exact keys stay exact. ``Cholesky.identity()`` stands for ``C = I`` (no
    second-moment adjustment). The ridge is a thousandth of a percent of the mean diagonal, raised
    tenfold until the factorisation succeeds.
    """

    def __init__(self, lower: torch.Tensor | None) -> None:
        self._lower = lower

    @classmethod
    def identity(cls) -> Cholesky:
        """``C = I``."""
        return cls(None)

    @classmethod
    def of(cls, moment: torch.Tensor, *, overwrite: bool = False) -> Cholesky:
        """Factor a symmetric positive semi-definite ``(d_in, d_in)`` matrix.

        ``overwrite`` lets the factor take the memory of the matrix, whose numbers are then gone:
        of a model with 7 billion parameters it is 4 % of the weights.

        Raises:
            MomentsError: the matrix is not finite, or far from positive semi-definite.
        """
        ridge = 1e-5
        while True:
            c = moment.to(float64_device(moment.device), torch.float64, copy=True)
            c.diagonal().add_(ridge * c.diagonal().mean())
            lower, info = c.mT, torch.empty((), dtype=torch.int32, device=c.device)
            torch.linalg.cholesky_ex(lower, out=(lower, info))  # in place: these are large
            if int(info) == 0:
                stored = moment.mT if overwrite and moment.dtype == torch.float32 else None
                return cls(lower.float() if stored is None else stored.copy_(lower))
            if ridge > 1:
                raise MomentsError(
                    "The second moment has no Cholesky factor: it is not finite, or not positive "
                    "semi-definite. Collect it again (`easyedit moments`), in float32 or bfloat16."
                )
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
        x = k.to(float64_device(self._lower.device), copy=True)
        starts = range(0, len(x), BLOCK)
        for block, done in ((slice(i, i + BLOCK), slice(0, i)) for i in starts):
            x[block] -= double(self._lower[block, done]) @ x[done]
            x[block] = torch.linalg.solve_triangular(
                double(self._lower[block, block]), x[block], upper=False
            )
        for block, done in (
            (slice(i, i + BLOCK), slice(i + BLOCK, None)) for i in reversed(starts)
        ):
            x[block] -= double(self._lower[done, block]).mT @ x[done]
            x[block] = torch.linalg.solve_triangular(
                double(self._lower[block, block]).mT, x[block], upper=True
            )
        return x.to(k.device)


def closed_form(
    keys: torch.Tensor, metric: KeyMetric, regularization: float | torch.Tensor
) -> torch.Tensor:
    """``U = M K (E + Kᵀ M K)⁻¹`` of shape ``(d_in, n)``, so that ``Δᵀ = U Rᵀ``.

    Args:
        keys: ``(d_in, n)``.
        metric: ``M``, as something that multiplies keys.
        regularization: one number for all keys or ``(n,)``, in units of ``Kᵀ M K``.
    """
    k = double(keys)
    solved = metric.solve(k)
    diagonal = torch.as_tensor(regularization, dtype=k.dtype, device=k.device)
    positive = bool((diagonal > 0).all())
    if positive and k.shape[1] > k.shape[0]:
        return _by_gram(k, solved, diagonal)
    small = k.T @ solved
    small.diagonal().add_(diagonal)
    if positive:
        return torch.linalg.solve(small, solved.T).T
    # Two exact keys may be parallel (one prompt twice); the minimum-norm answer is then right.
    return solved @ torch.linalg.pinv(small, hermitian=True, rtol=1e-12)


def _by_gram(k: torch.Tensor, solved: torch.Tensor, regularization: torch.Tensor) -> torch.Tensor:
    """The same numbers from a ``d_in × d_in`` system, for more keys than ``d_in``.

    With ``S = M K E^{-1/2}`` they are ``(I + S (K E^{-1/2})ᵀ)⁻¹ S E^{-1/2}``.
    """
    scale = regularization.rsqrt()
    s = solved * scale
    system = s @ (k * scale).T
    system.diagonal().add_(1)
    return torch.linalg.solve(system, s) * scale


def key_energy(keys: torch.Tensor, metric: KeyMetric) -> torch.Tensor:
    """``kᵀ C⁻¹ k`` of each row of ``keys`` ``(n, d_in)``: the unit of slack; float64."""
    return (double(keys) * metric.solve(keys.T).T).sum(1)
