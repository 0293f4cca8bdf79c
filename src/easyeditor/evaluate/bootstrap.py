"""Means over cases and how far to trust them: percentile bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from easyeditor.errors import BenchError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

CHUNK = 2**20
"""Drawn cases held in memory at once."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number measured over cases.

    Attributes:
        value: over the cases as they are.
        low: lower end of the 95 % interval; NaN where no interval can be given.
        high: upper end.
        n: cases in which it was measured.
    """

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def plain(cls, value: float, n: int) -> Estimate:
        """A number without an interval."""
        return cls(value, math.nan, math.nan, n)


def bootstrap(
    columns: Mapping[str, Sequence[float | None]],
    *,
    harmonic: Mapping[str, Sequence[str]] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Mean of every column with its 95 % percentile interval; a column never measured is left out.

    Whole cases are drawn with replacement, the same ones for all columns. ``None`` and NaN mean
    "not measured in this case"; a resample that draws no measured case of a column is passed over
    for this column. The trap: one case gives an interval of no width, and cases of one sequence of
    edits are not independent, so there the interval is too narrow.

    Args:
        columns: one value per case; all of one length.
        harmonic: further numbers, each the harmonic mean of the means of these columns (0 if one
            of them is 0 or less); left out if one of them is missing. Its ``n`` is the smallest.
        resamples: how many sets of cases are drawn.
        seed: of the draws; equal columns give equal intervals.

    Raises:
        BenchError: columns of different lengths, or fewer than one resample.
    """
    import numpy as np

    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1 or resamples < 1:
        raise BenchError(
            f"An interval needs columns of one length and at least one resample; got lengths "
            f"{sorted(lengths)} and resamples={resamples}."
        )
    values = {
        name: np.array([math.nan if x is None else float(x) for x in column])
        for name, column in columns.items()
    }
    values = {name: column for name, column in values.items() if not np.isnan(column).all()}
    if not values:
        return {}
    counts = {name: int((~np.isnan(column)).sum()) for name, column in values.items()}
    everyone = np.arange(lengths.pop())[None]
    means = {name: _means(column, everyone) for name, column in values.items()}
    draws: dict[str, list[Array]] = {name: [] for name in values}
    for drawn in _draws(everyone.size, resamples, seed):
        for name, column in values.items():
            draws[name].append(_means(column, drawn))
    drawn_means = {name: np.concatenate(parts) for name, parts in draws.items()}
    for name, parts in (harmonic or {}).items():
        if all(part in values for part in parts):
            counts[name] = min(counts[part] for part in parts)
            means[name] = _harmonic([means[part] for part in parts])
            drawn_means[name] = _harmonic([drawn_means[part] for part in parts])
    return {
        name: Estimate(float(means[name][0]), *_interval(drawn_means[name]), counts[name])
        for name in means
    }


def _draws(n: int, resamples: int, seed: int) -> Iterator[Array]:
    """Case numbers, ``(resamples, n)``, in pieces that fit in memory."""
    import numpy as np

    generator = np.random.default_rng(seed)
    step = max(1, CHUNK // n)
    for start in range(0, resamples, step):
        yield generator.integers(n, size=(min(step, resamples - start), n))


def _means(column: Array, drawn: Array) -> Array:
    """Mean of the measured values in each row of ``drawn``; NaN where there is none."""
    import numpy as np

    taken = column[drawn]
    there = ~np.isnan(taken)
    count = there.sum(axis=1)
    total = np.where(there, taken, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def _harmonic(parts: Sequence[Array]) -> Array:
    import numpy as np

    stacked = np.stack(list(parts))
    positive = (stacked > 0).all(axis=0)
    inverse = (1 / np.where(positive, stacked, 1.0)).sum(axis=0)
    mean = np.where(positive, len(stacked) / inverse, 0.0)
    return np.where(np.isnan(stacked).any(axis=0), math.nan, mean)


def _interval(drawn: Array) -> tuple[float, float]:
    """The 2.5 % and 97.5 % order statistics (no interpolation: a mean may be infinite)."""
    import numpy as np

    ordered = np.sort(drawn[~np.isnan(drawn)])
    if not ordered.size:
        return math.nan, math.nan
    low, high = math.floor(0.025 * ordered.size), math.ceil(0.975 * ordered.size) - 1
    return float(ordered[low]), float(ordered[high])
