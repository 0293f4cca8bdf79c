"""What a fine-tuning trains: whole matrices, or low-rank changes beside frozen ones.

A parametrization holds the float32 tensors an optimiser steps on, lets the model compute with
them (the model's own weights are only read) and turns them into the parts of a patch.

- :class:`FullMatrices`: stand-ins for the weights themselves, optionally within an L∞ box.
- :class:`LowRankProducts`: ``W + (α/r) A B`` (LoRA, arXiv 2106.09685). ``B`` starts at zero, so
  training starts at the model as it is. It never touches ``W``, so a quantized ``W`` will do.
- :class:`BudgetedProducts`: ``W + (α/r) P diag(λ) Q`` with a budget for the number of λ that are
  not zero (AdaLoRA, arXiv 2303.10512).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from easyeditor.errors import HyperParamsError
from easyeditor.lm.hooks import substituting
from easyeditor.lm.projection import NamedWeight
from easyeditor.lm.quantized import is_quantized, replaced_by
from easyeditor.lm.restoring import hooks_on
from easyeditor.patches.parts import Dense, LowRank, WeightPart

ORTHOGONALITY = 0.5
"""Weight of AdaLoRA's penalty on factors that are not orthogonal."""
SMOOTHING = 0.85
"""Of AdaLoRA's running importance and of its uncertainty."""


class Parametrization(ABC):
    """Trained tensors that stand for changes of a model's weights.

    Attributes:
        parameters: float32 leaves for the optimiser.
    """

    parameters: list[torch.Tensor]

    @property
    def settled(self) -> bool:
        """Whether training may stop now."""
        return True

    @abstractmethod
    def applied(self, model: nn.Module) -> AbstractContextManager[None]:
        """The model computes with the trained tensors inside; gradients flow to them."""

    @abstractmethod
    def parts(self) -> dict[str, list[WeightPart]]:
        """The change of each weight. It may use the tensors up: call it once, at the end."""

    def penalty(self) -> torch.Tensor | None:
        """What is added to the loss beside the objective."""
        return None

    def after_step(self) -> None:  # noqa: B027
        """Called after every step of the optimiser, with the gradients still there."""

    def after_epoch(self, progress: float) -> None:  # noqa: B027
        """Called after every epoch; ``progress`` is the share of all epochs that is done."""


class FullMatrices(Parametrization):
    """The weights themselves, trained in float32 whatever the model's precision.

    A bfloat16 step of 5e-4 rounds to nothing. The weights that training starts from are read again
    when they are needed, not kept.

    Args:
        weights: what is trained.
        box: every number stays within ± this of where it was; None: anywhere.
        start: where a weight's training starts, in the shape it is stored in; by default the
            weight as it is.
        earlier: what is taken off a weight's change, in that shape.
    """

    def __init__(
        self,
        weights: Sequence[NamedWeight],
        box: float | None = None,
        start: Callable[[NamedWeight], torch.Tensor] | None = None,
        earlier: Callable[[NamedWeight], torch.Tensor | None] | None = None,
    ) -> None:
        self._weights, self._box = weights, box
        self._start = start or (lambda weight: weight.stored)
        self._earlier = earlier or (lambda weight: None)
        self._trained = {
            weight.path: self._start(weight).to(torch.float32, copy=True).requires_grad_()
            for weight in weights
        }
        self.parameters = list(self._trained.values())

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """See :class:`Parametrization`."""
        precisions = {weight.path: weight.dtype for weight in self._weights}
        tensors = {path: tensor.to(precisions[path]) for path, tensor in self._trained.items()}
        with substituting(model, tensors):
            yield

    @torch.no_grad()
    def after_step(self) -> None:
        """Put every number back into the box."""
        if self._box is None:
            return
        for weight in self._weights:
            trained, start = self._trained[weight.path], self._start(weight)
            low = start.to(torch.float32, copy=True).sub_(self._box)
            torch.maximum(trained, low, out=trained)
            del low
            high = start.to(torch.float32, copy=True).add_(self._box)
            torch.minimum(trained, high, out=trained)

    def parts(self) -> dict[str, list[WeightPart]]:
        """See :class:`Parametrization`."""
        entries: dict[str, list[WeightPart]] = {}
        self.parameters = []
        for weight in self._weights:
            change = self._trained.pop(weight.path).detach().sub_(self._start(weight).float())
            earlier = self._earlier(weight)
            if earlier is not None:
                change.sub_(earlier)
            oriented = change.T if weight.transposed else change
            entries[weight.path] = [Dense(oriented.contiguous())]
        return entries


class _Products(Parametrization):
    """Changes of linear maps that are added to their outputs: ``y + change(x)``.

    Args:
        weights: matrices of linear layers.
        dropout: share of the inputs of a change that is left out in each pass.
        generator: of the first factors and of what is left out.
    """

    def __init__(
        self, weights: Sequence[NamedWeight], dropout: float, generator: torch.Generator
    ) -> None:
        refuse_other_than_matrices(weights)
        self._weights, self._dropout, self._generator = weights, dropout, generator

    @abstractmethod
    def _change(self, path: str, x: torch.Tensor) -> torch.Tensor:
        """``x`` ``(…, d_in)`` float32 to what the weight's change adds ``(…, d_out)``."""

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """See :class:`Parametrization`."""

        def adding(path: str) -> Any:
            def add(_module: nn.Module, args: tuple[torch.Tensor, ...], y: torch.Tensor) -> Any:
                x = args[0].to(self.parameters[0].device, torch.float32)
                if self._dropout:
                    mask = torch.rand(x.shape, generator=self._generator) >= self._dropout
                    x = x * mask.to(x.device) / (1 - self._dropout)
                return y + self._change(path, x).to(y.device, y.dtype)

            return add

        modules = [model.get_submodule(w.path.rpartition(".")[0]) for w in self._weights]
        hooks = [adding(weight.path) for weight in self._weights]
        with hooks_on(list(zip(modules, hooks, strict=True))):
            yield


class LowRankProducts(_Products):
    """``W + (α/r) A B`` with ``A`` ``(d_in, r)`` as Kaiming draws it and ``B`` ``(r, d_out)`` zero.

    Args:
        weights, dropout, generator: as of :class:`_Products`.
        rank: ``r``; no larger than a matrix is wide.
        alpha: ``α``.
    """

    def __init__(
        self,
        weights: Sequence[NamedWeight],
        rank: int,
        alpha: float,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(weights, dropout, generator)
        self._scale = alpha / rank
        self._factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for weight in weights:
            d_in, d_out = widths(weight)
            r = min(rank, d_in, d_out)
            a = (2 * torch.rand(d_in, r, generator=generator) - 1) / d_in**0.5
            b = torch.zeros(r, d_out)
            device = weights[0].device
            self._factors[weight.path] = (
                a.to(device).requires_grad_(),
                b.to(device).requires_grad_(),
            )
        self.parameters = [tensor for factors in self._factors.values() for tensor in factors]

    def _change(self, path: str, x: torch.Tensor) -> torch.Tensor:
        a, b = self._factors[path]
        return (x @ a) @ b * self._scale

    def parts(self) -> dict[str, list[WeightPart]]:
        """See :class:`Parametrization`."""
        return {
            path: [LowRank(a.detach(), b.detach() * self._scale)]
            for path, (a, b) in self._factors.items()
        }


class BudgetedProducts(_Products):
    """``W + (α/r) P diag(λ) Q``, with fewer and fewer λ other than zero.

    The budget falls from ``rank`` to ``final_rank`` per matrix on average, by a cubic from
    ``warmup`` to ``1 − cooldown`` of the epochs. After every epoch the triplets ``(P_i, λ_i, Q_i)``
    of the smallest importance, over all matrices, have their λ set to zero; the importance of a
    number is a running mean of ``|w · gradient|`` times that of its fluctuation. The trap: training
    must not stop before the budget is reached (:attr:`settled`).

    Args:
        weights, alpha, dropout, generator: as of :class:`LowRankProducts`.
        rank: triplets per matrix at first.
        final_rank: on average at the end.
        warmup: share of the epochs before the budget begins to fall.
        cooldown: share of the epochs after it has fallen.
    """

    def __init__(
        self,
        weights: Sequence[NamedWeight],
        rank: int,
        final_rank: int,
        alpha: float,
        dropout: float,
        generator: torch.Generator,
        warmup: float = 0.1,
        cooldown: float = 0.3,
    ) -> None:
        super().__init__(weights, dropout, generator)
        self._scale, self._warmup, self._cooldown = alpha / rank, warmup, cooldown
        device = weights[0].device
        self._triplets: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        for weight in weights:
            d_in, d_out = widths(weight)
            r = min(rank, d_in, d_out)
            p = 0.02 * torch.randn(d_in, r, generator=generator)
            q = 0.02 * torch.randn(r, d_out, generator=generator)
            self._triplets[weight.path] = (
                p.to(device).requires_grad_(),
                torch.zeros(r, device=device).requires_grad_(),
                q.to(device).requires_grad_(),
            )
        self.parameters = [tensor for triplet in self._triplets.values() for tensor in triplet]
        self._importance = {id(tensor): torch.zeros_like(tensor) for tensor in self.parameters}
        self._uncertainty = {id(tensor): torch.zeros_like(tensor) for tensor in self.parameters}
        self._alive = {path: lam.detach() == 0 for path, (_, lam, _) in self._triplets.items()}
        self._first = sum(len(alive) for alive in self._alive.values())
        self._last = min(self._first, final_rank * len(weights))

    @property
    def settled(self) -> bool:
        """Whether no more triplets are left than the last budget allows."""
        return sum(int(alive.sum()) for alive in self._alive.values()) <= self._last

    def _change(self, path: str, x: torch.Tensor) -> torch.Tensor:
        p, lam, q = self._triplets[path]
        return ((x @ p) * lam) @ q * self._scale

    def penalty(self) -> torch.Tensor:
        """How far ``P`` and ``Q`` are from orthogonal, in the Frobenius norm, mean over both."""
        grams = [gram for p, _, q in self._triplets.values() for gram in (p.T @ p, q @ q.T)]
        distances = [(gram - torch.eye(len(gram), device=gram.device)).norm() for gram in grams]
        return ORTHOGONALITY * torch.stack(distances).mean()

    @torch.no_grad()
    def after_step(self) -> None:
        """Follow the importance of every number, and leave what is cut at zero."""
        for tensor in self.parameters:
            if tensor.grad is None:
                continue
            now = (tensor * tensor.grad).abs()
            importance, uncertainty = self._importance[id(tensor)], self._uncertainty[id(tensor)]
            importance.lerp_(now, 1 - SMOOTHING)
            uncertainty.lerp_((now - importance).abs(), 1 - SMOOTHING)
        for path, (_, lam, _) in self._triplets.items():
            lam.mul_(self._alive[path])

    @torch.no_grad()
    def after_epoch(self, progress: float) -> None:
        """Cut the least important triplets beyond the budget."""
        done = (progress - self._warmup) / max(1 - self._warmup - self._cooldown, 1e-9)
        done = min(max(done, 0.0), 1.0)
        budget = self._last + round((self._first - self._last) * (1 - done) ** 3)
        scores = torch.cat([self._scores(path).cpu() for path in self._triplets])
        alive = torch.cat([alive.cpu() for alive in self._alive.values()])
        scores = torch.where(alive, scores, -torch.inf)
        chosen = torch.zeros(len(scores), dtype=torch.bool)
        chosen[scores.topk(min(budget, int(alive.sum()))).indices] = True
        lengths = [len(mask) for mask in self._alive.values()]
        for path, mask in zip(self._triplets, torch.split(chosen, lengths), strict=True):
            self._alive[path] = mask.to(self._alive[path].device)
            self._triplets[path][1].mul_(self._alive[path])

    def _scores(self, path: str) -> torch.Tensor:
        p, lam, q = (
            self._importance[id(tensor)] * self._uncertainty[id(tensor)]
            for tensor in self._triplets[path]
        )
        return lam + p.mean(0) + q.mean(1)

    def parts(self) -> dict[str, list[WeightPart]]:
        """See :class:`Parametrization`; the triplets that were cut are left out."""
        entries: dict[str, list[WeightPart]] = {}
        for path, (p, lam, q) in self._triplets.items():
            alive = self._alive[path]
            u = p.detach()[:, alive].contiguous()
            v = (lam.detach() * self._scale)[alive, None] * q.detach()[alive]
            entries[path] = [LowRank(u, v.contiguous())]
        return {path: parts for path, parts in entries.items() if parts[0].rank} or entries


def widths(weight: NamedWeight) -> tuple[int, int]:
    """``(d_in, d_out)`` of a matrix."""
    rows, columns = weight.shape
    return (columns, rows) if weight.transposed else (rows, columns)


def refuse_other_than_matrices(weights: Sequence[NamedWeight]) -> None:
    """Check that every weight is the matrix of a linear layer.

    Raises:
        HyperParamsError: one is something else; all are named.
    """
    wrong = [weight.path for weight in weights if not _linear(weight)]
    if wrong:
        raise HyperParamsError(
            f"A low-rank change is of a linear layer's matrix, and {', '.join(wrong[:3])}"
            f"{' …' * (len(wrong) > 3)} is none. Name linear layers in target_modules, as "
            "print(model) shows them (of a mixture of experts, attention projections)."
        )


def _linear(weight: NamedWeight) -> bool:
    module = replaced_by(weight.module) or weight.module
    known = isinstance(module, (nn.Linear, Conv1D)) or is_quantized(module)
    return known and len(weight.shape) == 2 and weight.path.endswith(".weight")
