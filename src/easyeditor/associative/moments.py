"""Second moments ``C = E[k kᵀ]`` of what goes into the down-projections.

One pass over the text serves all layers and stops at the highest; sums are kept in float32 or
better. Results are cached under a fingerprint of the weights, and a model that carries patches
is refused: statistics must come from the unedited model (a reference implementation computes
them for the second layer after editing the first, and stores the result).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from easyeditor.associative.contexts import SEEDS
from easyeditor.data.corpus import own_texts
from easyeditor.errors import MissingExtraError, MomentsError
from easyeditor.files import written_whole
from easyeditor.lm.hooks import reading_inputs, stopping
from easyeditor.lm.model import LM
from easyeditor.lm.sampling import sample
from easyeditor.lm.tokens import Batch
from easyeditor.patches.fingerprint import fingerprint
from easyeditor.patches.stack import is_patched
from easyeditor.paths import cache_dir
from easyeditor.progress import bar

log = logging.getLogger(__name__)

TOKENS_PER_WIDTH = 4
"""Default number of tokens, in units of ``d_in``; 2 to 10 are enough (arXiv 2506.04226)."""
WINDOW = 128
"""Tokens per sequence when a text is read."""
SLICE = 20000
"""Characters tokenised at once."""
SELF = "self"
"""The source that needs no download: text sampled from the model itself.

An encoder-decoder, which does not write freely, reads the prompts that come with the package.
"""
SAMPLED_LENGTH = 48
SAMPLED_ROWS = 128


@dataclass(frozen=True, slots=True)
class Moments:
    """``C`` of one layer, ``(d_in, d_in)`` float32 on the CPU, and how it was made.

    ``path`` is the file that holds it, None where none could be written.
    """

    matrix: torch.Tensor
    tokens: int
    source: str
    path: Path | None = None

    def condition_number(self) -> float:
        """Largest over smallest eigenvalue; infinite with fewer tokens than ``d_in``."""
        values = torch.linalg.eigvalsh(self.matrix.double())
        return float(values[-1] / values[0]) if values[0] > 0 else float("inf")


def moments(
    lm: LM,
    layers: Sequence[int],
    *,
    source: str = SELF,
    tokens: int | None = None,
    documents: int | None = None,
    directory: str | Path | None = None,
    seed: int = 0,
) -> dict[int, Moments]:
    """Second moments for all ``layers``, from the cache or in one pass.

    Args:
        lm: the model; if nothing is cached it must carry no patch.
        layers: absolute layer numbers.
        source: ``"self"`` (sampled from the model), a text or JSONL file, or the name of a
            Hugging Face dataset (extra ``datasets``).
        tokens: how many; ``4 · d_in`` by default.
        documents: at most this many documents of a file or dataset.
        directory: where they are kept; the user's cache by default.
        seed: of the sampling.

    Raises:
        MomentsError: the model carries patches and nothing is cached, or the source has no text.
        MissingExtraError: a dataset was named and ``datasets`` is not installed.
    """
    n_tokens = tokens or TOKENS_PER_WIDTH * lm.projection(layers[0]).d_in
    recipe = {
        "model": fingerprint(lm.model).digest,
        "source": _identity(source),
        "tokens": n_tokens,
        "documents": documents,
        "seed": seed if source == SELF else None,
        **({"column": "encoder" if lm.in_encoder else "decoder"} if lm.encoder_decoder else {}),
    }
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:24]
    folder = Path(directory) if directory else cache_dir() / "moments"
    found = {}
    for layer in dict.fromkeys(layers):
        kept = _load(folder / f"{digest}-{layer}.safetensors")
        if kept is not None:
            found[layer] = kept
    missing = [layer for layer in dict.fromkeys(layers) if layer not in found]
    if missing and is_patched(lm.model):
        raise MomentsError(
            "Second moments must come from the unedited model, and this one carries patches. Undo "
            "them, collect (easyeditor.associative.moments), and apply them again."
        )
    if missing:
        log.info("collecting second moments of layers %s from %s", missing, source)
        for layer, made in _collect(lm, missing, source, n_tokens, documents, seed).items():
            found[layer] = _store(folder / f"{digest}-{layer}.safetensors", made, recipe)
    return found


def _identity(source: str) -> str:
    path = Path(source)
    if source != SELF and path.is_file():
        return "file:" + hashlib.sha256(path.read_bytes()).hexdigest()
    return source


def _load(path: Path) -> Moments | None:
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            matrix = file.get_tensor("moment")
        return Moments(matrix, int(about["tokens"]), about["source"], path)
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        return None


def _store(path: Path, made: Moments, recipe: dict[str, Any]) -> Moments:
    about = {"tokens": str(made.tokens), "source": made.source, "recipe": json.dumps(recipe)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as part:
            save_file({"moment": made.matrix.contiguous()}, part, metadata=about)
        return replace(made, path=path)
    except (OSError, SafetensorError) as error:
        log.warning("second moments were computed but could not be kept in %s: %s", path, error)
        return made


def _collect(
    lm: LM,
    layers: Sequence[int],
    source: str,
    n_tokens: int,
    documents: int | None,
    seed: int,
) -> dict[int, Moments]:
    ordered = sorted(layers)
    projections = [lm.projection(layer) for layer in ordered]
    modules = [projection.module for projection in projections]
    sums = [
        torch.zeros(p.d_in, p.d_in, dtype=torch.float32, device=p.parameter.device)
        for p in projections
    ]
    seen = 0
    texts = _sequences(lm, source, n_tokens, documents, seed)
    with bar(n_tokens, f"second moments of {len(ordered)} layers", "token") as progress:
        for sequences in _batches(texts, n_tokens):
            batch, more, real = _fed(lm, sequences)
            with lm.at_rest(), torch.inference_mode():
                with reading_inputs(modules) as inputs, stopping():
                    lm.call(batch, **more)
                for total, keys in zip(sums, inputs, strict=True):
                    assert keys is not None
                    flat = keys.reshape(-1, keys.shape[-1])[real.to(keys.device)].float()
                    total.addmm_(flat.T, flat)
            seen += int(real.sum())
            progress.update(int(real.sum()))
    if not seen:
        raise MomentsError(f"The source {source!r} holds no text to collect second moments from.")
    if not all(bool(total.isfinite().all()) for total in sums):
        raise MomentsError(
            "The model's activations are not finite on this text, so there are no second moments. "
            "Load it in float32 or bfloat16."
        )
    return {
        layer: Moments((total / seen).cpu(), seen, source)
        for layer, total in zip(ordered, sums, strict=True)
    }


def _fed(
    lm: LM, sequences: Sequence[Sequence[int]]
) -> tuple[Batch, dict[str, torch.Tensor], torch.Tensor]:
    """A batch, what else the call needs, and which of the edited column's positions are real.

    Where a decoder is edited the encoder reads the first half and the decoder the second.
    """
    if not lm.encoder_decoder or lm.in_encoder:
        batch = lm.pad(sequences)
        return batch, {}, batch.mask.bool().flatten()
    halves = [(s[: len(s) // 2], s[len(s) // 2 :]) for s in sequences]
    read = lm.pad([second for _, second in halves]).mask.bool().flatten()
    decoder = lm.decoder_inputs([second for _, second in halves])
    return lm.pad([first for first, _ in halves]), {"decoder_input_ids": decoder}, read


def _batches(
    sequences: Iterable[Sequence[int]], n_tokens: int, budget: int = 2048
) -> Iterator[list[Sequence[int]]]:
    batch: list[Sequence[int]] = []
    size = total = 0
    for sequence in sequences:
        cut = sequence[: n_tokens - total]
        batch.append(cut)
        size += len(cut)
        total += len(cut)
        if size >= budget or total >= n_tokens:
            yield batch
            batch, size = [], 0
        if total >= n_tokens:
            return
    if batch:
        yield batch


def _sequences(
    lm: LM, source: str, n_tokens: int, documents: int | None, seed: int
) -> Iterator[Sequence[int]]:
    if source == SELF and not lm.encoder_decoder:
        yield from _self_sampled(lm, n_tokens, seed)
        return
    for i, text in enumerate(own_texts() if source == SELF else _documents(source)):
        if documents is not None and i >= documents:
            return
        for cut in range(0, len(text), SLICE):
            ids = lm.text.plain(text[cut : cut + SLICE])
            for start in range(0, len(ids), WINDOW):
                piece = ids[start : start + WINDOW]
                if len(piece) > 1:
                    yield piece


def _self_sampled(lm: LM, n_tokens: int, seed: int) -> Iterator[Sequence[int]]:
    # Sampled once per model: the same text serves every layer and every later call.
    key = ("self-sampled", n_tokens, seed)
    if key not in lm.memo:
        generator = torch.Generator().manual_seed(seed)
        made: list[tuple[int, ...]] = []
        progress = bar(n_tokens, "sampling text for second moments", "token")
        while sum(map(len, made)) < n_tokens:
            left = n_tokens - sum(map(len, made))
            rows = min(SAMPLED_ROWS, -(-left // SAMPLED_LENGTH))
            starts = [SEEDS[i % len(SEEDS)] for i in range(rows)]
            made += sample(
                lm, starts, SAMPLED_LENGTH, generator=generator, progress=progress.update
            )
        progress.close()
        lm.memo[key] = made
    yield from lm.memo[key]


def _text_of(line: str, place: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (json.JSONDecodeError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise MomentsError(f'{place}: a JSONL corpus has one {{"text": "…"}} object per line.')
    return text


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
    names = {
        "wikipedia": ("wikimedia/wikipedia", "20231101.en"),
        "wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
    }
    try:
        for record in datasets.load_dataset(
            *names.get(source, (source,)), split="train", streaming=True
        ):
            yield str(record["text"])
    except Exception as error:
        raise MomentsError(
            f"The dataset {source!r} could not be read ({error}). Give a text file instead, or "
            f"mom2_dataset={SELF!r} to sample the text from the model."
        ) from error
