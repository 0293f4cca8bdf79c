"""``SideMemory``: what one edit adds to a copy of a weight, and the router over several memories.

The copy ``W + Δ`` of a linear layer answers in place of ``W`` for prompts whose activation
``a(x) = mean over the prompt's tokens of ‖x Δ‖`` is large (WISE, arXiv 2405.14768). Δ is zero
outside a random mask. Edits of one shard train the same mask one after the other, and each
stores its own increment, so ``Δ`` of a shard is their sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from easyeditor.lm.forward.context import ForwardContext
from easyeditor.patches.adapter import Adapter
from easyeditor.patches.routed import RoutedAdapter


def packed(mask: torch.Tensor) -> torch.Tensor:
    """A boolean tensor as bytes of eight bits, flattened."""
    bits = torch.nn.functional.pad(mask.reshape(-1).to(torch.uint8), (0, -mask.numel() % 8))
    weights = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8)
    return (bits.view(-1, 8) * weights).sum(1, dtype=torch.uint8)


def unpacked(data: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """What :func:`packed` was given."""
    bits = (data.cpu()[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.reshape(-1)[: shape[0] * shape[1]].bool().view(shape)


def activations(prompts: Sequence[torch.Tensor], delta: torch.Tensor) -> torch.Tensor:
    """``a(x)`` of each prompt's inputs ``(tokens, d_in)``, ``(prompts,)``.

    The first token is left out where there are others: nearly every head rests there (an attention
    sink), so what a layer reads there is long and the same for all prompts.
    """
    read = [inputs[min(1, len(inputs) - 1) :] for inputs in prompts]
    sizes = (torch.cat(read) @ delta).norm(dim=-1)
    return torch.stack([some.mean() for some in sizes.split([len(some) for some in read])])


def ties(deltas: Sequence[torch.Tensor], density: float) -> torch.Tensor:
    """Merge changes by TIES (arXiv 2306.01708): trim, elect a sign per entry, mean of agreeing.

    Args:
        deltas: of one shape.
        density: the share of each change's nonzero entries that is kept, the largest.
    """
    trimmed = []
    for delta in deltas:
        sizes = delta.abs()
        n = max(1, round(density * int((sizes > 0).sum())))
        least = sizes.flatten().kthvalue(sizes.numel() - n + 1).values
        trimmed.append(torch.where(sizes >= least, delta, 0))
    stacked = torch.stack(trimmed)
    agreeing = (stacked * stacked.sum(0).sign()) > 0
    return (stacked * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)


class SideMemory(Adapter):
    """The increment of one edit.

    Args:
        mask: of the shard, :func:`packed`.
        values: ``(entries of the mask,)``: what the edit adds there, row by row.
        inputs: ``(tokens, d_in)``: what the layer reads at the edited prompt's tokens.
        shard: the number of the shard.
        ratio: a prompt is routed if its activation is over this share of the least one of the
            memory's edits.
        merged: merge finished shards by TIES; else all are kept, and the strongest answers.
        shard_size: edits after which a shard is finished.
        merge_size: edits of finished shards that are merged at once.
        density: of the merge.
    """

    name = "SideMemory"

    def __init__(
        self,
        mask: torch.Tensor,
        values: torch.Tensor,
        inputs: torch.Tensor,
        shard: int,
        ratio: float,
        merged: bool,
        shard_size: int,
        merge_size: int,
        density: float,
        d_out: int,
    ) -> None:
        super().__init__()
        self.register_buffer("mask", mask.detach().clone())
        self.register_buffer("values", values.detach().float().clone())
        self.register_buffer("inputs", inputs.detach().float().clone())
        self.shard, self.ratio, self.merged = int(shard), float(ratio), bool(merged)
        self.shard_size, self.merge_size = int(shard_size), int(merge_size)
        self.density, self.d_out = float(density), int(d_out)
        numbers = inputs.shape[-1] * self.d_out
        if inputs.dim() != 2 or not len(inputs) or len(mask) != -(-numbers // 8):
            raise ValueError(f"inputs {tuple(inputs.shape)}, a mask of {len(mask)} bytes")
        if int(self.where().sum()) != len(values):
            raise ValueError(f"{len(values)} values do not fill the mask")

    def settings(self) -> dict[str, Any]:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""
        names = ("shard", "ratio", "merged", "shard_size", "merge_size", "density", "d_out")
        return {name: getattr(self, name) for name in names}

    @property
    def output_width(self) -> int:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""
        return self.d_out

    def where(self) -> torch.Tensor:
        """The mask, ``(d_in, d_out)``."""
        return unpacked(self.get_buffer("mask"), (self.get_buffer("inputs").shape[1], self.d_out))

    def delta(self) -> torch.Tensor:
        """The increment, ``(d_in, d_out)``."""
        where = self.where()
        return torch.zeros(where.shape).masked_scatter_(where, self.get_buffer("values").cpu())

    def forward(self, x: torch.Tensor, y: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""
        result: torch.Tensor = type(self).merge([self])(x, y, context)
        return result

    @classmethod
    def merge(cls, adapters: Sequence[SideMemory]) -> Adapter:
        """The router over the memories that these edits make."""
        return SideMemories(adapters)


class SideMemories(RoutedAdapter):
    """Memories of one layer; never saved as one."""

    name = "SideMemories"

    def __init__(self, edits: Sequence[SideMemory]) -> None:
        super().__init__()
        shards = shards_of(edits)
        newest = max(shards)
        finished = [
            s
            for s, members in shards.items()
            if s < newest or len(members) >= members[0].shard_size
        ]
        first = edits[0]
        per_merge = max(2, first.merge_size // first.shard_size)
        together = finished[: len(finished) - len(finished) % per_merge] if first.merged else []
        deltas, members = [], []
        if together:
            deltas.append(ties([delta_of(shards[s]) for s in together], first.density))
            members.append([edit for s in together for edit in shards[s]])
        for shard, some in shards.items():
            if shard not in together:
                deltas.append(delta_of(some))
                members.append(some)
        self.register_buffer("deltas", torch.stack(deltas), persistent=False)
        self.ratio = first.ratio
        least = [
            float(activations([edit.get_buffer("inputs").cpu() for edit in some], delta).min())
            for some, delta in zip(members, deltas, strict=True)
        ]
        self.register_buffer("thresholds", torch.tensor(least), persistent=False)

    def route(self, x: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """See :class:`RoutedAdapter`: the memory whose activation is largest over its threshold."""
        deltas = self.get_buffer("deltas").to(x.device)
        least = self.get_buffer("thresholds").to(x.device).clamp(min=1e-12)
        prompt = context.prompt_tokens().to(x.device)
        result = torch.full((len(x),), -1, device=x.device)
        for row, (inputs, tokens) in enumerate(zip(x, prompt, strict=True)):
            some = inputs[tokens].float()
            sizes = torch.cat([activations([some], delta) for delta in deltas]) / least
            if len(some) and float(sizes.max()) > self.ratio:
                result[row] = sizes.argmax()
        return result

    def expert(self, x: torch.Tensor, y: torch.Tensor, entry: torch.Tensor) -> torch.Tensor:
        """See :class:`RoutedAdapter`: the output of the memory's copy of the weight."""
        change = torch.zeros(y.shape, device=y.device)
        for memory in sorted(set(entry.tolist())):
            rows = (entry == memory).nonzero()[:, 0]
            delta = self.get_buffer("deltas")[memory].to(x.device)
            change[rows] = (x[rows.to(x.device)].float() @ delta).to(y.device)
        return y + change.to(y.dtype)


def shards_of(edits: Sequence[SideMemory]) -> dict[int, list[SideMemory]]:
    """The edits of each shard, in their order."""
    result: dict[int, list[SideMemory]] = {}
    for edit in edits:
        result.setdefault(edit.shard, []).append(edit)
    return dict(sorted(result.items()))


def delta_of(edits: Sequence[SideMemory]) -> torch.Tensor:
    """The change that the edits of one shard make together, ``(d_in, d_out)``."""
    result = edits[0].delta()
    for edit in edits[1:]:
        result += edit.delta()
    return result
