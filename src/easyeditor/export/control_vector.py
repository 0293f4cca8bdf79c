"""Steering vectors as a GGUF control vector, as llama.cpp's ``--control-vector`` reads it.

A file has one tensor ``direction.{l}`` per layer, which llama.cpp adds to the output of block l
(counted from 0) at every token; it reads none for block 0. The tensors hold the strength.
"""

from __future__ import annotations

from pathlib import Path

import torch

from easyeditor.errors import ModelLoadError, PatchError
from easyeditor.export.gguf_names import gguf_architecture, library
from easyeditor.export.result import Export
from easyeditor.files import folder_written_whole
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.model import LM
from easyeditor.patches.adapter import AddVector
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.patch import Patch, PatchInfo
from easyeditor.steering.activations import part_at, path_of

FILE = "control-vector.gguf"
ARCHITECTURE = "controlvector"
TENSOR = "direction."
INSTEAD = (
    "Use the patch where transformers runs the model: load_patch(path).apply(model), easyedit "
    "generate --patch, or easyedit serve --patch."
)


def export_control_vector(patch: Patch, folder: str | Path) -> Export:
    """Write ``control-vector.gguf`` into ``folder``; vectors of one layer are summed.

    Args:
        patch: of steering vectors at blocks' outputs, from block 1 on, at all tokens of all rows.
        folder: missing or empty; it appears whole or not at all.

    Raises:
        PatchError: it is something else, or the architecture has no name in GGUF.
        MissingExtraError: the ``gguf`` library is not installed.
        OutputError: the folder is not empty, or cannot be written.
    """
    directions = control_directions(patch)
    hint = gguf_architecture(patch.info.model.architecture)
    gguf = library("Writing control vectors")
    place = Path(folder)
    with folder_written_whole(place) as part:
        writer = gguf.GGUFWriter(part / FILE, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", hint)
        writer.add_int32(f"{ARCHITECTURE}.layer_count", len(directions))
        for layer, vector in sorted(directions.items()):
            writer.add_tensor(f"{TENSOR}{layer}", vector.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Export(
        "control-vector",
        place,
        place / FILE,
        dict.fromkeys((f"{TENSOR}{layer}" for layer in sorted(directions)), 0.0),
    )


def control_directions(patch: Patch) -> dict[int, torch.Tensor]:
    """``{layer: what is added to its block's output}``, float32 on the CPU.

    Raises:
        PatchError: a control vector cannot hold the patch; says why.
    """
    if not isinstance(patch, ModulePatch):
        raise PatchError(
            f"This patch of {patch.info.method} is no steering vector, and a control vector holds "
            "nothing else. Export its weights: --format lora, gguf or merged."
        )
    result: dict[int, torch.Tensor] = {}
    for site, adapters in patch.adapters.items():
        layer = _block_at(site)
        for adapter in adapters:
            _check(adapter, site, layer)
            assert isinstance(adapter, AddVector)
            vector = adapter.strength * adapter.get_buffer("vector").detach().cpu().float()
            result[layer] = result[layer] + vector if layer in result else vector
    return result


def _check(adapter: object, site: str, layer: int) -> None:
    why = ""
    if not isinstance(adapter, AddVector):
        why = f"at {site} it has a {type(adapter).__name__}, which is no vector that is added"
    elif layer < 0:
        why = f"it is added at {site}, which is no block's output (make it with module='block')"
    elif layer == 0:
        why = "it is added at block 0, and llama.cpp reads directions from block 1 on"
    elif adapter.positions != "all":
        why = f"it is added at some tokens (positions={adapter.positions!r}), not at all"
    elif adapter.conditional:
        why = "it has a condition, and llama.cpp steers every request"
    if why:
        raise PatchError(f"This patch cannot be a control vector: {why}. {INSTEAD}")


def _block_at(site: str) -> int:
    """The number of the block that a module's name ends with; -1: it is no block."""
    last = site.rpartition(".")[2]
    return int(last) if last.isdecimal() else -1


def import_control_vector(lm: LM, file: str | Path, strength: float = 1.0) -> ModulePatch:
    """The patch that does to ``lm`` what llama.cpp does with a control vector.

    Args:
        lm: the model.
        file: a GGUF control vector.
        strength: what its directions are multiplied by.

    Raises:
        ModelLoadError: no such file, or no control vector.
        PatchError: it is of another width, or has more layers than the model.
        MissingExtraError: the ``gguf`` library is not installed.
    """
    gguf = library("Reading control vectors")
    path = Path(file)
    if not path.is_file():
        raise ModelLoadError(f"No control vector {str(file)!r}.")
    try:
        tensors = gguf.GGUFReader(path).tensors
        directions = {
            int(tensor.name.removeprefix(TENSOR)): torch.tensor(tensor.data, dtype=torch.float32)
            for tensor in tensors
            if tensor.name.startswith(TENSOR)
        }
    except Exception as error:  # of any type: a damaged file fails where it is damaged
        raise ModelLoadError(f"{path} cannot be read as a GGUF file: {error!r:.200}.") from error
    if not directions:
        raise ModelLoadError(f"{path} holds no tensors {TENSOR}N, so it is no control vector.")
    width = lm.model.config.get_text_config().hidden_size
    adapters = {}
    for layer, vector in sorted(directions.items()):
        if not 0 < layer < lm.n_layers or tuple(vector.shape) != (width,):
            raise PatchError(
                f"{path} has a direction of {tuple(vector.shape)} numbers for block {layer}; "
                f"{lm.name} has {lm.n_layers} blocks of {width}. Load the model it was made for."
            )
        site = path_of(lm, part_at(lm, layer, "block"))
        adapters[site] = (AddVector(vector, "all", strength),)
    info = PatchInfo.of(lm, "CONTROL-VECTOR", (), HyperParams(), {})
    return ModulePatch(adapters, info)
