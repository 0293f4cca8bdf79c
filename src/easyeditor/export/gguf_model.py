"""Export a model as a whole GGUF file with the change of a patch in it.

The source is the GGUF file of the unedited model. Edited matrices are read, changed in float32 and
stored again; everything else keeps its bits. The trap is the type they are stored in: an entry of a
4-bit matrix that changes by less than half a step is rounded to where it was, so most of an edit's
change is lost. Edited matrices are therefore stored in 8 bits unless asked otherwise, the share of
the change that is stored is measured, and the new answers are asked with the stored weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from easyeditor.errors import PatchError, PatchMismatchError, UnsupportedModelError, did_you_mean
from easyeditor.export.factors import weights_of
from easyeditor.export.gguf_answers import answers_after, check_same_model
from easyeditor.export.gguf_file import (
    QUANTIZATIONS,
    WHOLE,
    Array,
    architecture_of,
    block_length,
    packed,
    read_gguf,
    unpacked_values,
    values_of,
    write_gguf,
)
from easyeditor.export.gguf_names import ARCHITECTURES, MLP, library, tensor_names
from easyeditor.export.result import Export
from easyeditor.files import check_writable_place, folder_written_whole
from easyeditor.lm.model import LM
from easyeditor.lm.originals import unedited
from easyeditor.lm.weights import weight_handle
from easyeditor.patches.parts import Dense
from easyeditor.patches.patch import Patch
from easyeditor.patches.weight import WeightPatch
from easyeditor.progress import bar

MODEL, MODELFILE = "model.gguf", "Modelfile"
AS_SOURCE = "source"
"""The quantization that stands for the type each edited matrix has in the source."""
DEFAULT = "Q8_0"
"""Of an edited matrix that has fewer bits in the source."""
LEAST_SHARE = 0.9
"""Below this share of the change the user is warned."""
LARGEST_DIFFERENCE = 0.3
"""``‖W_file − W_model‖ / ‖W_model‖`` of a matrix that is the same one, quantized."""
UNQUANTIZED_NAMES = (
    "norm",
    "ffn_gate_inp",
    "position_embd",
    "token_types",
    "ssm_",
    "time_mix",
    "rope",
)
"""Matrices that no program quantizes, by parts of their names."""


@dataclass(frozen=True, slots=True)
class _Change:
    """The change of one tensor of the file, rows first as the file has it."""

    path: str
    tensor: Any
    source: Array
    delta: Array


def export_gguf(
    patch: Patch,
    folder: str | Path,
    *,
    source: str | Path,
    quantization: str | None = None,
    lm: LM | None = None,
    force: bool = False,
) -> Export:
    """Write ``model.gguf`` and a ``Modelfile`` for Ollama into ``folder``.

    Args:
        patch: of weights.
        folder: missing or empty; it appears whole or not at all.
        source: the GGUF file of the unedited model.
        quantization: of :data:`~easyeditor.export.gguf_file.QUANTIZATIONS`: the type of the edited
            matrices and of every matrix that the source has unquantized; those that are quantized
            already are never quantized again. ``"source"``: edited matrices have the type they had.
            By default that, where it has 8 bits or more, else Q8_0.
        lm: the unedited model of the source, to check with it that the tensors are those the patch
            changes, and that the new answers come from what is stored. It is left as it was.
            Without it only matrices of MLPs can be changed, and nothing is asked.
        force: write the file although the model is another one, or an answer is lost.

    Raises:
        PatchError: no such quantization; a weight that cannot be changed in the file; an answer
            that comes with the patch and not with what would be stored.
        PatchMismatchError: the patch was made for another model.
        UnsupportedModelError: the source is no GGUF file.
        ModelLoadError: the source cannot be read.
        MissingExtraError: the ``gguf`` library is not installed.
        OutputError: the folder is not empty, or cannot be written.
    """
    patch = weights_of(patch)
    quantization = _known(quantization)
    place, file = Path(folder), Path(source).expanduser()
    if file.suffix.lower() != ".gguf":
        raise UnsupportedModelError(
            f"A GGUF model is made from the GGUF file of the unedited one, and {str(source)!r} is "
            "none. Name that file, or make one of the edited checkpoint by llama.cpp's own script: "
            "easyedit export PATCH --format merged --out edited, then python convert_hf_to_gguf.py "
            "edited --outfile edited.gguf --outtype q8_0."
        )
    reader = read_gguf(file)
    notes = [] if lm is None else check_same_model(patch, lm, force)
    changes = _changes(patch, reader, lm, force)
    check_writable_place(place, folder=True, size=file.stat().st_size)
    replaced: dict[str, tuple[Array, str]] = {}
    errors, shares, types, effects = {}, {}, {}, {}
    for change in changes:
        name, why = _type_of(change.tensor, quantization, edited=True)
        notes += why
        data = packed(change.source + change.delta, name)
        effect = unpacked_values(data, name, change.source.shape) - change.source
        size = float(np.vdot(change.delta, change.delta)) or 1e-30
        errors[change.path] = float(np.linalg.norm(effect - change.delta)) / size**0.5
        shares[change.path] = float(np.vdot(effect, change.delta)) / size
        types[change.path] = name
        effects[change.path] = effect
        replaced[change.tensor.name] = (data, name)
    if min(shares.values()) < LEAST_SHARE:
        worst = min(shares, key=lambda path: shares[path])
        notes.append(
            f"{types[worst]} keeps {shares[worst]:.0%} of the change of {worst}; rewordings may "
            "fall back to the old answer. Q8_0 keeps all but a thousandth."
        )
    answers = None
    if lm is not None:
        answers, more = _checked_answers(patch, lm, effects, types, force)
        notes += more
    converted = quantization not in (None, AS_SOURCE) and _convert(
        reader, str(quantization), replaced, notes
    )
    with folder_written_whole(place) as part:
        write_gguf(reader, part / MODEL, replaced, quantization if converted else None)
        text = "# ollama create NAME -f Modelfile\n" + f"FROM ./{MODEL}\n"
        (part / MODELFILE).write_text(text, encoding="utf-8")
    return Export(
        "gguf", place, place / MODEL, errors, 0, shares, types, answers, tuple(dict.fromkeys(notes))
    )


def _known(quantization: str | None) -> str | None:
    if quantization is None:
        return None
    names = (AS_SOURCE, *QUANTIZATIONS)
    for name in names:
        if name.lower() == quantization.lower():
            return name
    raise PatchError(
        f"quantization={quantization!r} cannot be written.{did_you_mean(quantization, names)} Use "
        f"one of {', '.join(names)}; others (Q4_K_M …) are made from the F16 file by llama.cpp's "
        "llama-quantize."
    )


def _changes(patch: WeightPatch, reader: Any, lm: LM | None, force: bool) -> list[_Change]:
    """What each weight's change is in the file.

    Raises:
        PatchMismatchError: the file has no such tensor, or in another shape.
        PatchError: whether it is the same tensor cannot be told.
    """
    architecture = architecture_of(reader)
    expected = ARCHITECTURES.get(patch.info.model.architecture, architecture)
    if expected != architecture:
        raise PatchMismatchError(
            f"The patch was made for a {patch.info.model.architecture}, which GGUF calls "
            f"{expected}; this file holds a {architecture}. Name the file of the patch's model."
        )
    names = tensor_names(library("Writing GGUF models"), architecture, list(patch.entries))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    result = []
    with bar(len(patch.entries), "reading", "matrix") as progress:
        for path, shape in patch.shapes.items():
            tensor = tensors.get(names[path] or "")
            if tensor is None:
                raise PatchMismatchError(
                    f"The GGUF file has no tensor for {path}. Name the file of the patch's model, "
                    "or export a merged model and convert it by llama.cpp's convert_hf_to_gguf.py: "
                    "--format merged."
                )
            turned = _is_turned(patch, path)
            rows_first = shape[::-1] if turned else shape
            has = tuple(int(n) for n in reversed(tensor.shape))
            if has != rows_first:
                raise PatchMismatchError(
                    f"The patch changes {path} of shape {rows_first}; {tensor.name} in the GGUF "
                    f"file has {has}. Name the GGUF file of the patch's model."
                )
            delta = patch.dense(path).float().cpu()
            source = _source(tensor)
            if lm is None:
                _check_by_name(path, tensor.name)
            else:
                _check_by_content(path, tensor.name, source, lm, force)
            delta = (delta.T if turned else delta).contiguous()
            result.append(_Change(path, tensor, source, delta.numpy()))
            progress.update(1)
    return result


def _is_turned(patch: WeightPatch, path: str) -> bool:
    """Whether the file has a matrix ``(d_out, d_in)``: all but embeddings, also of ``Conv1D``."""
    return len(patch.shapes[path]) == 2 and path not in patch.no_linear


def _source(tensor: Any) -> Array:
    try:
        return values_of(tensor)
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"{tensor.name} is stored as {tensor.tensor_type.name}, which the gguf library cannot "
            "read. Take the same model in another quantization (Q8_0, F16)."
        ) from error


def _check_by_name(path: str, name: str) -> None:
    if not MLP.fullmatch(name):
        raise PatchError(
            f"{path} may be stored in another order in a GGUF file, which only the model can tell. "
            "Hand it over, export_gguf(…, lm=load(source)) (no --no-check), or export a merged "
            "model and convert it (--format merged)."
        )


def _check_by_content(path: str, name: str, source: Array, lm: LM, force: bool) -> None:
    """Make sure that a tensor holds the weight that the patch changes, in the same order."""
    handle = weight_handle(lm.model, path)
    weight = handle.read(unedited(lm.model, path, handle)).detach().float().cpu()
    stored = torch.from_numpy(source)
    if weight.shape != stored.shape:  # Conv1D
        weight = weight.T
    difference = float((stored - weight).norm() / weight.norm().clamp(min=1e-30))
    if difference <= LARGEST_DIFFERENCE:
        return
    if MLP.fullmatch(name):
        if force:
            return
        raise PatchMismatchError(
            f"{name} in the GGUF file is not the model's {path}: they differ by {difference:.0%}. "
            "Name the GGUF file of the patch's model."
        )
    raise PatchError(
        f"{path} is stored in another order in the GGUF file ({name}), and its change would not "
        "fit. Export a merged model and convert it by llama.cpp's convert_hf_to_gguf.py: --format "
        "merged."
    )


def _type_of(tensor: Any, quantization: str | None, *, edited: bool) -> tuple[str, list[str]]:
    """The type to store a tensor in, and what has to be said of it.

    Raises:
        PatchError: it shall have the source's type, which cannot be written.
    """
    has = tensor.tensor_type.name
    if len(tensor.shape) < 2:
        return has, []
    if quantization == AS_SOURCE:
        if has not in QUANTIZATIONS:
            raise PatchError(
                f"{tensor.name} is stored as {has}, which cannot be written here. Leave the "
                f"quantization out (edited matrices are then stored as {DEFAULT}), or use one of "
                f"{', '.join(QUANTIZATIONS)}."
            )
        return has, []
    name = quantization
    if name is None:
        name = has if has in (*WHOLE, DEFAULT) else DEFAULT
    elif not edited and name not in WHOLE and tensor.name in ("token_embd.weight", "output.weight"):
        name = DEFAULT  # the rows of rare tokens do not survive fewer bits
    if int(tensor.shape[0]) % block_length(name):
        return "F16", [f"{tensor.name} has rows that {name} cannot divide, and is stored as F16."]
    return name, []


def _convert(
    reader: Any, quantization: str, replaced: dict[str, tuple[Array, str]], notes: list[str]
) -> bool:
    """Quantize the matrices that the source has unquantized; whether there were any."""
    whole = [
        tensor
        for tensor in reader.tensors
        if len(tensor.shape) > 1
        and tensor.tensor_type.name in WHOLE
        and tensor.name not in replaced
        and not any(part in tensor.name for part in UNQUANTIZED_NAMES)
    ]
    with bar(len(whole), "quantizing", "matrix") as progress:
        for tensor in whole:
            name, why = _type_of(tensor, quantization, edited=False)
            notes += why
            if name != tensor.tensor_type.name:
                replaced[tensor.name] = (packed(values_of(tensor), name), name)
            progress.update(1)
    return bool(whole)


def _checked_answers(
    patch: WeightPatch,
    lm: LM,
    effects: Mapping[str, Array],
    types: Mapping[str, str],
    force: bool,
) -> tuple[tuple[bool, ...], list[str]]:
    """Whether each new answer comes from the stored weights, and what has to be said of it.

    Raises:
        PatchError: one comes with the patch and not with what would be stored.
    """
    parts = {}
    for path, effect in effects.items():
        delta = torch.from_numpy(np.ascontiguousarray(effect))
        parts[path] = (Dense((delta.T if _is_turned(patch, path) else delta).contiguous()),)
    stored = WeightPatch(parts, patch.info, {}, patch.in_out, patch.no_linear)
    with_patch, with_stored, notes = answers_after(lm, patch, stored)
    lost = [i for i, held in enumerate(with_patch) if held and not with_stored[i]]
    if lost:
        edit = patch.info.edits[lost[0]]
        sentence = (
            f"{len(lost)} of {len(with_patch)} edits lose their new answer when the edited weights "
            f"are stored as {', '.join(sorted(set(types.values())))}: {str(edit.prompt)[:80]!r} is "
            f"no longer answered by {edit.target!r}."
        )
        if not force:
            raise PatchError(
                f"{sentence} Nothing was written. Leave the quantization out or use Q8_0 or F16 "
                "(other matrices stay as they are), or write it regardless (force=True, --force)."
            )
        notes.append(sentence)
    never = sum(not held for held in with_patch)
    if never:
        notes.append(
            f"{never} of {len(with_patch)} edits do not give their new answer with the patch "
            "either."
        )
    return with_stored, notes
