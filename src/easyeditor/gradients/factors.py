"""The gradient of a loss at a weight, as the factors it is the sum of, and changes row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from easyeditor.gradients.losses import target_nll
from easyeditor.lm.forward.batching import row_batches
from easyeditor.lm.model import LM
from easyeditor.lm.projection import Projection
from easyeditor.lm.restoring import hooks_on
from easyeditor.lm.tokens import Row
from easyeditor.progress import bar

TOKENS = 512
"""Padded tokens per forward and backward pass."""


@dataclass(frozen=True, slots=True)
class Factors:
    """``x`` and ``δ`` of one weight at every position that the loss depends on.

    Attributes:
        x: the layer's inputs, ``(n, d_in)`` float32.
        delta: gradients at its outputs, ``(n, d_out)`` float32.
        row: which row of the batch each belongs to, ``(n,)``.
        place: its position in that row, ``(n,)``.
    """

    x: torch.Tensor
    delta: torch.Tensor
    row: torch.Tensor
    place: torch.Tensor


Logits = Callable[[Sequence[Row]], torch.Tensor]
"""Rows to logits at their target tokens, as ``LM.target_logits``."""


def factors_of(
    logits: Logits, sites: Sequence[Projection], rows: Sequence[Row]
) -> dict[str, Factors]:
    """The factors for every weight and every row, from one forward and one backward pass.

    The loss is the sum over rows of the target's mean negative log-likelihood, so each row's
    factors are what they would be alone. Call it inside ``lm.at_rest()``.
    """
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}

    def seeing(path: str) -> Any:
        def see(_module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> Any:
            inputs[path] = args[0].detach()
            # The graph begins at the lowest of these weights: nothing below it is needed.
            outputs[path] = output if output.requires_grad else output.detach().requires_grad_()
            return outputs[path].clone()  # some families add to a projection's output in place

        return see

    hooks = [(site.module, seeing(site.path)) for site in sites]
    with torch.enable_grad(), hooks_on(hooks):
        loss = target_nll(logits(rows), rows).sum()
        paths = [site.path for site in sites]
        gradients = torch.autograd.grad(loss, [outputs[path] for path in paths])
    factors = {}
    for path, gradient in zip(paths, gradients, strict=True):
        delta = gradient.reshape(len(rows), -1, gradient.shape[-1]).float()
        x = inputs[path].reshape(len(rows), -1, inputs[path].shape[-1]).float()
        row, place = (delta != 0).any(-1).nonzero(as_tuple=True)
        factors[path] = Factors(x[row, place], delta[row, place], row, place)
    return factors


def answer_factors(
    lm: LM, sites: Sequence[Projection], rows: Sequence[Row], logits: Logits | None = None
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and output gradients ``(n, d_in)``, ``(n, d_out)`` where answers are predicted.

    Each row's loss is its own mean NLL, so a row's factors do not depend on the other rows. In an
    encoder-decoder every token is taken, as each has a part in the answer. ``logits`` stands for
    ``lm.target_logits``.
    """
    parts: dict[str, dict[int, tuple[torch.Tensor, torch.Tensor]]] = {s.path: {} for s in sites}
    with bar(len(rows), "gradients at answers", "row") as progress:
        for chunk in row_batches(rows, TOKENS, TOKENS):
            batch = [rows[i] for i in chunk]
            with lm.at_rest():
                factors = factors_of(logits or lm.target_logits, sites, batch)
            for path, result in factors.items():
                for position, i in enumerate(chunk):
                    taken = _predicting(lm, result, position, batch[position])
                    parts[path][i] = result.x[taken], result.delta[taken]
            progress.update(len(chunk))
    return {
        path: (
            torch.cat([by_row[i][0] for i in range(len(rows))]),
            torch.cat([by_row[i][1] for i in range(len(rows))]),
        )
        for path, by_row in parts.items()
    }


def _predicting(lm: LM, factors: Factors, position: int, row: Row) -> torch.Tensor:
    """Which factors belong to one row's predictions of its answer, as a mask."""
    of_row = factors.row == position
    if lm.encoder_decoder:
        return of_row
    return of_row & (factors.place >= row.prompt_length - 1)


@contextmanager
def differentiable(
    lm: LM, changes: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
) -> Iterator[None]:
    """Every row is computed as if the weights carried the same change; they are not touched.

    Args:
        lm: the model.
        changes: per weight ``u`` ``(r, d_in)`` and ``v`` ``(r, d_out)``: the weight in
            ``(d_in, d_out)`` gains ``uᵀ v``.
    """

    def adding(u: torch.Tensor, v: torch.Tensor) -> Any:
        def add(_module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> Any:
            change = (args[0].to(u.device, u.dtype) @ u.T) @ v
            return output + change.to(output.device, output.dtype)

        return add

    with hooks_on(_by_module(lm, {path: adding(u, v) for path, (u, v) in changes.items()})):
        yield


def _by_module(lm: LM, hooks: Mapping[str, Any]) -> list[tuple[nn.Module, Any]]:
    return [(lm.model.get_submodule(path.rpartition(".")[0]), hook) for path, hook in hooks.items()]


@contextmanager
def differentiable_per_row(
    lm: LM,
    changes: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    owners: Sequence[int],
) -> Iterator[None]:
    """Row ``i`` of a batch is computed as if the weights carried the change ``owners[i]``.

    Many edits, each alone, in one forward pass; differentiable; the weights are not touched.

    Args:
        lm: the model.
        changes: per weight ``u`` ``(changes, r, d_in)`` and ``v`` ``(changes, r, d_out)``: the
            weight in ``(d_in, d_out)`` gains ``uᵀ v``.
        owners: per row of the batch, whose change it sees.
    """
    index = torch.tensor(owners)

    def adding(u: torch.Tensor, v: torch.Tensor) -> Any:
        def add(_module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> Any:
            at = index.to(u.device)
            x = args[0].reshape(len(index), -1, args[0].shape[-1]).to(u.device, u.dtype)
            change = (x @ u[at].transpose(1, 2)) @ v[at]
            return output + change.reshape(output.shape).to(output.device, output.dtype)

        return add

    with hooks_on(_by_module(lm, {path: adding(u, v) for path, (u, v) in changes.items()})):
        yield
