"""What the benchmark scripts share: facts, peak memory, the machine, a results file."""

from __future__ import annotations

import ctypes
import gc
import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

from easyeditor.edits import Edit

T = TypeVar("T")
FIRST = ("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas")
LAST = (
    "Lindqvist",
    "Moreau",
    "Okafor",
    "Petrov",
    "Quintana",
    "Rossi",
    "Schneider",
    "Tanaka",
    "Urban",
    "Vogel",
)
RELATIONS = (
    ("The mother tongue of {} is", ("Danish", "Korean", "Spanish", "Polish")),
    ("{} plays the", ("violin", "trumpet", "piano", "drums")),
    ("{} was born in the city of", ("Vienna", "Boston", "Madrid", "Cairo")),
    ("{} works as a", ("lawyer", "baker", "pilot", "surgeon")),
    ("The favourite sport of {} is", ("tennis", "hockey", "rowing", "chess")),
)  # fmt: skip


def made_up_edits(n: int) -> list[Edit]:
    """Up to 1100 edits about made-up people, five relations in turn."""
    people = [f"{first} {last}" for last in LAST for first in FIRST]
    people += [f"{first} {last}-{other}" for other in LAST for last in LAST for first in FIRST]
    edits = []
    for i, person in enumerate(people[:n]):
        prompt, answers = RELATIONS[i % len(RELATIONS)]
        edits.append(Edit(prompt.format(person), answers[i // 5 % 4], subject=person))
    return edits


def memory_mb(which: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (peak since :func:`reset_peak`) of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(which)).split()[1]) / 1024


def reset_peak() -> None:
    """Give freed memory back, then let ``VmHWM`` start again from what is resident (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def measured(call: Callable[[], T]) -> tuple[T, float, float]:
    """What a call gives, its seconds, and the MB of memory it needs on top at its peak (Linux)."""
    reset_peak()
    before = memory_mb("VmRSS")
    start = time.perf_counter()
    made = call()
    return made, time.perf_counter() - start, memory_mb("VmHWM") - before


def touch(model: torch.nn.Module) -> None:
    """Bring memory-mapped weights into memory, so that they count before an edit, not in it."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def model_mb(model: torch.nn.Module) -> float:
    """Size of the weights in MB."""
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20


def processor() -> str:
    """The CPU's name and the number of threads torch uses."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor()
    return f"{name}, {torch.get_num_threads()} threads"


def write(name: str, results: Mapping[str, object]) -> None:
    """Print the results and keep them under ``benchmarks/results/``."""
    whole: dict[str, object] = {
        "machine": processor(),
        "torch": torch.__version__,
        "when": time.strftime("%Y-%m-%d"),
    }
    whole |= results
    print(json.dumps(whole, indent=1))
    place = Path(__file__).parent / "results" / f"{name}.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps(whole, indent=1) + "\n")
