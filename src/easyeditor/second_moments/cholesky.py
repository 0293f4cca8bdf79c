"""Factored second moments on disk, so that no process factors what another one has.

A factor lies beside its moment and carries the moment's digest in its name: a moment that was
collected anew never meets an old factor. It takes as much disk as the moment, 4 bytes × d_in².
"""

from __future__ import annotations

from pathlib import Path

import torch

from easyeditor.associative.solve import Cholesky
from easyeditor.lm.weights import float64_device
from easyeditor.progress import bar
from easyeditor.second_moments import Moments, digest_of
from easyeditor.second_moments.cache_file import ignored, read_cache_file, write_cache_file

WHAT = "factored second moments"
SLOW_WIDTH = 6144
"""From this width on factoring takes more than two seconds on a CPU with few cores."""


def factor_of(made: Moments, device: torch.device) -> Cholesky:
    """The Cholesky factor of ``made.matrix``, on ``device``: from its file, or made and kept.

    The one from the file has the bits, and the layout, of the one that was made, and the moment is
    not read then: 4 % of a model with 7 billion parameters. The trap: making one uses
    ``made.matrix`` up, as there is no room for two.
    """
    if made.path is None:
        return _factored(made.matrix, device)
    digest = made.digest or digest_of(made.matrix)
    file = _file(made.path, digest)
    upper = _read(file, made.matrix.shape, digest)
    if upper is not None:
        return Cholesky(upper.to(float64_device(device)).mT)
    factor = _factored(made.matrix.contiguous(), device)
    write_cache_file(file, {"upper": factor.upper.cpu().contiguous()}, {"moment": digest}, WHAT)
    return factor


def factor_once(made: Moments, device: torch.device) -> None:
    """Make sure that the factor of a moment with a file is on disk, and hold nothing of it.

    Factoring takes 12 bytes × d_in² for a moment, best while nothing else is held.
    """
    if made.path and not _file(made.path, made.digest or digest_of(made.matrix)).exists():
        factor_of(made, device)


def _factored(matrix: torch.Tensor, device: torch.device) -> Cholesky:
    width = len(matrix)
    what = f"factoring second moments, {width} wide"
    with bar(1, what, "matrix", at_once=width >= SLOW_WIDTH) as progress:
        factor = Cholesky.of(matrix.to(device), overwrite=True)
        progress.update(1)
    return factor


def _file(moment: Path, digest: str) -> Path:
    return moment.with_name(f"{moment.stem}-{digest}.cholesky.safetensors")


def _read(file: Path, shape: torch.Size, digest: str) -> torch.Tensor | None:
    stored = read_cache_file(file, WHAT)
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
        ignored(file, WHAT, "it holds no Cholesky factor of this moment")
        return None
    return upper
