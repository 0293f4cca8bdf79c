"""Export an edited model as a checkpoint that plain transformers loads.

The checkpoint of the unedited model is copied, and the edited tensors are written over in it: it
keeps the precision of each tensor, the division into files, the tokenizer and every other bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from easyeditor.errors import UnsupportedModelError
from easyeditor.export.checkpoint import Checkpoint
from easyeditor.export.factors import weights_of
from easyeditor.export.result import Export
from easyeditor.files import check_writable_place, folder_written_whole
from easyeditor.lm.loading import save
from easyeditor.lm.model import LM
from easyeditor.lm.originals import unedited
from easyeditor.lm.quantized import quantized_layers
from easyeditor.lm.weights import weight_handle
from easyeditor.patches.patch import Patch
from easyeditor.patches.stack import applied, without_patches


def export_merged(
    patch: Patch | Sequence[Patch], folder: str | Path, *, lm: LM, force: bool = False
) -> Export:
    """Write the model with the patch's change in its weights into ``folder``.

    Where the model came from a checkpoint of safetensors, that is copied with the edited tensors
    replaced. Otherwise, or where its tensors have other names than the model's weights (fused
    experts), transformers writes a new one, in the checkpoint's precision and file size; the result
    says so.

    Args:
        patch: of weights; several are applied in their order.
        folder: missing or empty; it appears whole or not at all.
        lm: the model, as :func:`easyeditor.load` loaded it. It is left as it was.
        force: also for a model that the patch was not made for.

    Raises:
        PatchError: the patch changes no weight.
        PatchMismatchError: it was made for another model.
        UnsupportedModelError: the model is quantized.
        OutputError: the folder is not empty, cannot be written, or the disk is too full.
    """
    patches = [weights_of(p) for p in (patch if isinstance(patch, Sequence) else [patch])]
    if quantized_layers(lm.model):
        raise UnsupportedModelError(
            f"{lm.name} is quantized, and a file cannot hold some of its layers whole. Apply the "
            "patches to the unquantized model (the same files fit it), and quantize what is "
            "written."
        )
    place = Path(folder)
    source = None if lm.checkpoint is None else Checkpoint.find(lm.checkpoint)
    check_writable_place(place, folder=True, size=0 if source is None else source.bytes)
    paths = list(dict.fromkeys(path for one in patches for path in one.entries))
    notes: tuple[str, ...] = ()
    with ExitStack() as stack:
        stack.enter_context(without_patches(lm.model))
        for one in patches:
            if not force:
                one.check(lm.model)
            stack.enter_context(applied(lm.model, one))
        replaced = None if source is None else _replaced(lm, source, paths)
        if source is not None and replaced is not None:
            with folder_written_whole(place) as part:
                source.copy(part, replaced)
        else:
            save(lm, place, shard_bytes=None if source is None else source.largest_file_bytes)
            notes = (
                "The checkpoint was written anew by transformers, because the original is no "
                "safetensors or names its tensors otherwise.",
            )
    return Export("merged", place, place, dict.fromkeys(paths, 0.0), notes=notes)


def _replaced(lm: LM, source: Checkpoint, paths: Sequence[str]) -> dict[str, torch.Tensor] | None:
    """What the edited tensors of the checkpoint become; None where one cannot be told.

    A tensor is the one of a weight if it has the unedited weight's bits.
    """
    result = {}
    for path in paths:
        handle = weight_handle(lm.model, path)
        before = handle.read(unedited(lm.model, path, handle)).detach().cpu()
        after = handle.read_weight().detach().cpu()
        names = [name for name in _names(lm.model, path) if name in source.files]
        for name in names:
            stored = source.read(name)
            if stored.shape != before.shape or not torch.equal(stored.to(before.dtype), before):
                return None
            result[name] = after.to(stored.dtype)
        if not names:
            return None
    return result


def _names(model: nn.Module, path: str) -> list[str]:
    """What a weight may be called in a checkpoint.

    As any weight that shares its memory, with and without the prefix of the model without its head.
    """
    wanted = model.get_parameter(path)
    names = [
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter is wanted
    ]
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    short = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    return [*names, *short]
