"""Per phase: seconds, floating-point operations, bytes, and the share of what the machine can do.

A phase is a function of the package, wrapped where it is called; what happens inside a phase that
has a name of its own counts there and not outside. Operations and bytes come from a second run
under a dispatch mode, because counting takes time.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry


class Meter:
    """Exclusive seconds, operations and bytes of each phase, and the seconds it cannot go below.

    The limit of a kernel is its operations at ``rates[0]`` or its bytes at ``rates[1]``, whichever
    takes longer; ``computing`` and ``moving`` are the sums of either kind.
    """

    def __init__(self, rates: tuple[float, float]) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.flops: dict[str, float] = defaultdict(float)
        self.bytes: dict[str, float] = defaultdict(float)
        self.computing: dict[str, float] = defaultdict(float)
        self.moving: dict[str, float] = defaultdict(float)
        self._rates = rates
        self._open: list[str] = ["other"]
        self._since = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What runs inside belongs to ``name``."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def count(self, flops: float, moved: float) -> None:
        """Add a kernel to the phase that is open."""
        phase = self._open[-1]
        self.flops[phase] += flops
        self.bytes[phase] += moved
        computing, moving = flops / self._rates[0], moved / self._rates[1]
        if computing > moving:
            self.computing[phase] += computing
        else:
            self.moving[phase] += moving

    @contextmanager
    def watching(self, seams: Sequence[tuple[Any, str, str]]) -> Iterator[None]:
        """Inside, calling ``module.name`` (or a class's method) is the phase given with it."""
        with ExitStack() as stack:
            for module, name, phase in seams:
                stack.enter_context(patch.object(module, name, self._wrapped(module, name, phase)))
            yield
        self._turn()

    def _wrapped(self, module: Any, name: str, phase: str) -> Callable[..., Any]:
        call = getattr(module, name)

        def measured(*args: Any, **more: Any) -> Any:
            with self.phase(phase):
                return call(*args, **more)

        return measured


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations of the matrix products, and the bytes every kernel reads and writes.

    Caches are not modelled: an operand counts each time it is used, a view costs nothing.
    """

    def __init__(self, meter: Meter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._meter = meter

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [t for t in tree_iter((args, kwargs or {})) if isinstance(t, torch.Tensor)]
        made = [t for t in tree_iter(out) if isinstance(t, torch.Tensor)]
        if not func.is_view:
            moved = sum(t.numel() * t.element_size() for t in [*given, *made])
            self._meter.count(_flops(func, given, args, kwargs or {}, out), moved)
        return out


def _flops(func: Any, given: list[torch.Tensor], args: Any, kwargs: Any, out: Any) -> float:
    name = func._overloadpacket.__name__
    if name in ("linear", "matmul"):  # in inference mode they are not taken apart
        return float(2 * out.numel() * given[0].shape[-1])
    if name == "scaled_dot_product_attention":
        return 4 * given[0].numel() * given[1].shape[-2]
    if name == "linalg_cholesky_ex":
        return given[0].shape[-1] ** 3 / 3
    if name == "linalg_solve_triangular":
        return given[0].shape[-1] ** 2 * given[1].shape[-1]
    if name == "_scaled_dot_product_flash_attention_for_cpu":
        query, key = given[0], given[1]
        return 4 * query.numel() * key.shape[-2]
    if name == "_scaled_dot_product_flash_attention_for_cpu_backward":
        query, key = given[1], given[2]
        return 10 * query.numel() * key.shape[-2]
    counted = flop_registry.get(func._overloadpacket)
    return float(counted(*args, **kwargs, out_val=out)) if counted else 0.0


def matrix_rate(size: int = 2048, times: int = 5) -> float:
    """Float32 operations per second of a square matrix product, the best of some."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / min(_timed(lambda: a @ b) for _ in range(times))


def copy_rate(megabytes: int = 512, times: int = 5) -> float:
    """Bytes per second, read and written, of a copy that no cache holds."""
    a = torch.ones(megabytes * 2**18)
    b = torch.empty_like(a)
    return 2 * a.numel() * 4 / min(_timed(lambda: b.copy_(a)) for _ in range(times))


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
