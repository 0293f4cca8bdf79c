"""Keys of earlier edits, stored in their patches, that later edits must leave alone.

A later edit adds these keys to its system with a residual of zero (``K₁`` in AlphaEdit, arXiv
2410.02355). They are stored per edit in the patch (:attr:`Patch.extras`), not in a running sum:
when an edit is undone, its keys leave with its patch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from easyeditor.edits import Edit
from easyeditor.patches.stack import applied_patches


def keys_as_extras(
    edits: Sequence[Edit], keys: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """The extras of a patch that stores the keys of its edits.

    Args:
        edits: those of the patch; each has a subject.
        keys: by parameter path the keys ``(n, d_in)``, and the edit each belongs to ``(n,)``.
    """
    ids = torch.tensor([_subject_id(edit) for edit in edits])
    extras = {}
    for path, (vectors, owner) in keys.items():
        extras[f"keys:{path}"] = vectors.float().cpu()
        extras[f"subjects:{path}"] = ids[owner.cpu()]
    return extras


def protected_keys(model: nn.Module, path: str, new: Sequence[Edit]) -> torch.Tensor | None:
    """The keys ``(n, d_in)`` that the patches of ``model`` store for a weight, oldest edit first.

    An edit whose subject (without one, whose prompt) is edited anew is left out: the later edit
    replaces it. None where no patch stores any.
    """
    replaced = torch.tensor([_subject_id(edit) for edit in new])
    stored = [
        patch.extras[f"keys:{path}"][~torch.isin(patch.extras[f"subjects:{path}"], replaced)]
        for patch in applied_patches(model)
        if f"keys:{path}" in patch.extras
    ]
    return torch.cat(stored) if stored else None


def without_stored_keys(model: nn.Module, path: str, new: Sequence[Edit]) -> list[Edit]:
    """The edits of weights that ``model`` carries and whose patches store no keys for ``path``.

    Edits without a subject, and those whose subject is edited anew, are left out.
    """
    replaced = {_subject_id(edit) for edit in new}
    return [
        edit
        for patch in applied_patches(model)
        if patch.kind == "weights" and f"keys:{path}" not in patch.extras
        for edit in patch.info.edits
        if edit.subject is not None and _subject_id(edit) not in replaced
    ]


def _subject_id(edit: Edit) -> int:
    name = edit.prompt.text if edit.subject is None else edit.subject
    name += "".join(image.sha256 for image in edit.prompt.images)  # "the flag" of this picture
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
