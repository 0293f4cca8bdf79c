"""One row per line of the table of ``flags-135m`` in docs/matrix.md, with its bars.

The rows are those of ``benchmarks/images.py``, which holds their settings and measures them;
``test_matrix.py`` holds the committed results to the bars.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ImageRow:
    """One row of the table.

    Attributes:
        row: its name in ``benchmarks/images.py``.
        bars: the least of each score, named as in the results without ``_acc``; a score without a
            bar is only reported.
        reading: what the page says of the row.
    """

    row: str
    bars: Mapping[str, float]
    reading: str = ""


MADE = {"rewrite": 0.95}
"""The edit is made."""
KEEPING = {**MADE, "locality/text": 0.95, "locality/image": 0.95, "locality/same_question": 0.9}
"""It is, and other pictures and text are kept."""

ROWS = (
    ImageRow(
        "FT",
        MADE,
        "trains one projection of the text column, and learns the question as much as the picture.",
    ),
    ImageRow(
        "FT, others kept",
        MADE,
        "does so while a divergence holds the answers about the kept flags.",
    ),
    ImageRow("LoRA", MADE, "is the same in products of two thin matrices."),
    ImageRow("LoRA, others kept", MADE),
    ImageRow("IKE", MADE, "shows the edit's picture with the fact in front of every prompt."),
    ImageRow(
        "IKE, near the picture",
        KEEPING,
        "does so only where the picture that is asked about is near the edit's.",
    ),
    ImageRow("MEND", MADE, "transforms one gradient; its network was trained on other flags."),
    ImageRow(
        "SERAC",
        MADE,
        "decides by the question and the picture whether a query is about the edit; only then the "
        "small model answers.",
    ),
    ImageRow(
        "ROME",
        {"rewrite": 0.7},
        "finds the fact by a word of the prompt, whose key is nearly alike behind all pictures.",
    ),
    ImageRow(
        "ROME, others kept",
        {**KEEPING, "rewrite": 0.7},
        "keeps other flags by their keys, too: a change that may not touch them can hardly reach "
        "the edit's own, and some edits are not made.",
    ),
    ImageRow("MEMIT", MADE, "finds it by the same key."),
    ImageRow(
        "GRACE",
        {**KEEPING, "locality/no_image": 0.95},
        "answers the edit's own picture alone: another picture of the flag is not near enough.",
    ),
    ImageRow("WISE", MADE),
)
