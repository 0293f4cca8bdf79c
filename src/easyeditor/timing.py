"""Seconds per phase, and the peak of the memory that something took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Stopwatch:
    """Adds up the seconds spent in named phases.

    Example:
        >>> watch = Stopwatch()
        >>> with watch("solve"):
        ...     pass
        >>> list(watch.seconds)
        ['solve']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time what happens inside under ``phase``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent


class Peak:
    """Result of :func:`peak_memory`, filled on leaving it.

    Attributes:
        total_mb: the peak, in MB.
        extra_mb: the peak above what was held before.
    """

    total_mb: float = 0.0
    extra_mb: float = 0.0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Peak memory inside, of the accelerator or (on a CPU) of the process.

    The trap: only Linux lets a process reset its peak; elsewhere it is the peak since its start.
    """
    import torch  # late: commands that load no model time things, too

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


def peak_memory_so_far(device: torch.device) -> float:
    """Peak memory in MB since the last reset, of the accelerator or (on a CPU) of the process."""
    import torch

    memory: Any = getattr(torch, device.type, None)
    if hasattr(memory, "max_memory_allocated"):
        return float(memory.max_memory_allocated(device)) / 2**20
    return _resident("VmHWM")


def _resident(field: str) -> float:
    """MB of this process, by a field of Linux's ``/proc/self/status``; elsewhere the peak."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024
    except (OSError, StopIteration):
        import resource  # not on Windows, whose users must live without this number

        unit = 2**20 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
