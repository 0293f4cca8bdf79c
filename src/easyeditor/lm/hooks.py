"""Looking into a forward pass: reading inputs, adding vectors, reading few logits, stopping early.

These are the only places that know what a block or a projection may return: a tensor or a tuple,
``(rows, length, width)`` or OPT's flattened ``(rows * length, width)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from easyeditor.lm.restoring import hooks_on, restoring
from easyeditor.lm.weights import WeightHandle, weight_handle


class Stop(Exception):
    """Raised by a hook once nothing above it is needed."""


def hidden_of(output: Any) -> torch.Tensor:
    """The hidden states in a block's output."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden(output: Any, hidden: torch.Tensor) -> Any:
    """The same kind of output holding other hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def rows_of(value: Any, rows: torch.Tensor, n: int) -> Any:
    """Some rows of what a module gave for ``n``; what all rows share stays as it is."""
    if isinstance(value, ModelOutput):
        return type(value)(**{name: rows_of(item, rows, n) for name, item in value.items()})
    if isinstance(value, tuple):
        return tuple(rows_of(item, rows, n) for item in value)
    if isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == n:
        return value[rows.to(value.device)]
    return value


Reading = Callable[[tuple[Any, ...]], torch.Tensor]
"""What is made of a module's inputs."""


@contextmanager
def reading_inputs(
    modules: Sequence[nn.Module],
    read_of: Sequence[Reading] | None = None,
) -> Iterator[list[torch.Tensor | None]]:
    """Record the first input of each module, or what ``read_of`` makes of its inputs.

    The forward pass stops at the last module of the list.

    Yields the list that fills up. Wrap the call of the model in :func:`stopping`.
    """
    result: list[torch.Tensor | None] = [None] * len(modules)

    def hook(index: int) -> Callable[..., None]:
        def read(_module: nn.Module, args: tuple[Any, ...]) -> None:
            result[index] = args[0] if read_of is None else read_of[index](args)
            if index == len(modules) - 1:
                raise Stop

        return read

    with hooks_on([(module, hook(i)) for i, module in enumerate(modules)], before=True):
        yield result


@contextmanager
def reading_output(module: nn.Module, *, stop: bool) -> Iterator[list[Any]]:
    """Record a module's output (as it is); with ``stop`` nothing above it is computed."""
    result: list[Any] = []

    def read(_module: nn.Module, _args: Any, output: Any) -> None:
        result.append(output)
        if stop:
            raise Stop

    with hooks_on([(module, read)]):
        yield result


@contextmanager
def reading_outputs(modules: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """Record a copy of every module's output in one pass; the list fills up.

    Copies, as a block may go on to write into what its parts gave (Falcon adds attention's output
    to the MLP's in place).
    """
    outputs: list[Any] = [None] * len(modules)

    def recorder(index: int) -> Callable[..., None]:
        def record(_module: nn.Module, _args: Any, output: Any) -> None:
            outputs[index] = with_hidden(output, hidden_of(output).clone())

        return record

    with hooks_on([(module, recorder(i)) for i, module in enumerate(modules)]):
        yield outputs


@contextmanager
def stopping() -> Iterator[None]:
    """Swallow the :class:`Stop` of an early end."""
    try:
        yield
    except Stop:
        return


def added(
    output: Any, positions: torch.Tensor, delta: torch.Tensor, rows: torch.Tensor | None = None
) -> Any:
    """A block's output with ``delta`` ``(rows, width)`` at one position per row; a new tensor.

    With ``rows``, ``positions[i]`` is one of row ``rows[i]``, so that a row may have several.
    """
    hidden = hidden_of(output)
    seen = hidden.view(len(delta), -1, hidden.shape[-1])
    if rows is None:
        rows = torch.arange(len(positions))
    else:
        delta = delta[rows.to(delta.device)]
    changed = seen.index_put(
        (rows.to(hidden.device), positions.to(hidden.device)),
        delta.to(device=hidden.device, dtype=hidden.dtype),
        accumulate=True,
    )
    return with_hidden(output, changed.view(hidden.shape))


@contextmanager
def adding(
    module: nn.Module,
    positions: torch.Tensor,
    delta: torch.Tensor,
    rows: torch.Tensor | None = None,
) -> Iterator[None]:
    """Add ``delta`` ``(rows, width)`` to the module's output, as :func:`added` does.

    A flattened output is seen as ``(rows, -1, width)``. The output is never changed in place.
    """

    def add(_module: nn.Module, _args: Any, output: Any) -> Any:
        return added(output, positions, delta, rows)

    with hooks_on([(module, add)]):
        yield


@contextmanager
def replacing_input(
    module: nn.Module, n: int, rows: torch.Tensor, values: torch.Tensor
) -> Iterator[None]:
    """Let the module see ``values`` ``(len(rows), width)`` at the last position of some rows.

    ``n`` is the number of rows of the batch: a flattened input is seen as ``(n, -1, width)``. The
    input is never changed in place, and gradients flow to ``values``.
    """

    def replace(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        seen = hidden.view(n, -1, hidden.shape[-1])
        at = rows.to(hidden.device)
        last = torch.full_like(at, seen.shape[1] - 1)
        new = values.to(device=hidden.device, dtype=hidden.dtype)
        return (seen.index_put((at, last), new).view(hidden.shape), *args[1:])

    with hooks_on([(module, replace)], before=True):
        yield


@contextmanager
def gathering(head: nn.Module, rows: torch.Tensor, positions: torch.Tensor) -> Iterator[None]:
    """Compute logits only where they are read: the head sees ``(1, reads, width)``.

    The model's own head, soft-caps and scales stay in place; its output becomes
    ``(1, reads, vocabulary)``.
    """

    def gather(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        picked = hidden[rows.to(hidden.device), positions.to(hidden.device)]
        return (picked[None], *args[1:])

    with hooks_on([(head, gather)], before=True):
        yield


@contextmanager
def substituting(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Compute with these tensors in place of the named parameters, which are not touched.

    Gradients flow to the tensors. The parameters are the same objects before and after.
    """
    held: list[tuple[nn.Module, str, dict[str, nn.Parameter | None]]] = []
    as_loaded: list[WeightHandle] = []

    def undo() -> None:
        for module, name, whole in reversed(held):
            vars(module).pop(name, None)
            if [*module._parameters] != [*whole]:  # in their order: optimisers go by it
                module._parameters.clear()
                module._parameters.update(whole)
        for handle in as_loaded:
            handle.set_raw(None)

    with restoring(undo):
        for path, tensor in tensors.items():
            handle = weight_handle(model, path)
            if handle.raw is None:  # a packed weight's layer computes with nothing else
                as_loaded.append(handle)
                handle.set_raw(tensor.detach())
            owner, _, name = path.rpartition(".")
            module = model.get_submodule(owner)
            held.append((module, name, dict(module._parameters)))
            del module._parameters[name]
            object.__setattr__(module, name, tensor)
        yield
