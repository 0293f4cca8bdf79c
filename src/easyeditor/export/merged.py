"""Export an edited model as a checkpoint that plain transformers loads.

The checkpoint of the unedited model is copied, and the edited tensors are written over in it: it
keeps the precision of each tensor, the division into files, the tokenizer and every other bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from easyeditor.errors import UnsupportedModelError
from easyeditor.export.checkpoint import Checkpoint
from easyeditor.export.factors import LARGEST_SILENT_ERROR, weights_of
from easyeditor.export.result import Export
from easyeditor.files import check_writable_place, folder_written_whole
from easyeditor.lm.loading import save
from easyeditor.lm.model import LM
from easyeditor.lm.originals import unedited
from easyeditor.lm.quantized import quantized_layers
from easyeditor.lm.weights import weight_handle
from easyeditor.patches.parts import stored_transposed
from easyeditor.patches.patch import Patch
from easyeditor.patches.stack import applied, without_patches
from easyeditor.patches.weight import WeightPatch
from easyeditor.patches.weight_sum import WeightSum


def export_merged(
    patch: Patch | Sequence[Patch], folder: str | Path, *, lm: LM, force: bool = False
) -> Export:
    """Write the model with the patch's change in its weights into ``folder``.

    Where the model came from a checkpoint of safetensors, that is copied with the edited tensors
    replaced. Otherwise, or where its tensors have other names than the model's weights (fused
    experts), transformers writes a new one, in the checkpoint's precision and file size; the result
    says so. The errors are what rounding leaves out of the change: to the checkpoint's precision,
    and before that to the precision the model was loaded in.

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
    with ExitStack() as stack:
        stack.enter_context(without_patches(lm.model))
        for one in patches:
            if not force:
                one.check(lm.model)
            stack.enter_context(applied(lm.model, one))
        replaced = None if source is None else _replaced(lm, source, paths)
        if source is not None and replaced is not None:
            errors, notes = _rounding(lm, patches, source, replaced)
            tensors = {name: new for named in replaced.values() for name, new in named.items()}
            with folder_written_whole(place) as part:
                source.copy(part, tensors)
        else:
            errors, notes = _rounding(lm, patches, None, {path: {} for path in paths})
            save(lm, place, shard_bytes=None if source is None else source.largest_file_bytes)
            notes = [
                "The checkpoint was written anew by transformers, because the original is no "
                "safetensors or names its tensors otherwise.",
                *notes,
            ]
    return Export("merged", place, place, errors, notes=tuple(notes))


def _replaced(
    lm: LM, source: Checkpoint, paths: Sequence[str]
) -> dict[str, dict[str, torch.Tensor]] | None:
    """Per weight what the tensors of the checkpoint become; None where one cannot be told.

    A tensor is the one of a weight if it has the unedited weight's bits.
    """
    result: dict[str, dict[str, torch.Tensor]] = {}
    for path in paths:
        before, after = _before_and_after(lm.model, path)
        names = [name for name in _names(lm.model, path) if name in source.files]
        result[path] = {}
        for name in names:
            stored = source.read(name)
            if stored.shape != before.shape or not torch.equal(stored.to(before.dtype), before):
                return None
            result[path][name] = after.to(stored.dtype)
        if not names:
            return None
    return result


def _before_and_after(model: nn.Module, path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The unedited weight and the edited one, in the model's precision, on the CPU."""
    handle = weight_handle(model, path)
    before = handle.read(unedited(model, path, handle)).detach().cpu()
    return before, handle.read_weight().detach().cpu()


def _rounding(
    lm: LM,
    patches: Sequence[WeightPatch],
    source: Checkpoint | None,
    replaced: Mapping[str, Mapping[str, torch.Tensor]],
) -> tuple[dict[str, float], list[str]]:
    """``‖Δ − stored‖ / ‖Δ‖`` per weight, and what has to be said of it.

    The reference is the checkpoint's tensor plus the change, in float32 or better; without a
    checkpoint to read (``source`` None) the unedited weight of the model plus the change.
    """
    errors, notes = {}, []
    for path, tensors in replaced.items():
        before, after = _before_and_after(lm.model, path)
        pairs = [(source.read(name), new) for name, new in tensors.items()] if source else []
        pairs = pairs or [(before, after.to(lm.checkpoint_dtype or after.dtype))]
        errors[path] = max(_error(lm.model, path, patches, old, new) for old, new in pairs)
        loaded = str(before.dtype).removeprefix("torch.")
        stored = str(pairs[0][1].dtype).removeprefix("torch.")
        exact = all(torch.equal(old, before.to(old.dtype)) for old, _ in pairs)
        if not exact and errors[path] > 0:
            notes.append(
                f"{path} is stored in {stored} and the model was loaded in {loaded}, so the edited "
                f"matrix is rounded to {loaded} (error {errors[path]:.2g} of the change, by norm). "
                f"Load it in {stored} (dtype=, --dtype) to keep its precision."
            )
        elif errors[path] > LARGEST_SILENT_ERROR:
            notes.append(
                f"Rounding to {stored} leaves out {errors[path]:.0%} of the change of {path}, by "
                "norm: ask the written model the edited questions."
            )
    return errors, notes


def _error(
    model: nn.Module,
    path: str,
    patches: Sequence[WeightPatch],
    old: torch.Tensor,
    new: torch.Tensor,
) -> float:
    """``‖Δ − (new − old)‖ / ‖Δ‖`` of one tensor, with Δ added to ``old`` as a model adds it."""
    owner, _, name = path.rpartition(".")
    count = sum(len(patch.entries.get(path, ())) for patch in patches)
    change = WeightSum(path, stored_transposed(model.get_submodule(owner), name), patches, count)
    wanted = change.weight(old)
    missing = float(torch.linalg.vector_norm(wanted - new.to(wanted.dtype)))
    size = float(torch.linalg.vector_norm(wanted - old.to(wanted.dtype)))
    return missing / (size or 1.0)


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
