"""Several patches at once, each for some rows of a batch: many single edits in one evaluation.

An edit that is measured alone needs a model to itself, but its rows need not run alone: the row
of patch ``b`` adds ``x Δ_b`` to what the edited projection gives. Forward passes over the cases of
a benchmark are then as large as for one model.

In float32 this equals applying the patches to the weights, up to the order of a sum. In lower
precision it does not (there the edited weights are rounded), so it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from easyeditor.lm.forward.context import derive_contexts, has_adapters, patch_of_row
from easyeditor.lm.model import LM
from easyeditor.lm.restoring import hooks_on, restoring
from easyeditor.patches.module import ModulePatch, RowHook, adapters_at, sites_of
from easyeditor.patches.parts import LowRank
from easyeditor.patches.parts import WeightPart as Part
from easyeditor.patches.patch import Patch
from easyeditor.patches.weight import WeightPatch

SHARE = 4
"""The changes may take one part in so many of the model's size."""


def can_apply_per_row(lm: LM, patches: Sequence[Patch | None]) -> bool:
    """Whether :func:`applied_per_row` is exact and small enough here."""
    if not all(p is None or isinstance(p, (WeightPatch, ModulePatch)) for p in patches):
        return False
    weights = [p for p in patches if isinstance(p, WeightPatch)]
    paths = {path for patch in weights for path in patch.entries}
    named = dict(lm.model.named_parameters())
    owners = [lm.model.get_submodule(path.rpartition(".")[0]) for path in paths]
    plain = all(isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D" for m in owners)
    if not plain or not all(path in named and path.endswith(".weight") for path in paths):
        return False
    if any(named[path].dtype != torch.float32 for path in paths):
        return False
    if any(sum(p is named[path] for p in lm.model.parameters()) > 1 for path in paths):
        return False
    size = sum(_numbers(parts) for p in weights for parts in p.entries.values())
    return size * SHARE <= sum(p.numel() for p in named.values())


def _numbers(parts: Sequence[Part]) -> int:
    if all(isinstance(part, LowRank) for part in parts):
        return sum(part.u.numel() + part.v.numel() for part in parts if isinstance(part, LowRank))
    return parts[0].shape[0] * parts[0].shape[1]


@contextmanager
def applied_per_row(lm: LM, patches: Sequence[Patch | None]) -> Iterator[None]:
    """Rows whose ``patch_of_row`` is ``i`` are computed as if the model carried ``patches[i]``.

    Nothing in the model is changed but its hooks. ``None``, and a pass that names no patches: the
    model as it is.
    """
    weights = [p.entries if isinstance(p, WeightPatch) else None for p in patches]
    adapters = [p if isinstance(p, ModulePatch) else None for p in patches]
    hooks: list[tuple[nn.Module, Any]] = []
    for path in dict.fromkeys(path for entries in weights for path in entries or ()):
        module = lm.model.get_submodule(path.rpartition(".")[0])
        changes = [None if entries is None else entries.get(path) for entries in weights]
        hooks.append((module, _Adding(lm.model, changes)))
    at_sites: list[tuple[nn.Module, Any]] = []
    for site in sites_of(adapters):
        at_site = [() if p is None else adapters_at([p]).get(site, ()) for p in adapters]
        at_sites.append((lm.model.get_submodule(site), RowHook(lm.model, site, at_site)))
    had_adapters = has_adapters(lm.model)

    def undo() -> None:
        if at_sites and not had_adapters:
            derive_contexts(lm.model, False)

    with hooks_on(hooks), hooks_on(at_sites, with_kwargs=True), restoring(undo):
        if at_sites and not had_adapters:
            derive_contexts(lm.model, True)
        yield


class _Adding:
    """A forward hook that adds to each row the change of its patch; a copied model gets its own."""

    def __init__(self, model: nn.Module, changes: Sequence[Sequence[Part] | None]) -> None:
        self.model = model
        self.u, self.v = _stacked(changes)

    def __call__(
        self, _module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> Any:
        """The output with the changes."""
        index = patch_of_row(self.model)
        if index is None:
            return output
        index = index.cpu()
        x = args[0].reshape(len(index), -1, args[0].shape[-1])  # OPT's MLP input is flat
        change = x @ self.u[index].to(x.device)
        if self.v is not None:
            change = change @ self.v[index].to(x.device)
        return output + change.reshape(output.shape)


def _stacked(
    changes: Sequence[Sequence[Part] | None],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``u`` and ``v`` of every patch with zeros for missing ranks, or ``Δ`` and None."""
    some = next(parts for parts in changes if parts is not None)
    d_in, d_out = some[0].shape
    low = all(isinstance(part, LowRank) for parts in changes for part in parts or ())
    if not low:
        whole = torch.zeros(len(changes), d_in, d_out)
        for i, parts in enumerate(changes):
            for part in parts or ():
                whole[i] += part.dense().cpu()
        return whole, None
    rank = max(sum(part.u.shape[1] for part in _low(parts)) for parts in changes)
    u, v = torch.zeros(len(changes), d_in, rank), torch.zeros(len(changes), rank, d_out)
    for i, parts in enumerate(changes):
        at = 0
        for part in _low(parts):
            end = at + part.u.shape[1]
            u[i, :, at:end], v[i, at:end] = part.u.cpu(), part.v.cpu()
            at = end
    return u, v


def _low(parts: Sequence[Part] | None) -> list[LowRank]:
    return [part for part in parts or () if isinstance(part, LowRank)]
