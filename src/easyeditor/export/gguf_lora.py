"""Export a patch as a LoRA adapter in GGUF, as llama.cpp loads it beside an unedited GGUF model.

``W + u v`` is ``B A`` with ``A = uᵀ`` and ``B = vᵀ``; every matrix is padded to one rank and alpha
is that rank, so the scale is one. Only MLP matrices are written: GGUF files of some architectures
hold permuted attention weights, to which the same factors would not fit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from easyeditor.errors import MissingExtraError, PatchError
from easyeditor.files import folder_written_whole
from easyeditor.patches.lora import lora_factors
from easyeditor.patches.weight import WeightPatch

ADAPTER, MODELFILE = "adapter.gguf", "Modelfile"
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "PhiForCausalLM": "phi2",
    "Phi3ForCausalLM": "phi3",
    "GPT2LMHeadModel": "gpt2",
    "GPTNeoXForCausalLM": "gptneox",
    "BloomForCausalLM": "bloom",
    "OlmoForCausalLM": "olmo",
    "Olmo2ForCausalLM": "olmo2",
    "StableLmForCausalLM": "stablelm",
    "GraniteForCausalLM": "granite",
    "CohereForCausalLM": "command-r",
    "SmolLM3ForCausalLM": "smollm3",
    "Starcoder2ForCausalLM": "starcoder2",
}
"""Class of a model -> its name in GGUF."""
MLP = re.compile(r"blk\.\d+\.ffn_(down|up|gate)")


@dataclass(frozen=True, slots=True)
class GgufLoraExport:
    """What was written: the adapter, its rank and, per matrix, ``‖Δ − BA‖ / ‖Δ‖``."""

    file: Path
    rank: int
    errors: dict[str, float]


def export_gguf_lora(
    patch: WeightPatch, folder: str | Path, *, rank: int | None = None
) -> GgufLoraExport:
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
    architecture = ARCHITECTURES.get(patch.info.model.architecture)
    if architecture is None:
        raise PatchError(
            f"There is no GGUF adapter for a {patch.info.model.architecture}. Known: "
            f"{', '.join(ARCHITECTURES)}. Export a merged model and convert that: --format merged."
        )
    factors, errors = lora_factors(patch, rank)
    library = _library()
    names = _gguf_names(library, architecture, list(factors))
    most = max(u.shape[1] for u, _ in factors.values())
    place = Path(folder)
    with folder_written_whole(place) as part:
        writer = library.GGUFWriter(part / ADAPTER, architecture)
        writer.add_type(library.GGUFType.ADAPTER)
        writer.add_string(library.Keys.Adapter.TYPE, "lora")
        writer.add_float32(library.Keys.Adapter.LORA_ALPHA, float(most))
        for module, (u, v) in factors.items():
            missing = most - u.shape[1]
            a = torch.nn.functional.pad(u, (0, missing)).T.contiguous()
            b = torch.nn.functional.pad(v, (0, 0, 0, missing)).T.contiguous()
            writer.add_tensor(f"{names[module]}.weight.lora_a", a.numpy())
            writer.add_tensor(f"{names[module]}.weight.lora_b", b.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        lines = ("# FROM names the GGUF file of the unedited model.", "FROM ./model.gguf")
        text = "\n".join((*lines, f"ADAPTER ./{ADAPTER}", ""))
        (part / MODELFILE).write_text(text, encoding="utf-8")
    return GgufLoraExport(place / ADAPTER, most, errors)


def _gguf_names(library: Any, architecture: str, modules: list[str]) -> dict[str, str]:
    """What the modules are called in a GGUF file.

    Raises:
        PatchError: one has no name there, or is no matrix of an MLP.
    """
    kind = next(k for k, name in library.MODEL_ARCH_NAMES.items() if name == architecture)
    blocks = 1 + max(int(n) for module in modules for n in re.findall(r"\.(\d+)\.", module) or [0])
    table = library.get_tensor_name_map(kind, blocks)
    names = {module: table.get_name(module) for module in modules}
    for module, name in names.items():
        if name is None or not MLP.fullmatch(name):
            raise PatchError(
                f"{module} cannot be in a GGUF adapter: only matrices of MLPs are written. Export "
                "a merged model and convert that (--format merged), or a LoRA for peft (--format "
                "lora)."
            )
    return names


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise MissingExtraError.of("gguf", "gguf", "Writing GGUF adapters") from None
    return gguf
