"""Cholesky factors of second moments, cached on disk for all processes.

The file of a factor lies beside that of its moment and has the moment's digest in its name, so that
a moment that was collected again is never used with an old factor. It is as large as the moment:
4 bytes × d_in².
"""

from __future__ import annotations

from pathlib import Path

import torch

from easyeditor.associative.solve import Cholesky
from easyeditor.lm.weights import float64_device
from easyeditor.progress import bar
from easyeditor.second_moments import Moments, digest_of
from easyeditor.second_moments.cache_file import ignored, read_cache_file, write_cache_file

CONTENT = "factored second moments"
SLOW_WIDTH = 6144
"""From this width on factoring takes more than two seconds on a CPU with few cores."""


def factor_of(moment: Moments, device: torch.device) -> Cholesky:
    """The Cholesky factor of ``moment.matrix`` on ``device``, read from its file or computed.

    A factor that is read has the bits and the memory layout of the computed one, and the moment is
    not read (4 % of a model with 7 billion parameters). The trap: computing one overwrites
    ``moment.matrix``, to save the memory of a second matrix.
    """
    if moment.path is None:
        return _factored(moment.matrix, device)
    digest = moment.digest or digest_of(moment.matrix)
    file = _file(moment.path, digest)
    upper = _read(file, moment.matrix.shape, digest)
    if upper is not None:
        return Cholesky(upper.to(float64_device(device)).mT)
    factor = _factored(moment.matrix.contiguous(), device)
    write_cache_file(file, {"upper": factor.upper.cpu().contiguous()}, {"moment": digest}, CONTENT)
    return factor


def factor_once(moment: Moments, device: torch.device) -> None:
    """Factor a moment that has a file, unless its factor is on disk; keep nothing in memory.

    Factoring needs 12 bytes × d_in² for a short time.
    """
    if moment.path and not _file(moment.path, moment.digest or digest_of(moment.matrix)).exists():
        factor_of(moment, device)


def _factored(matrix: torch.Tensor, device: torch.device) -> Cholesky:
    """The factor, computed with a progress bar; it may take the memory of the matrix."""
    width = len(matrix)
    what = f"factoring second moments, {width} wide"
    with bar(1, what, "matrix", at_once=width >= SLOW_WIDTH) as progress:
        factor = Cholesky.of(matrix.to(device), overwrite=True)
        progress.update(1)
    return factor


def _file(moment: Path, digest: str) -> Path:
    return moment.with_name(f"{moment.stem}-{digest}.cholesky.safetensors")


def _read(file: Path, shape: torch.Size, digest: str) -> torch.Tensor | None:
    """The upper factor of the moment with this digest; None if the file holds none."""
    stored = read_cache_file(file, CONTENT)
    if stored is None:
        return None
    tensors, info = stored
    upper = tensors.get("upper")
    if (
        upper is None
        or info.get("moment") != digest
        or (upper.shape, upper.dtype) != (shape, torch.float32)
        or not bool(upper.diagonal().isfinite().all())
        or float(upper.diagonal().min()) <= 0
    ):
        ignored(file, CONTENT, "it holds no Cholesky factor of this moment")
        return None
    return upper
