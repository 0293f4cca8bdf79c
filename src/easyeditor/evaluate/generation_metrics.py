"""Measures of free text: right answers, fluency, consistency, perplexity."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

import torch

from easyeditor.errors import MissingExtraError
from easyeditor.joining import unspaced
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Row

WINDOW = 256
"""Tokens per window of held-out text."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans(
    dict.fromkeys(string.punctuation + "“”„«»‘’–—…。，、；：？！「」『』（）《》", " ")
)


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (as SQuAD's evaluation does)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def natural_answer(text: str, chat: bool) -> str:
    """Where a free answer ends by itself: with the turn in a chat, with its line elsewhere."""
    stripped = text.strip()
    return stripped if chat else stripped.partition("\n")[0]


def contains(text: str, accepted: Iterable[str]) -> bool:
    """Whether a normalised accepted answer stands in the normalised text, as whole words."""
    return any(_holds(normalise(text), want) for answer in accepted if (want := normalise(answer)))


def _holds(text: str, want: str) -> bool:
    # Where a script writes no spaces a word has no border to look for.
    left = r"" if unspaced(want[0]) else r"(?<!\S)"
    right = r"" if unspaced(want[-1]) else r"(?!\S)"
    return re.search(left + re.escape(want) + right, text) is not None


def equals(text: str, accepted: Iterable[str]) -> bool:
    """Whether the normalised text is an accepted answer and nothing else."""
    replies = normalise(text)
    return bool(replies) and replies in {normalise(answer) for answer in accepted}


def ngram_entropy(text: str) -> float:
    """Weighted entropy of word 2- and 3-grams, ``(2/3 H₂ + 4/3 H₃) / 2`` in bits.

    Low when a text repeats itself; 0 for fewer than three words (arXiv 2202.05262, appendix D;
    the papers print it times 100).
    """
    words = text.split()
    if len(words) < 3:
        return 0.0
    return (2 / 3 * _entropy(words, 2) + 4 / 3 * _entropy(words, 3)) / 2


def _entropy(words: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = sum(counts.values())
    return -sum(c / total * math.log2(c / total) for c in counts.values())


class Consistency:
    """Cosine of TF-IDF vectors between what a model writes and what is true after the edit.

    The inverse document frequencies come from the references given here, so numbers compare only
    within one set of cases.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        ValueError: the references hold no words.
    """

    def __init__(self, references: Sequence[str]) -> None:
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError:
            raise MissingExtraError.of("scikit-learn", "bench", "Consistency") from None
        self._vectors = TfidfVectorizer().fit(references)

    def __call__(self, written: Sequence[str], references: Sequence[str]) -> float:
        """Between 0 (no common word) and 1."""
        both = self._vectors.transform([" ".join(written), " ".join(references)])
        return float((both[0] @ both[1].T).toarray()[0, 0])  # rows have unit length


def perplexity(lm: LM, text: str, *, patch: int | None = None) -> float:
    """Exp of the mean negative log-likelihood per token, in windows of 256 tokens.

    The alarm that one edit broke the model. Each window is read on its own, so the number is
    higher than with a long context. NaN for an encoder-decoder, which does not continue text.
    ``patch`` says which change is asked about where the model carries several at once.
    """
    if lm.encoder_decoder:
        return math.nan
    ids = lm.text.plain(text)
    longest = getattr(lm.model.config.get_text_config(), "max_position_embeddings", None)
    size = min(WINDOW, longest or WINDOW)
    windows = [ids[i : i + size] for i in range(0, len(ids), size)]
    rows = [Row(window, window[1:]) for window in windows if len(window) > 1]
    total, count = 0.0, 0
    with lm.at_rest(), torch.inference_mode():
        for row in rows:  # few and long: nothing is gained by batching
            of_row = None if patch is None else [patch]
            logits = lm.target_logits([row], patch_of_row=of_row).float()
            wanted = torch.tensor(row.target, device=logits.device)
            total += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
            count += len(row.target)
    if not count:
        return math.nan
    try:
        return math.exp(total / count)
    except OverflowError:  # a wrecked model
        return math.inf
