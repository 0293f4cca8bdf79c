"""What weights are called in a GGUF file, by the ``gguf`` library's own tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from easyeditor.errors import MissingExtraError, PatchError

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
MLP = re.compile(r"blk\.\d+\.ffn_(down|up|gate)\.weight")
"""Matrices that a GGUF file holds as the model does; others are permuted in some architectures."""


def library(purpose: str) -> Any:
    """The ``gguf`` library.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise MissingExtraError.of("gguf", "gguf", purpose) from None
    return gguf


def gguf_architecture(architecture: str) -> str:
    """What a class of models is called in GGUF.

    Raises:
        PatchError: it has no name here.
    """
    name = ARCHITECTURES.get(architecture)
    if name is None:
        raise PatchError(
            f"There is no GGUF adapter for a {architecture}. Known: {', '.join(ARCHITECTURES)}. "
            "Export a merged model and convert that: --format merged."
        )
    return name


def tensor_names(gguf: Any, architecture: str, paths: Sequence[str]) -> dict[str, str | None]:
    """``{path of a parameter: name of the tensor in a GGUF file}``; None where it has none there.

    Args:
        gguf: the library.
        architecture: as GGUF calls it.
        paths: of parameters, as in ``model.layers.3.mlp.down_proj.weight``.
    """
    kinds = [kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture]
    if not kinds:
        return dict.fromkeys(paths)
    blocks = 1 + max(int(n) for path in paths for n in re.findall(r"\.(\d+)\.", path) or [0])
    table = gguf.get_tensor_name_map(kinds[0], blocks)
    return {path: table.get_name(path, try_suffixes=(".weight", ".bias")) for path in paths}
