"""Token sequences to collect second moments from: a file, a dataset, or sampled text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from easyeditor.data.corpus import own_paragraphs, own_texts
from easyeditor.errors import MissingExtraError, MomentsError
from easyeditor.lm.model import LM
from easyeditor.second_moments.self_sampled import sampled_text

TOKENS_PER_SEQUENCE = 128
"""When a text is read."""
CHARACTERS_PER_CALL = 20000
"""Tokenised at once."""
SHIPPED = "shipped"
"""The texts that come with the package, about 30,000 tokens: no download, and read in seconds."""
SELF = "self"
"""Text sampled from the model itself, token by token.

An encoder-decoder, which does not write freely, reads the texts that come with the package.
"""
DATASETS = {
    "wikipedia": ("wikimedia/wikipedia", "20231101.en"),
    "wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
}
"""Short names of Hugging Face datasets."""


def identity(source: str) -> str:
    """Names a source in the cache: a file by the digest of its content, not by its path."""
    path = Path(source)
    if source not in {SELF, SHIPPED} and path.is_file():
        return "file:" + hashlib.sha256(path.read_bytes()).hexdigest()
    return source


def sequences(
    lm: LM, source: str, n_tokens: int, documents: int | None, seed: int, file: Path
) -> Iterator[Sequence[int]]:
    """The source's token sequences, deterministic and in a fixed order.

    ``file`` is the cache file of a sampled text, of ``n_tokens`` tokens; other sources are read
    until the caller stops.

    Raises:
        MomentsError: no such file, or no text in it; a dataset that cannot be read.
        MissingExtraError: a dataset was named and ``datasets`` is not installed.
    """
    if source == SELF and not lm.encoder_decoder:
        yield from sampled_text(lm, n_tokens, seed, file)
        return
    for i, text in enumerate(_texts(source)):
        if documents is not None and i >= documents:
            return
        for cut in range(0, len(text), CHARACTERS_PER_CALL):
            ids = lm.text.plain(text[cut : cut + CHARACTERS_PER_CALL])
            for start in range(0, len(ids), TOKENS_PER_SEQUENCE):
                piece = ids[start : start + TOKENS_PER_SEQUENCE]
                if len(piece) > 1:
                    yield piece


def _texts(source: str) -> Iterator[str]:
    if source == SHIPPED:
        return own_paragraphs()
    return own_texts() if source == SELF else _documents(source)


def _documents(source: str) -> Iterator[str]:
    path = Path(source)
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            if path.suffix == ".jsonl":
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield _text_of(line, f"{path}, line {number}")
            else:
                yield from (line.rstrip("\n") for line in file if line.strip())
        return
    if path.suffix in {".txt", ".jsonl"}:
        raise MomentsError(f"No text file {source!r} to collect second moments from.")
    try:
        import datasets
    except ImportError:
        raise MissingExtraError.of(
            "the package datasets", "datasets", f"Second moments from the dataset {source!r}"
        ) from None
    try:
        for record in datasets.load_dataset(
            *DATASETS.get(source, (source,)), split="train", streaming=True
        ):
            yield str(record["text"])
    except Exception as error:
        raise MomentsError(
            f"The dataset {source!r} could not be read ({error}). Give a text file instead, or "
            f"mom2_dataset={SHIPPED!r} to read the texts that come with the package."
        ) from error


def _text_of(line: str, place: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (json.JSONDecodeError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise MomentsError(f'{place}: a JSONL corpus has one {{"text": "…"}} object per line.')
    return text
