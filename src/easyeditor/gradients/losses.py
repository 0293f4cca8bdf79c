"""How surprised a model is: −log p of a token, or the divergence from what it said at first.

Both are cross-entropies, and both gradients are ``softmax − what was expected``. Written out they
need one copy of the logits where autograd keeps four, and a vocabulary is wide.
"""

from __future__ import annotations

from typing import Any

import torch

FIRST = -1
"""Stands for the first distribution in the place of a target token."""


def nll_and_kl(
    logits: torch.Tensor, targets: torch.Tensor, first: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The surprise of each row, float32 and differentiable, and the first log-probabilities.

    Args:
        logits: ``(rows, vocabulary)``.
        targets: ``(rows,)``: a token, or ``FIRST`` for KL(first ‖ now).
        first: ``(rows with FIRST, vocabulary)`` log-probabilities; None takes the present ones.
    """
    value, kept = _NllAndKl.apply(logits, targets, first)  # type: ignore[no-untyped-call]
    return value, kept


class _NllAndKl(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor, first: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logp = logits.float().log_softmax(-1)
        targets = targets.to(logits.device)  # the head may be elsewhere than the blocks
        again = targets == FIRST
        value = -logp.gather(1, targets.clamp(min=0)[:, None])[:, 0]
        now = logp[again]
        first = now if first is None else first
        value[again] = (first.exp() * (first - now)).sum(-1)
        ctx.mark_non_differentiable(first)
        ctx.logp, ctx.targets, ctx.first, ctx.dtype = logp, targets, first, logits.dtype
        return value, first

    @staticmethod
    def backward(
        ctx: Any, gradient: torch.Tensor, _first: torch.Tensor
    ) -> tuple[torch.Tensor, None, None]:
        change = ctx.logp.exp_()  # in place: this graph is walked once
        del ctx.logp
        again = ctx.targets == FIRST
        rows = torch.arange(len(again), device=again.device)[~again]
        change[rows, ctx.targets[~again]] -= 1
        change[again] -= ctx.first.exp()
        return change.mul_(gradient[:, None]).to(ctx.dtype), None, None
