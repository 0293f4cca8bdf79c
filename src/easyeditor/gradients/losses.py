"""Losses of logits: negative log-likelihood and KL divergence, per token and per row.

:func:`nll_and_kl` has a fused backward pass: both losses are cross-entropies, whose gradient is
``softmax − expected distribution``, so one copy of the logits is kept where autograd keeps four.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from easyeditor.lm.tokens import Row

FIRST = -1
"""Stands for the first distribution in the place of a target token."""


def target_nll(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Mean negative log-likelihood of each row's target, ``(rows,)`` float32.

    Args:
        logits: ``(sum of target lengths, vocabulary)``, as ``lm.target_logits`` gives them.
        rows: the rows they belong to.
    """
    targets = torch.tensor([token for row in rows for token in row.target], device=logits.device)
    per_token = nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    return mean_per_row(per_token, rows)


def mean_per_row(per_token: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Mean over each row's target of one number per target token, ``(rows,)``."""
    lengths = torch.tensor([len(row.target) for row in rows], device=per_token.device)
    index = torch.repeat_interleave(torch.arange(len(rows), device=per_token.device), lengths)
    return per_token.new_zeros(len(rows)).index_add(0, index, per_token) / lengths


def kl_per_token(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """KL(before ‖ after) of log-probabilities ``(n, vocabulary)``, ``(n,)``."""
    return nn.functional.kl_div(after, before, reduction="none", log_target=True).sum(-1)


def nll_and_kl(
    logits: torch.Tensor, targets: torch.Tensor, first: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """NLL or KL(initial ‖ current) of each row, float32, and the initial log-probabilities.

    Args:
        logits: ``(rows, vocabulary)``.
        targets: ``(rows,)``: a token, or ``FIRST`` for KL(first ‖ now).
        first: ``(rows with FIRST, vocabulary)`` log-probabilities; None takes the present ones.
    """
    value, initial = _NllAndKl.apply(logits, targets, first)  # type: ignore[no-untyped-call]
    return value, initial


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
