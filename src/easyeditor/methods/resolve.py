r"""Solve a whole list of edits again from the unedited model (after SimIE, ICML 2025).

Each edit is made alone on the unedited model, which gives what the weight should have been for it:
``W₀ + Δᵢ``. With ``Kᵢ`` the inputs at all tokens of its prompt and target, the weight that is
nearest to all of them at once is one ridge:

.. math:: \Delta = (\sum_i \Delta_i K_i K_i^\top) (\lambda I + \sum_i K_i K_i^\top)^{-1}

The published recursion over a sequence gives the same numbers, so the order of edits does not
matter, and leaving one out is exact: it is the list without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from easyeditor.associative.solve import Cholesky, closed_form, double
from easyeditor.edits import Edit, check_consistent
from easyeditor.errors import EditError
from easyeditor.lm.forward.batching import row_batches
from easyeditor.lm.hooks import reading_inputs, stopping
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Row
from easyeditor.methods.base import Method
from easyeditor.patches.stack import without_patches
from easyeditor.patches.weight import LowRank, Part, WeightPatch, one_part, weight_patch

TOKENS = 512
"""Padded tokens per forward pass."""


def resolve(
    lm: LM, method: Method[Any], edits: Sequence[Edit], *, ridge: float = 10.0
) -> WeightPatch:
    """One patch that carries out all ``edits``, each found on the unedited model.

    Args:
        lm: the model; patches that it carries are set aside meanwhile.
        method: makes the single edits; it must change weights by low-rank parts of linear layers.
        edits: in any order.
        ridge: λ, in units of squared inputs: 1e4 was published with ROME, 10 with MEMIT.

    Raises:
        ContradictingEditsError: one prompt, two targets.
        EditError: there is nothing to edit, or the method changes weights otherwise.
    """
    edits = list(edits)
    check_consistent(edits)
    with without_patches(lm.model):
        state = method.initial_state(lm)
        patches = [method.edit(lm, [edit], state).patch for edit in edits]
        changes: dict[str, list[LowRank | None]] = {}
        for i, patch in enumerate(patches):
            for path, part in _low_rank_parts(method, patch).items():
                changes.setdefault(path, [None] * len(edits))[i] = part
        rows = [lm.text.row(edit.prompt, edit.target) for edit in edits]
        entries: dict[str, list[Part]] = {}
        for path, parts in changes.items():
            inputs = _inputs(lm, path, rows)
            entries[path] = [_ridge(inputs, parts, ridge)]
    return weight_patch(lm, method.name, edits, method.hyperparams, entries, {})


def _low_rank_parts(method: Method[Any], patch: Any) -> dict[str, LowRank]:
    result: dict[str, LowRank] = {}
    for path, parts in getattr(patch, "entries", {}).items():
        part = one_part(parts)
        if not isinstance(part, LowRank) or not path.endswith(".weight"):
            result.clear()
            break
        result[path] = part
    if not result:
        raise EditError(
            f"resolve takes edits that change linear layers by low-rank parts; {method.name} made "
            f"a {type(patch).__name__} of another form. Use a method that solves for low-rank "
            "changes of down-projections."
        )
    return result


def _ridge(
    inputs: Sequence[torch.Tensor], parts: Sequence[LowRank | None], ridge: float
) -> LowRank:
    """The ridge over all edits, low-rank: edit ``i`` keeps its right factor ``vᵢ``.

    Args:
        inputs: per edit ``(tokens, d_in)``.
        parts: per edit its change alone; None where the edit leaves this weight.
        ridge: λ.
    """
    k = torch.cat([double(rows) for rows in inputs])
    u = closed_form(k.T, Cholesky.identity(), ridge)  # (d_in, tokens of all edits)
    left, right, start = [], [], 0
    for rows, part in zip(inputs, parts, strict=True):
        columns = u[:, start : start + len(rows)]
        start += len(rows)
        if part is not None:
            left.append(columns @ (double(rows) @ double(part.u)))
            right.append(part.v)
    return LowRank(torch.cat(left, 1).float().contiguous(), torch.cat(right).contiguous())


def _inputs(lm: LM, path: str, rows: Sequence[Row]) -> list[torch.Tensor]:
    """What a linear layer reads at every token of each row but the last target token."""
    module = lm.model.get_submodule(path.rpartition(".")[0])
    result = [torch.empty(0)] * len(rows)
    with lm.at_rest(), torch.no_grad():
        for chunk in row_batches(rows, TOKENS, 1 << 30):
            ids = [rows[i].ids if lm.encoder_decoder else rows[i].ids[:-1] for i in chunk]
            with reading_inputs([module]) as inputs, stopping():
                lm.call(lm.pad(ids))
            assert inputs[0] is not None
            hidden = inputs[0].reshape(len(chunk), -1, inputs[0].shape[-1])
            for i, row, tokens in zip(chunk, hidden, ids, strict=True):
                result[i] = row[: len(tokens)].float().clone()
    return result
