"""Export a patch as a LoRA adapter that ``peft``, vLLM and SGLang load beside the unedited model.

A low-rank patch is exported exactly, a dense one by truncated SVD; see
:mod:`easyeditor.export.factors`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import save_file
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from easyeditor.export.factors import VLLM_RANKS, lossy_notes, padded_factors, weights_of
from easyeditor.export.result import Export
from easyeditor.files import folder_written_whole
from easyeditor.lm.embedded import hub_name
from easyeditor.patches.patch import Patch

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
VLLM_DEFAULT_RANK = 16

LoraExport = Export


def export_lora(
    patch: Patch, folder: str | Path, *, rank: int | None = None, base: str | None = None
) -> Export:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` into ``folder``.

    Args:
        patch: its matrices must be weights of linear layers.
        folder: missing or empty; it appears whole or not at all.
        rank: for dense parts, the rank kept (64 by default); low-rank patches keep their own.
        base: the hub name or folder of the model, written as ``base_model_name_or_path``; by
            default the name the patch was made by.

    Raises:
        PatchError: it changes something else than matrices of linear layers.
        OutputError: the folder is not empty, or cannot be written.
    """
    patch = weights_of(patch)
    matrices, most, errors = padded_factors(patch, rank)
    tensors = {}
    for name, (a, b) in matrices.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    name, notes = _base(patch, base)
    config = {
        "peft_type": "LORA",
        **_kind_of_model(patch.info.model.architecture),
        "base_model_name_or_path": name,
        "r": most,
        "lora_alpha": most,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": bool(patch.in_out),
        "inference_mode": True,
        # Whole names: GPT-2's "c_proj" alone would match the attention as well.
        "target_modules": sorted(matrices),
    }
    place = Path(folder)
    with folder_written_whole(place) as part:
        save_file(tensors, part / ADAPTER, metadata={"format": "pt"})
        (part / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    return Export(
        "lora",
        place,
        place,
        errors,
        most,
        notes=(*notes, *lossy_notes(errors, most), *_rank_notes(most)),
    )


def _kind_of_model(architecture: str) -> dict[str, Any]:
    """What peft's Auto classes choose the class of the base model by."""
    if architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return {"task_type": "CAUSAL_LM"}
    if architecture in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values():
        return {"task_type": "SEQ_2_SEQ_LM"}
    known = getattr(transformers, architecture, None)
    if known is None:  # its code lies beside its weights
        return {"task_type": None}
    mapping = {"base_model_class": architecture, "parent_library": known.__module__}
    return {"task_type": None, "auto_mapping": mapping}


def _base(patch: Patch, base: str | None) -> tuple[str, list[str]]:
    """The name of the base model, and what has to be said of it."""
    name = base or patch.info.model_name
    if hub_name(name) != name:
        return hub_name(name), [
            f"The base model is written down as {hub_name(name)}, whose weights {name} holds in "
            "4 bits."
        ]
    if base is None and "/" not in name:
        return name, [
            f"The base model is written down as {name!r}, a name that leads nowhere outside this "
            "machine. Name the one on the hub: base= (--model HUB_NAME)."
        ]
    return name, []


def _rank_notes(rank: int) -> list[str]:
    if rank <= VLLM_DEFAULT_RANK:
        return []
    limit = next((limit for limit in VLLM_RANKS if limit >= rank), None)
    if limit is None:
        return [
            f"vLLM loads adapters up to rank {VLLM_RANKS[-1]}, and this one has {rank}: serve a "
            "merged model there (--format merged), or undo some edits."
        ]
    return [f"vLLM has to be started with --max-lora-rank {limit} (its default is 16)."]
