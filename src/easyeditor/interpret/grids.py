"""Numbers per token and layer, as HTML and as rows of a data frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from easyeditor.display import heat_map_html


def scores_html(
    title: str, tokens: Sequence[str], subject: tuple[int, int], scores: torch.Tensor, low: float
) -> str:
    """A heat map of ``(tokens, layers)`` from ``low`` to the largest score."""
    first, last = subject
    names = [f"{t.strip()}{'*' * (first <= i <= last)}" for i, t in enumerate(tokens)]
    note = "Rows are tokens (* the subject), columns layers."
    high = float(scores.max())
    return heat_map_html(title, names, scores.tolist(), low=low, high=high, note=note)


def score_rows(
    tokens: Sequence[str], scores: torch.Tensor, corrupted: float
) -> list[dict[str, Any]]:
    """One row per token and layer, with the score and what it is above the corrupted run's."""
    return [
        {
            "position": i,
            "token": token,
            "layer": layer,
            "score": score,
            "effect": score - corrupted,
        }
        for i, (token, row) in enumerate(zip(tokens, scores.tolist(), strict=True))
        for layer, score in enumerate(row)
    ]
