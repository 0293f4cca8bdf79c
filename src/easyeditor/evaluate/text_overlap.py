"""How much of a text is another: ROUGE-L as F1, and the length of the exact beginning."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile

from easyeditor.joining import unspaced
from easyeditor.lm.forward.batching import TokenScores


def words(text: str) -> list[str]:
    """Lower-case words; of a script without spaces the single characters."""
    result: list[str] = []
    for word in re.findall(r"\w+", text.lower()):
        result += list(word) if unspaced(word[0]) else [word]
    return result


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L as F1: the longest common subsequence of words, against both lengths.

    The trap: published scores of edited paragraphs are its *recall*, which a text that goes on for
    ever can only gain by. 0 where either has no word.
    """
    a, b = words(text), words(reference)
    common = _longest_common_subsequence(a, b)
    return 2 * common / (len(a) + len(b)) if common else 0.0


def _longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1]


def exact_prefix(scores: TokenScores) -> int:
    """How many tokens of the target greedy generation writes before the first other one.

    Up to there it has read the target's own tokens, so teacher forcing says the same.
    """
    pairs = zip(scores.argmax, scores.target, strict=True)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
