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


# Of ten cases one may be lost beside what was measured; the edit itself is always made.
MADE = {"rewrite": 0.95, "rephrase": 0.95}
GENERAL = {**MADE, "image_rephrase": 0.9}
"""The edit is made, in other words too, and on other pictures of the flag."""
KEEPING = {
    **MADE,
    "image_rephrase": 0.8,
    "locality/text": 0.9,
    "locality/image": 0.9,
    "locality/same_question": 0.85,
    "locality/no_image": 0.9,
}
"""It is, and what the model says about other pictures, and about none, is kept."""

ROWS = (
    ImageRow(
        "FT",
        {**GENERAL, "locality/text": 0.85, "locality/no_image": 0.8},
        "trains one projection of the text column, and learns the question as much as the picture.",
    ),
    ImageRow(
        "FT, others kept",
        {
            **GENERAL,
            "locality/text": 0.85,
            "locality/image": 0.75,
            "locality/same_question": 0.6,
            "locality/no_image": 0.9,
        },
        "does so while a divergence holds the answers about the kept flags; most others stay, too.",
    ),
    ImageRow(
        "LoRA",
        {**GENERAL, "locality/text": 0.85},
        "is the same in products of two thin matrices.",
    ),
    ImageRow(
        "LoRA, others kept",
        {
            **GENERAL,
            "locality/text": 0.85,
            "locality/image": 0.85,
            "locality/same_question": 0.65,
            "locality/no_image": 0.9,
        },
    ),
    ImageRow(
        "IKE",
        GENERAL,
        "shows the edit's picture with the fact in front of every prompt, about it or not.",
    ),
    ImageRow(
        "IKE, near the picture",
        KEEPING,
        "does so only where the picture that is asked about is near the edit's.",
    ),
    ImageRow(
        "MEND",
        {**KEEPING, "locality/text": 0.75, "locality/image": 0.8},
        "transforms one gradient; its network learnt from other flags what of it is the picture's.",
    ),
    ImageRow(
        "SERAC",
        {**KEEPING, "image_rephrase": 0.75},
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
        {
            "rewrite": 0.8,
            "locality/text": 0.85,
            "locality/image": 0.7,
            "locality/same_question": 0.85,
            "locality/no_image": 0.8,
        },
        "keeps other flags by their keys, too: a change that may not touch them can hardly reach "
        "the edit's own, and some edits are not made.",
    ),
    ImageRow(
        "MEMIT",
        {**GENERAL, "locality/text": 0.85, "locality/image": 0.8},
        "finds it by the same key.",
    ),
    ImageRow(
        "GRACE",
        {
            "rewrite": 0.95,
            "locality/text": 0.95,
            "locality/image": 0.95,
            "locality/same_question": 0.95,
            "locality/no_image": 0.95,
        },
        "answers the edit's own picture alone: another picture of the flag is not near enough.",
    ),
    ImageRow("WISE", {"rewrite": 0.95}),
)
