"""How large a patch is, matrix by matrix, and how much memory making it took."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from easyeditor.lm.model import LM
from easyeditor.lm.originals import unedited
from easyeditor.lm.weights import weight_handle
from easyeditor.patches.patch import Patch
from easyeditor.patches.weight import WeightPatch

STEPS = 40
"""Of the Lanczos iteration."""
ENOUGH = 1e-5
TINY = 1e-30
"""Stands for the norm of a matrix of zeros."""


@torch.no_grad()
def sizes(lm: LM, patch: Patch) -> dict[str, dict[str, float]]:
    """``{matrix: {"norm": ‖ΔW‖, "relative": ‖ΔW‖/‖W‖, "spectral": largest singular value}}``.

    Frobenius norms; ``W`` is the unedited matrix. The spectral norm is found by Lanczos iteration
    from a fixed start, good to about 1e-3.
    """
    out: dict[str, dict[str, float]] = {}
    if not isinstance(patch, WeightPatch):
        return out
    for path in patch.entries:
        storage = weight_handle(lm.model, path)
        weight = storage.read(unedited(lm.model, path, storage))
        change = patch.dense(path)
        norm = change.norm().item()
        out[path] = {
            "norm": norm,
            "relative": norm / max(weight.detach().float().norm().item(), TINY),
            "spectral": _largest(change),
        }
    return out


def _largest(matrix: torch.Tensor) -> float:
    scale = matrix.abs().max().item()
    if not scale:
        return 0.0
    matrix = matrix / scale
    # The row of greatest norm is never orthogonal to the whole row space.
    vector = matrix[matrix.norm(dim=1).argmax()]
    basis = (vector / vector.norm())[None]
    for _ in range(min(STEPS, *matrix.shape) - 1):
        vector = (matrix @ basis[-1]) @ matrix
        whole = vector.norm()
        for _ in range(2):  # once leaves rounding errors behind
            vector = vector - (basis @ vector) @ basis
        if vector.norm() < ENOUGH * whole:  # the basis spans all there is
            break
        basis = torch.cat([basis, (vector / vector.norm())[None]])
    return scale * torch.linalg.matrix_norm(matrix @ basis.T, 2).item()


class Peak:
    """Filled when :func:`peak_memory` is left: the peak in MB, and above what was held before."""

    total_mb: float = 0.0
    extra_mb: float = 0.0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Peak memory inside, of the accelerator or (on a CPU) of the process.

    The trap: only Linux lets a process reset its peak; elsewhere it is the peak since its start.
    """
    peak = Peak()
    memory: Any = getattr(torch, device.type, None)  # torch.cuda, torch.xpu: they count it
    if hasattr(memory, "max_memory_allocated"):
        memory.reset_peak_memory_stats(device)
        before = memory.memory_allocated(device) / 2**20
        yield peak
        peak.total_mb = memory.max_memory_allocated(device) / 2**20
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _resident("VmRSS")
        yield peak
        peak.total_mb = _resident("VmHWM")
    peak.extra_mb = max(0.0, peak.total_mb - before)


def _resident(field: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024
    except (OSError, StopIteration):
        import resource  # not on Windows, whose users must live without this number

        unit = 2**20 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
