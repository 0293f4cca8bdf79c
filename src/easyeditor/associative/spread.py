"""Closed form of edits that are stored under several keys, at one layer of a spread change."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from easyeditor.associative.solve import KeyMetric, closed_form, key_energy
from easyeditor.lm.weights import float64_device

SMALLEST_SHARE = 1e-6
"""Of λ that the slack of an opening subject's key may be."""


def stored_keys(keys: torch.Tensor, kind: str) -> torch.Tensor:
    """The keys ``(edits, keys, d_in)`` that edits are stored under, of those of all contexts.

    ``"ridge"`` is every context's own; ``"averaged"`` one, in which the bare prompt's and the mean
    of the others count alike.
    """
    if kind == "averaged" and keys.shape[1] > 1:
        return (keys[:, :1] + keys[:, 1:].mean(1, keepdim=True)) / 2
    return keys


def energy_share(energy: torch.Tensor, usual: torch.Tensor) -> torch.Tensor:
    """``energy / usual`` between ``SMALLEST_SHARE`` and 1; 1 where neither has any.

    A projector leaves keys of its null space no energy at all: 0/0 must not become the slack of
    every edit of the batch, and a slack of 0 not a division by it.
    """
    usual = usual.clamp(min=0)
    share = torch.where(usual > 0, energy / usual, torch.ones_like(usual))
    return share.clamp(min=SMALLEST_SHARE, max=1)


def solve_directions(
    keys: torch.Tensor,
    opening: Sequence[int],
    contrast: torch.Tensor | None,
    earlier: Sequence[torch.Tensor],
    metric: KeyMetric,
    plain: KeyMetric,
    weight: float,
    kind: str,
    more: torch.Tensor | None = None,
    of_edit: Sequence[int] = (),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The columns of the closed form, summed over each edit's keys: ``(d_in, edits)``, float64.

    With them the keys ``(n, d_in)`` that were solved for, and the edit each belongs to ``(n,)``.

    The key after an opening subject is a common word's: it has little energy ``kᵀ C⁻¹ k``, and λ
    would hold most of its residual back. Its slack, and that of the contrast keys, is λ in
    proportion to its energy beside that of the edit's other keys.

    Args:
        keys: ``(edits, contexts, d_in)``, the bare prompt's first.
        opening: the edits whose subject is the first token of the bare prompt.
        contrast: ``(m, d_in)``, keys with a residual of zero.
        earlier: keys of earlier edits, each ``(m, d_in)``, with a residual of zero, too.
        metric: of the layer's keys, with some of the earlier keys held in it, perhaps.
        plain: the same without any, which says how much energy a key has.
        weight: λ, in units of ``kᵀ M k``.
        kind: what an edit's answer is stored under, see :func:`stored_keys`.
        more: keys of the edits' expansions ``(n, d_in)``; every one is stored, whatever ``kind``
            says of the contexts.
        of_edit: the edit that each of these belongs to.
    """
    per_edit = stored_keys(keys, kind)
    owner = torch.arange(len(keys), device=keys.device).repeat_interleave(per_edit.shape[1])
    if not opening and (more is None or not len(more)):
        solved = per_edit.flatten(0, 1)
        system = torch.cat([solved, *(k.to(solved) for k in earlier)])
        u = closed_form(system.T, metric, weight)[:, : len(solved)]
        return u.reshape(len(u), len(keys), -1).sum(2), solved, owner
    at = torch.tensor(opening, dtype=torch.long, device=keys.device)
    bare, rest = keys[at, 0], keys[at, 1:]
    solved, bare_at = per_edit.flatten(0, 1), at * per_edit.shape[1]
    if opening and per_edit is not keys:  # a mean of two places would stand for neither
        per_edit[at] = rest.mean(1, keepdim=True)
        bare_at = torch.arange(len(at), device=keys.device) + len(owner)
        solved, owner = torch.cat([per_edit.flatten(0, 1), bare]), torch.cat([owner, at])
    if more is not None and len(more):
        solved = torch.cat([solved, more])
        owner = torch.cat([owner, torch.tensor(of_edit, device=owner.device)])
    slack = torch.full(
        (len(solved),), weight, dtype=torch.float64, device=float64_device(keys.device)
    )
    share = torch.ones(len(at), dtype=torch.float64, device=slack.device)
    if opening and rest.shape[1]:
        elsewhere = key_energy(rest.flatten(0, 1), plain).view(len(at), -1).mean(1)
        share = energy_share(key_energy(bare, plain), elsewhere).to(share)
    slack[bare_at.to(slack.device)] *= share
    system = torch.cat([solved, *(k.to(solved) for k in earlier)])
    slack = torch.cat([slack, slack.new_full((len(system) - len(solved),), weight)])
    if contrast is not None:
        system = torch.cat([system, contrast])
        slack = torch.cat([slack, (weight * share.mean()).expand(len(contrast))])
    u = closed_form(system.T, metric, slack)[:, : len(owner)]
    return u.new_zeros(len(u), len(keys)).index_add_(1, owner.to(u.device), u), solved, owner
