"""Mean outputs of some modules over some tokens of each text, in one pass per batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from easyeditor.errors import HyperParamsError
from easyeditor.lm.forward.batching import row_batches
from easyeditor.lm.hooks import hidden_of
from easyeditor.lm.model import LM
from easyeditor.lm.restoring import hooks_on
from easyeditor.lm.tokens import Row
from easyeditor.patches.stack import without_patches
from easyeditor.progress import bar

TOKENS = 1024
"""Padded tokens per forward pass."""
Part = Literal["block", "attention", "mlp"]
PARTS: tuple[str, ...] = get_args(Part)
"""``block``: the residual stream after a block; the others: what its attention or MLP adds."""
Read = Literal["answer", "last"]
READS: tuple[str, ...] = get_args(Read)
"""``answer``: the mean over the answer's tokens; ``last``: the text's last token."""


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """Of every text and layer.

    Attributes:
        means: ``(texts, layers, width)``, float32: the mean output over the tokens read.
        norms: ``(texts, layers)``, the mean norm of the outputs at these tokens.
    """

    means: torch.Tensor
    norms: torch.Tensor


def part_at(lm: LM, layer: int, part: str) -> nn.Module:
    """The module whose output ``part`` names at a layer.

    Raises:
        HyperParamsError: there is no such part.
        UnsupportedModelError: the block has none.
    """
    if part == "block":
        return lm.blocks[layer]
    if part == "attention":
        return lm.sublayer(layer, "attention")
    if part == "mlp":
        return lm.sublayer(layer, "mlp")
    raise HyperParamsError(f"module={part!r}: a vector is read and added at {', '.join(PARTS)}.")


def path_of(lm: LM, module: nn.Module) -> str:
    """The name of a module in the model."""
    return next(name for name, inner in lm.model.named_modules() if inner is module)


@torch.no_grad()
def read_activations(
    lm: LM, rows: Sequence[Row], layers: Sequence[int], part: str = "block", read: str = "answer"
) -> Activations:
    """The mean outputs of a part at every layer, of the unedited model.

    A row without a target is read at its last token. An encoder-decoder is read in its decoder,
    once that has read each token of the target.

    Raises:
        HyperParamsError: there is no such part, or no such way to read.
        UnsupportedModelError: a block has no such part.
    """
    if read not in READS:
        raise HyperParamsError(f"read={read!r}: a text is read at {' or '.join(READS)}.")
    modules = [part_at(lm, layer, part) for layer in layers]
    means: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    norms: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    with without_patches(lm.model), lm.at_rest(), bar(len(rows), "reading", "text") as progress:
        for chunk in row_batches(rows, TOKENS, 1 << 30):
            some = [rows[i] for i in chunk]
            result: list[tuple[torch.Tensor, torch.Tensor]] = [_NOTHING] * len(modules)
            weights = _weights(lm, some, read)
            hooks = [(m, _pooling(result, i, weights)) for i, m in enumerate(modules)]
            with hooks_on(hooks):
                _run(lm, some)
            for k, i in enumerate(chunk):
                means[i] = torch.stack([mean[k].cpu() for mean, _ in result])
                norms[i] = torch.stack([norm[k].cpu() for _, norm in result])
            progress.update(len(chunk))
    return Activations(torch.stack(means), torch.stack(norms))


_NOTHING = (torch.empty(0), torch.empty(0))


def _run(lm: LM, rows: Sequence[Row]) -> None:
    more: dict[str, Any] = {}
    if lm.encoder_decoder:  # an input more than targets, so that the last one is read, too
        more["decoder_input_ids"] = lm.decoder_inputs([(*row.target, 0) for row in rows])
    ends = [len(row.ids) if lm.encoder_decoder else row.prompt_length for row in rows]
    lm.call(lm.pad([row.ids for row in rows]), prompt_end=[end - 1 for end in ends], **more)


def _weights(lm: LM, rows: Sequence[Row], read: str) -> torch.Tensor:
    """``(rows, length)``: the share of each token in its row's mean."""
    spans = []
    for row in rows:
        end = len(row.target) + 1 if lm.encoder_decoder else len(row.ids)
        whole = read == "answer" and bool(row.target)
        spans.append((end - len(row.target) if whole else end - 1, end))
    weights = torch.zeros(len(rows), max(end for _, end in spans))
    for i, (start, end) in enumerate(spans):
        weights[i, start:end] = 1 / (end - start)
    return weights


def _pooling(
    result: list[tuple[torch.Tensor, torch.Tensor]], index: int, weights: torch.Tensor
) -> Callable[..., None]:
    def pool(_module: nn.Module, _args: Any, output: Any) -> None:
        hidden = hidden_of(output)
        wide = hidden.reshape(len(weights), -1, hidden.shape[-1]).float()
        shares = weights.to(wide.device)
        mean = torch.einsum("rt,rtd->rd", shares, wide)
        result[index] = mean, (shares * wide.norm(dim=-1)).sum(1)

    return pool
