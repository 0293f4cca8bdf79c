"""Eigendecompositions of second moments on disk, and the null spaces that are cut from them.

The decomposition takes minutes for a model with 7 billion parameters, and serves every share; like
a Cholesky factor it lies beside its moment, with the moment's digest in its name, and takes as much
disk.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from easyeditor.associative.solve import NullSpace, double, free_directions
from easyeditor.progress import bar
from easyeditor.second_moments import Moments, digest_of
from easyeditor.second_moments.cache_file import ignored, read_cache_file, write_cache_file
from easyeditor.second_moments.metric import MetricOfMoment

WHAT = "eigenvectors of second moments"
SLOW_WIDTH = 2048
"""From this width on the decomposition takes more than two seconds on a CPU with few cores."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NullSpaceOfMoment(MetricOfMoment):
    """``M = P``, the projector onto the directions that keys hardly use: AlphaEdit.

    Attributes:
        share: see :func:`~easyeditor.associative.solve.free_directions`.
        by: see there.
    """

    share: float
    by: Literal["directions", "trace"] = "directions"

    def compute(self, moment: Moments, device: torch.device) -> NullSpace:
        """The projector; its rank is logged.

        Raises:
            HyperParamsError: no direction, or every direction, would be free.
        """
        values, vectors = eigenvectors_of(moment, device)
        result = NullSpace(values, vectors, free_directions(values, self.share, self.by))
        log.info("null space: %d of %d directions may change", result.dimensions, len(values))
        return result

    def prepare(self, moment: Moments, device: torch.device) -> None:
        """Make sure that the decomposition is on disk, and the share leaves directions."""
        values, _ = _decomposition(moment, device)
        free_directions(values, self.share, self.by)


def eigenvectors_of(moment: Moments, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues ``(d_in,)`` float64, ascending, on the CPU; eigenvectors as rows, float32.

    From the moment's file beside, or computed and written there; both have the same bits.
    """
    values, vectors = _decomposition(moment, device)
    return values, vectors.to(device)


def _decomposition(moment: Moments, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, the eigenvectors wherever they are: mapped, or where they were computed."""
    if moment.path is None:
        return _decomposed(moment, device)
    digest = moment.digest or digest_of(moment.matrix)
    file = moment.path.with_name(f"{moment.path.stem}-{digest}.eigen.safetensors")
    stored = _read(file, moment.matrix.shape, digest)
    if stored is None:
        stored = _decomposed(moment, device)
        content = {"values": stored[0], "vectors": stored[1].cpu().contiguous()}
        write_cache_file(file, content, {"moment": digest}, WHAT)
    return stored


def _decomposed(moment: Moments, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    width = len(moment.matrix)
    what = f"decomposing second moments, {width} wide"
    with bar(1, what, "matrix", at_once=width >= SLOW_WIDTH) as progress:
        values, vectors = torch.linalg.eigh(double(moment.matrix.to(device)))
        progress.update(1)
    return values.cpu(), vectors.T.float().contiguous()


def _read(file: Path, shape: torch.Size, digest: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    stored = read_cache_file(file, WHAT)
    if stored is None:
        return None
    tensors, info = stored
    values, vectors = tensors.get("values"), tensors.get("vectors")
    if (
        values is None
        or vectors is None
        or info.get("moment") != digest
        or (vectors.shape, vectors.dtype) != (shape, torch.float32)
        or (values.shape, values.dtype) != (shape[:1], torch.float64)
    ):
        ignored(file, WHAT, "it holds no eigenvectors of this moment")
        return None
    return values, vectors
