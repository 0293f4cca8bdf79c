"""Export a patch as a LoRA adapter in GGUF, as llama.cpp loads it beside an unedited GGUF model.

``W + u v`` is ``B A`` with ``A = uᵀ`` and ``B = vᵀ``; every matrix is padded to one rank and alpha
is that rank, so the scale is one. Only MLP matrices are written: GGUF files of some architectures
hold permuted attention weights, to which the same factors would not fit.
"""

from __future__ import annotations

from pathlib import Path

from easyeditor.errors import PatchError
from easyeditor.export.factors import lossy_notes, padded_factors, weights_of
from easyeditor.export.gguf_names import (
    ARCHITECTURES,
    MLP,
    gguf_architecture,
    library,
    tensor_names,
)
from easyeditor.export.result import Export
from easyeditor.files import folder_written_whole
from easyeditor.patches.patch import Patch

__all__ = ["ADAPTER", "ARCHITECTURES", "MODELFILE", "GgufLoraExport", "export_gguf_lora"]

ADAPTER, MODELFILE = "adapter.gguf", "Modelfile"
MODELFILE_TEXT = f"""\
# Ollama is reported to refuse ADAPTER since 0.34.1. For it, export the whole model instead:
#   easyedit export PATCH --format gguf --model MODEL.gguf --out FOLDER
# FROM names the GGUF file of the unedited model.
FROM ./model.gguf
ADAPTER ./{ADAPTER}
"""

GgufLoraExport = Export


def export_gguf_lora(patch: Patch, folder: str | Path, *, rank: int | None = None) -> Export:
    """Write ``adapter.gguf`` and a ``Modelfile`` with its ``ADAPTER`` line into ``folder``.

    Args:
        patch: of MLP matrices, of an architecture in :data:`ARCHITECTURES`.
        folder: missing or empty; it appears whole or not at all.
        rank: kept of dense parts (64 by default); low-rank patches keep their own.

    Raises:
        PatchError: it changes something else, or the architecture has no name here.
        MissingExtraError: the ``gguf`` library is not installed.
        OutputError: the folder is not empty, or cannot be written.
    """
    patch = weights_of(patch)
    architecture = gguf_architecture(patch.info.model.architecture)
    matrices, most, errors = padded_factors(patch, rank)
    gguf = library("Writing GGUF adapters")
    names = tensor_names(gguf, architecture, [f"{module}.weight" for module in matrices])
    for path, name in names.items():
        if name is None or not MLP.fullmatch(name):
            raise PatchError(
                f"{path} cannot be in a GGUF adapter: only matrices of MLPs are written. Export "
                "the whole model (--format gguf), or a LoRA for peft (--format lora)."
            )
    place = Path(folder)
    with folder_written_whole(place) as part:
        writer = gguf.GGUFWriter(part / ADAPTER, architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(most))
        for module, (a, b) in matrices.items():
            writer.add_tensor(f"{names[f'{module}.weight']}.lora_a", a.numpy())
            writer.add_tensor(f"{names[f'{module}.weight']}.lora_b", b.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        (part / MODELFILE).write_text(MODELFILE_TEXT, encoding="utf-8")
    return Export(
        "gguf-lora", place, place / ADAPTER, errors, most, notes=tuple(lossy_notes(errors, most))
    )
