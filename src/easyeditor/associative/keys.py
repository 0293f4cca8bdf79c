"""Keys and values of an MLP at one token: what goes into the down-projection and what comes out.

In the papers' notation the down-projection ``W`` maps a key ``k`` ``(d_in,)`` to a value ``v``
``(d_out,)``; both are read at the subject's last token (arXiv 2202.05262, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from easyeditor.edits import IMAGE, Edit
from easyeditor.errors import SubjectRequiredError, UnsupportedModelError
from easyeditor.lm.caches import LMCache
from easyeditor.lm.forward.batching import row_batches
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.hooks import (
    Reading,
    adding,
    hidden_of,
    reading_inputs,
    reading_output,
    stopping,
)
from easyeditor.lm.image_tokens import through_unit
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Row
from easyeditor.patches.stack import without_patches
from easyeditor.progress import bar

TOKENS = 256
"""Padded tokens per forward pass."""
WRITE_SCALES: LMCache[int, float | None] = LMCache(
    "the share of a down-projection's output that arrives at the block's; by layer"
)


def subject_of(edit: Edit) -> str:
    """The edit's subject.

    Raises:
        SubjectRequiredError: it has none.
    """
    if edit.subject is None:
        image = f", or subject={IMAGE!r}, the image itself" if edit.prompt.images else ""
        raise SubjectRequiredError(
            f"The edit of {edit.prompt!r} names no subject, and this method locates the fact by "
            f"it. Give subject=..., the words of the prompt that the fact is about{image}."
        )
    return edit.subject


def subject_rows(lm: LM, edit: Edit, contexts: Sequence[str]) -> list[Row]:
    """``prefix + prompt`` for each context, cut after the token where the fact is read.

    Later tokens cannot change what a causal model reads there, so they are not run; an
    encoder-decoder is given the whole prompt. ``subject_last`` of a row is that position, see
    :func:`fact_at`.
    """
    rows = []
    for context in contexts:
        row = lm.text.row(edit.prompt, subject=subject_of(edit), prefix=context)
        at = fact_at(lm, row)
        rows.append(
            Row(row.ids if lm.encoder_decoder else row.ids[: through_unit(row.ids, at + 1)], (), at)
        )
    return rows


def expansion_rows(lm: LM, edit: Edit) -> list[Row]:
    """:func:`subject_rows` of the edit's expansions, each without a prefix."""
    return [row for other in edit.expansions for row in subject_rows(lm, other, ("",))]


def rows_of_expansions(lm: LM, edits: Sequence[Edit]) -> tuple[list[Row], list[int]]:
    """The :func:`expansion_rows` of all edits, and the edit that each belongs to."""
    rows = [expansion_rows(lm, edit) for edit in edits]
    return [row for some in rows for row in some], [i for i, some in enumerate(rows) for _ in some]


def fact_at(lm: LM, row: Row) -> int:
    """The position of the edited column that stands for the row's subject.

    It is the subject's last token, or the decoder's first position where a decoder is edited behind
    an encoder. A causal model gives its first position no part in what the text says: nearly every
    head rests there (an attention sink, arXiv 2309.17453), and a vector added to it is lost beside
    its huge activations. So a subject that is the very first token (a tokenizer without BOS) is
    read one token later, unless the prompt ends there.
    """
    assert row.subject_last is not None
    if lm.encoder_decoder:
        return row.subject_last if lm.in_encoder else 0
    return min(max(row.subject_last, 1), row.prompt_length - 1)


def keys_at(lm: LM, layers: Sequence[int], rows: Sequence[Row]) -> dict[int, torch.Tensor]:
    """Inputs of the down-projections at each row's subject-last: ``{layer: (rows, d_in)}``.

    Float32; one pass for all layers, stopping at the highest.
    """
    ordered = sorted(set(layers))
    projections = [lm.down_map(layer) for layer in ordered]
    if not rows:
        return {
            layer: torch.empty(0, projection.d_in, device=projection.device)
            for layer, projection in zip(ordered, projections, strict=True)
        }
    read = inputs_at(lm, [p.module for p in projections], rows, [p.keys for p in projections])
    return dict(zip(ordered, read, strict=True))


def inputs_at(
    lm: LM,
    modules: Sequence[nn.Module],
    rows: Sequence[Row],
    readings: Sequence[Reading] | None = None,
) -> list[torch.Tensor]:
    """What some modules read at each row's subject-last, ``(rows, width)`` each, float32.

    Args:
        lm: the model.
        modules: in the order in which a pass meets them; it stops at the last.
        rows: with ``subject_last``.
        readings: what is made of each module's inputs; None: the first of them, as it is.
    """
    result = [torch.empty(0) for _ in modules]
    with lm.at_rest(), torch.no_grad(), bar(len(rows), "reading keys", "prompt") as progress:
        for chunk in row_batches(rows, TOKENS, 1 << 30):
            batch = lm.pad([rows[i].ids for i in chunk])
            with reading_inputs(modules, readings) as inputs, stopping():
                lm.call(batch)
            for i, seen in enumerate(inputs):
                assert seen is not None
                keys = _at_subject(seen, [rows[n] for n in chunk])
                if not len(result[i]):
                    result[i] = keys.new_empty(len(rows), keys.shape[1])
                result[i][chunk] = keys
            progress.update(len(chunk))
    return result


def values_at(lm: LM, site: Site, rows: Sequence[Row]) -> torch.Tensor:
    """Outputs of the site's module at each row's subject-last, ``(rows, width)``, float32."""
    result = torch.empty(0)
    with lm.at_rest(), torch.no_grad(), bar(len(rows), "reading values", "prompt") as progress:
        for chunk in row_batches(rows, TOKENS, 1 << 30):
            batch = lm.pad([rows[i].ids for i in chunk])
            with reading_output(site.module(lm), stop=True) as outputs, stopping():
                lm.call(batch)
            values = _at_subject(hidden_of(outputs[0]), [rows[i] for i in chunk])
            if not len(result):
                result = values.new_empty(len(rows), values.shape[1])
            result[chunk] = values
            progress.update(len(chunk))
    return result


def _at_subject(hidden: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """A copy of each row's subject-last, float32: a view would hold the whole pass in memory."""
    at = torch.tensor([row.subject_last for row in rows], device=hidden.device)
    wide = hidden.view(len(rows), -1, hidden.shape[-1])
    return wide[torch.arange(len(rows), device=hidden.device), at].float()


def write_scale(lm: LM, layer: int) -> float | None:
    """How much of what the down-projection writes arrives at the block's output.

    1 for a plain residual stream, the multiplier where there is one (Granite), and None where a
    norm comes between (Gemma 2 and 3, OLMo 2) or a gate that depends on the token (the shared
    expert of Qwen's mixtures): then no vector added at the block's output can be written exactly.
    Measured on the unedited model, once per layer.
    """
    scales = WRITE_SCALES(lm)
    if layer not in scales:
        scale = _write_scale(lm, layer, "The")
        if scale is not None and lm.has_experts(layer):
            other = _write_scale(lm, layer, "Paris, 1889")
            if other is None or abs(other - scale) > 0.01 * abs(scale):
                scale = None
        scales[layer] = scale
    return scales[layer]


def _write_scale(lm: LM, layer: int, text: str) -> float | None:
    batch = lm.pad([lm.text.plain(text)])
    last = batch.ids.shape[1] - 1
    at, block = torch.tensor([last]), lm.blocks[layer]
    width = lm.down_map(layer).d_out
    direction = torch.randn(1, width, generator=torch.Generator().manual_seed(0))

    def output(delta: torch.Tensor) -> torch.Tensor:
        down = lm.down_map(layer).module
        with adding(down, at, delta), reading_output(block, stop=True) as result, stopping():
            lm.call(batch)
        if not result:
            raise UnsupportedModelError(
                f"Block {layer} of {type(lm.model).__name__} does not run for text without an "
                "image (it reads images), so how much it adds cannot be measured; name another "
                "layer."
            )
        return hidden_of(result[0])[0, last].float().cpu()

    with without_patches(lm.model), lm.at_rest(), torch.no_grad():
        plain = output(torch.zeros(1, width))
        delta = direction * plain.norm() / direction.norm()
        once, twice = output(delta) - plain, output(2 * delta) - plain
    scale = float(once @ delta[0] / (delta[0] @ delta[0]))
    error = (once - scale * delta[0]).norm() + (twice - 2 * once).norm()
    return scale if error < 0.05 * once.norm() else None
