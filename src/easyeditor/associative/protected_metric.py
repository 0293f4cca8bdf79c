r"""A key metric in which earlier keys are held: the closed form without a system that grows.

Keys ``Kₚ`` of earlier edits with a residual of zero change the answer for new keys ``K`` exactly as
another metric does (block elimination):

.. math:: M' = M - M K_p (E + K_p^\top M K_p)^{-1} K_p^\top M = M - \sum_b V_b V_b^\top

Keys are taken in blocks of a fixed number in their order, so the numbers depend on the list alone,
not on how it grew: a sequence that was killed and is taken up again ends with the same bits. The
keys that fill no block yet stay in the caller's system.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from easyeditor.associative.solve import KeyMetric, double

BLOCK_KEYS = 64
"""Keys in a block; the caller's system has fewer than this many earlier keys."""


class ProtectedMetric:
    """``M − Σ V Vᵀ``: :class:`~easyeditor.associative.solve.KeyMetric` with earlier keys held."""

    def __init__(
        self, metric: KeyMetric, dense: torch.Tensor | None, blocks: tuple[torch.Tensor, ...]
    ) -> None:
        self._metric = metric
        self._dense = dense
        self._blocks = blocks

    def solve(self, keys: torch.Tensor) -> torch.Tensor:
        """``M' K`` for ``K`` ``(d_in, n)``, in float64."""
        k = double(keys)
        result = self._metric.solve(k)
        if self._dense is not None:
            result = result - self._dense @ k
        for v in self._blocks:
            result = result - v @ (v.T @ k)
        return result


@dataclass(slots=True)
class _Chain:
    """The blocks computed so far for one weight, and the keys ``(n, d_in)`` they stand for."""

    keys: torch.Tensor
    dense: torch.Tensor | None = None
    folded: int = 0
    blocks: list[torch.Tensor] = field(default_factory=list)


class ProtectedMetrics:
    """Protected metrics by weight, extended block by block as the list of keys grows.

    A cache: the same list gives the same bits in another process. A list that is no continuation of
    the last one (an edit was undone, a subject is edited anew) is computed from where they part.
    """

    def __init__(self) -> None:
        self._chains: dict[tuple[object, float], _Chain] = {}

    def extended(
        self, weight: object, metric: KeyMetric, keys: torch.Tensor, regularization: float
    ) -> tuple[KeyMetric, torch.Tensor]:
        """The metric that holds all whole blocks of ``keys``, and the keys that are left.

        Args:
            weight: names the weight, and the model it belongs to.
            metric: ``M`` of the weight's keys.
            keys: ``(n, d_in)`` of earlier edits, in their order.
            regularization: of each of them, in units of ``kᵀ M k``.
        """
        chain = self._chains.get((weight, regularization))
        count = len(keys) // BLOCK_KEYS
        if chain is None or _common_blocks(chain.keys, keys) < chain.folded:
            chain = _Chain(keys[:0])
            self._chains[weight, regularization] = chain
        same = _common_blocks(chain.keys, keys)
        del chain.blocks[same - chain.folded :]
        for i in range(same, count):
            _append(chain, metric, keys[i * BLOCK_KEYS : (i + 1) * BLOCK_KEYS], regularization)
        chain.keys = keys[: count * BLOCK_KEYS].clone()
        rest = keys[count * BLOCK_KEYS :]
        if not count:
            return metric, rest
        return ProtectedMetric(metric, chain.dense, tuple(chain.blocks)), rest


def _append(chain: _Chain, metric: KeyMetric, keys: torch.Tensor, regularization: float) -> None:
    """Add one block's ``V = M' K (E + Kᵀ M' K)^{-1/2}``; past ``d_in`` columns they are summed."""
    solved = ProtectedMetric(metric, chain.dense, tuple(chain.blocks)).solve(keys.T)
    system = double(keys) @ solved.to(double(keys).device)
    system.diagonal().add_(regularization)
    values, vectors = torch.linalg.eigh((system + system.T) / 2)
    large = values > 1e-12 * values[-1]
    scale = torch.where(large, values, torch.ones_like(values)).rsqrt() * large
    chain.blocks.append(solved @ (vectors * scale))
    if len(chain.blocks) * BLOCK_KEYS > keys.shape[1]:
        columns = torch.cat(chain.blocks, 1)
        total = columns @ columns.T
        chain.dense = total if chain.dense is None else chain.dense + total
        chain.folded += len(chain.blocks)
        chain.blocks = []


def _common_blocks(one: torch.Tensor, other: torch.Tensor) -> int:
    """How many whole blocks two lists of keys begin with alike."""
    most = min(len(one), len(other)) // BLOCK_KEYS
    if not most:
        return 0
    length = most * BLOCK_KEYS
    differing = (one[:length] != other[:length]).any(1).nonzero()
    return most if not len(differing) else int(differing[0]) // BLOCK_KEYS
