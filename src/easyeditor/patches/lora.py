"""Export a patch as a LoRA adapter that ``peft`` loads.

``W + u v`` is a LoRA with ``A = uᵀ``, ``B = vᵀ`` and scale one (alpha = rank), so a low-rank patch
is exported exactly; a dense one by truncated SVD, with the error measured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from easyeditor.errors import PatchError
from easyeditor.files import folder_written_whole
from easyeditor.lm.embedded import hub_name
from easyeditor.patches.parts import Part
from easyeditor.patches.patch import Patch
from easyeditor.patches.weight import LowRank, WeightPatch
from easyeditor.progress import bar

DENSE_RANK = 64


@dataclass(frozen=True, slots=True)
class LoraExport:
    """What was written: rank and, per matrix, ``‖Δ − BA‖ / ‖Δ‖`` (0 where it is exact)."""

    folder: Path
    rank: int
    errors: dict[str, float]


def export_lora(patch: WeightPatch, folder: str | Path, *, rank: int | None = None) -> LoraExport:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` into ``folder``.

    Args:
        patch: its matrices must be weights of linear layers.
        folder: missing or empty; it appears whole or not at all.
        rank: for dense parts, the rank kept (64 by default); low-rank patches keep their own.

    Raises:
        PatchError: it changes something else than matrices of linear layers.
        OutputError: the folder is not empty, or cannot be written.
    """
    factors, errors = lora_factors(patch, rank)
    most = max(u.shape[1] for u, _ in factors.values())
    tensors = {}
    for name, (u, v) in factors.items():
        missing = most - u.shape[1]  # one rank for the whole adapter: the rest is zero
        u = torch.nn.functional.pad(u, (0, missing))
        v = torch.nn.functional.pad(v, (0, 0, 0, missing))
        tensors[f"base_model.model.{name}.lora_A.weight"] = u.T.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = v.T.contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": _task(patch.info.model.architecture),
        "base_model_name_or_path": hub_name(patch.info.model_name),
        "r": most,
        "lora_alpha": most,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": bool(patch.in_out),
        "inference_mode": True,
        # Whole names: GPT-2's "c_proj" alone would match the attention as well.
        "target_modules": sorted(factors),
    }
    place = Path(folder)
    with folder_written_whole(place) as part:
        save_file(tensors, part / "adapter_model.safetensors", metadata={"format": "pt"})
        (part / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return LoraExport(place, most, errors)


def _task(architecture: str) -> str | None:
    """PEFT's word for what a class of model does, by which its Auto classes choose; None: none."""
    endings = {
        ("ForCausalLM", "LMHeadModel"): "CAUSAL_LM",
        ("T5ForConditionalGeneration", "BartForConditionalGeneration"): "SEQ_2_SEQ_LM",
    }
    return next((task for names, task in endings.items() if architecture.endswith(names)), None)


def _factors(
    patch: WeightPatch, path: str, parts: tuple[Part, ...], rank: int | None
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """``(u, v, relative error)`` with ``u v`` the change of one matrix."""
    low = [part for part in parts if isinstance(part, LowRank)]
    if len(low) == len(parts):
        return torch.cat([part.u for part in low], 1), torch.cat([part.v for part in low], 0), 0.0
    whole = patch.dense(path).double()
    stored = min(rank or DENSE_RANK, *whole.shape)
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    u, v = left[:, :stored] * values[:stored], right[:stored]
    return u, v, float((whole - u @ v).norm() / whole.norm().clamp(min=1e-30))


def lora_factors(
    patch: WeightPatch, rank: int | None = None
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], dict[str, float]]:
    """``{module: (u, v)}`` with ``Δᵀ = u v``, float32 on the CPU, and the error per matrix.

    ``u`` is ``(d_in, rank)`` and ``v`` ``(rank, d_out)``, so A = uᵀ and B = vᵀ.

    Raises:
        PatchError: the patch changes something else than matrices of linear layers.
    """
    _check_linear(patch)
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    errors: dict[str, float] = {}
    with bar(len(patch.entries), "exporting", "matrix") as progress:
        for path, parts in patch.entries.items():
            u, v, errors[path] = _factors(patch, path, parts, rank)
            factors[path.removesuffix(".weight")] = (u.float().cpu(), v.float().cpu())
            progress.update(1)
    return factors, errors


def lora_rank(patch: WeightPatch, rank: int | None = None) -> int:
    """The rank of the adapter that :func:`export_lora` writes.

    Raises:
        PatchError: the patch changes something else than matrices of linear layers.
    """
    _check_linear(patch)
    ranks = []
    for path, parts in patch.entries.items():
        low = [part for part in parts if isinstance(part, LowRank)]
        if len(low) == len(parts):
            ranks.append(sum(part.u.shape[1] for part in low))
        else:
            ranks.append(min(rank or DENSE_RANK, *patch.shapes[path]))
    return max(ranks)


def _check_linear(patch: Patch) -> None:
    odd = (
        [p for p, shape in patch.shapes.items() if len(shape) != 2 or p in patch.no_linear]
        if isinstance(patch, WeightPatch)
        else [f"a patch of {patch.kind!r}"]
    )
    if odd:
        raise PatchError(
            f"This patch cannot be a LoRA adapter: {odd[0]} is no change of a linear layer's "
            "matrix. Use the patch as it is: load_patch(path).apply(model), or easyedit generate "
            "--patch."
        )
