"""Second moments ``C = E[k kᵀ]`` of the inputs of the down-projections, cached on disk.

One pass over the text (:mod:`~easyeditor.second_moments.corpus`) serves all layers and stops at the
highest (:mod:`~easyeditor.second_moments.accumulate`). Sums are float32 or better
(:mod:`~easyeditor.second_moments.running_sum`), and an interrupted pass resumes from a checkpoint
(:mod:`~easyeditor.second_moments.checkpoint`). Results are cached under a fingerprint of the
weights. A model that carries patches is refused: statistics must come from the unedited model (a
reference implementation computes those of the second layer after editing the first, and caches the
result).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from easyeditor.errors import MomentsError
from easyeditor.lm.fingerprint import fingerprint
from easyeditor.lm.model import LM
from easyeditor.patches.stack import is_patched
from easyeditor.paths import cache_dir
from easyeditor.second_moments.accumulate import accumulated, accumulated_by_size
from easyeditor.second_moments.cache_file import digest_of as digest_of
from easyeditor.second_moments.cache_file import ignored, read_cache_file, write_cache_file
from easyeditor.second_moments.checkpoint import Checkpoint
from easyeditor.second_moments.corpus import SELF, SHIPPED, identity, sequences
from easyeditor.second_moments.running_sum import RunningSums

log = logging.getLogger(__name__)

TOKENS_PER_WIDTH = 10
"""Default number of tokens, in units of ``d_in``; 2 to 10 are enough (arXiv 2506.04226)."""
CONTENT = "second moments"


@dataclass(frozen=True, slots=True)
class Moments:
    """The second moment ``C`` of one layer.

    Attributes:
        matrix: ``(d_in, d_in)``, float32, on the CPU; memory-mapped where it comes from a file.
            The trap: writing into a mapped file (the package only replaces files) changes the
            matrix or ends the process.
        tokens: number of tokens it is the mean over.
        source: of the text, see :func:`moments`.
        path: the file that holds it; None where none could be written.
        digest: of the matrix, as the file states it; empty if it does not.
    """

    matrix: torch.Tensor
    tokens: int
    source: str
    path: Path | None = None
    digest: str = ""

    def eigenvalues(self) -> torch.Tensor:
        """All eigenvalues, the largest first; float64."""
        return torch.linalg.eigvalsh(self.matrix.double()).flip(0)

    def condition_number(self) -> float:
        """Largest over smallest eigenvalue; infinite with fewer tokens than ``d_in``."""
        return condition_number(self.eigenvalues())


def condition_number(eigenvalues: torch.Tensor) -> float:
    """Largest over smallest of eigenvalues in descending order; infinite if one is not positive."""
    first, last = float(eigenvalues[0]), float(eigenvalues[-1])
    return first / last if last > 0 else float("inf")


def moments(
    lm: LM,
    layers: Sequence[int],
    *,
    source: str = SHIPPED,
    tokens: int | None = None,
    documents: int | None = None,
    directory: str | Path | None = None,
    seed: int = 0,
) -> dict[int, Moments]:
    """Second moments of ``layers``, from the cache or by one pass over the text.

    Args:
        lm: the model; if nothing is cached it must carry no patch.
        layers: absolute layer numbers.
        source: ``"shipped"`` (texts that come with the package), ``"self"`` (sampled from the
            model), a text or JSONL file, or the name of a Hugging Face dataset (extra
            ``datasets``).
        tokens: how many; ``10 · d_in`` by default.
        documents: at most this many documents of a file or dataset.
        directory: of the cache files; the user's cache by default.
        seed: of the sampling.

    Raises:
        MomentsError: the model carries patches and nothing is cached, or the source has no text.
        MissingExtraError: a dataset was named and ``datasets`` is not installed.
    """
    n_tokens = tokens or default_tokens(lm, layers[0])
    files = _CacheFiles(lm, source, n_tokens, documents, seed, directory)
    wanted = list(dict.fromkeys(layers))
    cached = {layer: files.load(layer) for layer in wanted}
    result = {layer: moment for layer, moment in cached.items() if moment is not None}
    missing = sorted(cached.keys() - result.keys())
    if missing and files.checkpoint(sorted(wanted)).exists():
        missing = sorted(wanted)  # interrupted between the writing of two layers
    if missing:
        _refuse_patched(lm)
        log.info("collecting second moments of layers %s from %s", missing, source)
        text = sequences(lm, source, n_tokens, documents, seed, files.text)
        checkpoint = Checkpoint(files.checkpoint(missing))
        sums = accumulated(lm, missing, text, n_tokens, checkpoint)
        for i, layer in enumerate(missing):  # one mean at a time: each is 4 % of a 7B model
            result[layer] = files.store(layer, _mean(sums, i, source, last=True))
        checkpoint.remove()
    return result


def moments_by_size(
    lm: LM,
    layers: Sequence[int],
    sizes: Sequence[int],
    *,
    source: str = SHIPPED,
    tokens: int | None = None,
    documents: int | None = None,
    directory: str | Path | None = None,
    seed: int = 0,
) -> Iterator[dict[int, Moments]]:
    """Second moments of the first ``sizes`` tokens of the text that :func:`moments` reads.

    One pass for all sizes; nothing is cached. A size that the text does not reach is left out. The
    trap: a text that is sampled from the model depends on ``tokens``, its whole length.

    Args:
        lm: as for :func:`moments`, and so are the other arguments.
        layers: absolute layer numbers.
        sizes: numbers of tokens.
        source: see there.
        tokens: of the whole text.
        documents: see there.
        directory: of the file of a sampled text.
        seed: of the sampling.

    Raises:
        MomentsError: the model carries patches.
    """
    _refuse_patched(lm)
    n_tokens = tokens or default_tokens(lm, layers[0])
    files = _CacheFiles(lm, source, n_tokens, documents, seed, directory)
    text = sequences(lm, source, n_tokens, documents, seed, files.text)
    ordered = sorted(set(layers))
    for sums in accumulated_by_size(lm, ordered, text, n_tokens, sorted(set(sizes))):
        yield {layer: _mean(sums, i, source) for i, layer in enumerate(ordered)}


def write_moments(
    lm: LM,
    collected: Mapping[int, Moments],
    directory: str | Path,
    *,
    source: str = SHIPPED,
    tokens: int,
    documents: int | None = None,
    seed: int = 0,
) -> None:
    """Write ``collected`` to the cache files that :func:`moments` reads with these arguments.

    The trap: nothing checks that the matrices belong to this model and text. Use a directory of
    its own.
    """
    files = _CacheFiles(lm, source, tokens, documents, seed, directory)
    for layer, moment in collected.items():
        files.store(layer, moment)


def default_tokens(lm: LM, layer: int) -> int:
    """``10 · d_in``, of the widest layer where they differ: one text serves all layers."""
    layers = lm.layers_with_down or (layer,)
    return TOKENS_PER_WIDTH * max(lm.projection(other).d_in for other in layers)


def _refuse_patched(lm: LM) -> None:
    if is_patched(lm.model):
        raise MomentsError(
            "Second moments must come from the unedited model, and this one carries patches. Undo "
            "them, collect (easyeditor.second_moments), and apply them again."
        )


def _mean(sums: RunningSums, i: int, source: str, *, last: bool = False) -> Moments:
    if not sums.seen:
        raise MomentsError(f"The source {source!r} holds no text to collect second moments from.")
    matrix = sums.mean(i, last=last)
    if not bool(matrix.diagonal().isfinite().all()):  # which bounds the rest
        raise MomentsError(
            "The model's activations are not finite on this text, so there are no second moments. "
            "Load it in float32 or bfloat16."
        )
    return Moments(matrix, sums.seen, source)


def _plausible(diagonal: torch.Tensor) -> bool:
    """Whether it may be the diagonal of a second moment, which bounds all other entries."""
    finite = bool(diagonal.isfinite().all())
    return finite and float(diagonal.min()) >= 0 and float(diagonal.max()) > 0


class _CacheFiles:
    """The cache files of one model and corpus, named by a digest of model and settings."""

    def __init__(
        self,
        lm: LM,
        source: str,
        n_tokens: int,
        documents: int | None,
        seed: int,
        directory: str | Path | None,
    ) -> None:
        column = "encoder" if lm.in_encoder else "decoder"
        recipe = {
            "model": fingerprint(lm.model).digest,
            "source": identity(source),
            "tokens": n_tokens,
            "documents": documents,
            "seed": seed if source == SELF else None,
            **({"column": column} if lm.encoder_decoder else {}),
        }
        self._recipe = json.dumps(recipe)
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:24]
        self._stem = (Path(directory) if directory else cache_dir() / "moments") / digest

    def _file(self, end: object) -> Path:
        return self._stem.with_name(f"{self._stem.name}-{end}.safetensors")

    @property
    def text(self) -> Path:
        """The file of the sampled text."""
        return self._file("text")

    def checkpoint(self, layers: Sequence[int]) -> Path:
        """The file of the running sums of layers that are being collected."""
        which = hashlib.sha256(json.dumps(list(layers)).encode()).hexdigest()[:8]
        return self._file(f"half-{which}")

    def load(self, layer: int) -> Moments | None:
        """The cached moment of a layer; None if there is no file, or an unusable one."""
        file = self._file(layer)
        stored = read_cache_file(file, CONTENT)
        if stored is None:
            return None
        tensors, info = stored
        try:
            matrix, tokens = tensors["moment"], int(info["tokens"])
            if "digest" not in info and not _plausible(matrix.diagonal()):
                raise ValueError("the diagonal of a second moment is finite and not negative")
            return Moments(matrix, tokens, info["source"], file, info.get("digest", ""))
        except (KeyError, ValueError, RuntimeError, IndexError) as error:
            ignored(file, CONTENT, repr(error))
            return None

    def store(self, layer: int, moment: Moments) -> Moments:
        """Write a moment; the returned one is mapped from its file, if that could be written."""
        info = {
            "tokens": str(moment.tokens),
            "source": moment.source,
            "recipe": self._recipe,
            "digest": digest_of(moment.matrix),
        }
        matrix = moment.matrix.contiguous()
        if not write_cache_file(self._file(layer), {"moment": matrix}, info, CONTENT):
            return moment
        return self.load(layer) or moment
