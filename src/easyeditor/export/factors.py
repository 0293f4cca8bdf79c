"""The two factors of a patch's changes, which every kind of LoRA adapter stores.

``W + u v`` is a LoRA with ``A = uᵀ``, ``B = vᵀ`` and scale one (alpha = rank), so a low-rank patch
is exported exactly; a dense one by truncated SVD, with the error measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NoReturn

import torch

from easyeditor.errors import PatchError
from easyeditor.patches.adapter import AddVector
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.parts import Part
from easyeditor.patches.patch import Patch
from easyeditor.patches.route import RoutePatch
from easyeditor.patches.weight import LowRank, WeightPatch
from easyeditor.progress import bar

DENSE_RANK = 64
LARGEST_SILENT_ERROR = 0.1
"""Share of a change's norm, lost to the rank, above which the user is told."""
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's ``--max-lora-rank`` may be; an adapter's rank may be anything up to it."""
INSTEAD = (
    "Use it where transformers runs the model: load_patch(path).apply(model), easyedit generate "
    "--patch, or easyedit serve --patch."
)


def weights_of(patch: Patch) -> WeightPatch:
    """The same patch, if it changes weights.

    Raises:
        PatchError: it does not; other programs' formats hold weights and nothing else.
    """
    if isinstance(patch, WeightPatch):
        return patch
    how, advice = f"is of the kind {patch.kind!r}", INSTEAD
    if isinstance(patch, ModulePatch):
        how = "runs modules beside the model's own"
        adapters = [adapter for some in patch.adapters.values() for adapter in some]
        if all(isinstance(adapter, AddVector) for adapter in adapters):
            advice = f"For llama.cpp: --format control-vector. {INSTEAD}"
    elif isinstance(patch, RoutePatch):
        how = "answers prompts in another way"
    raise PatchError(
        f"This patch of {patch.info.method} changes no weight: it {how}. The files of other "
        f"programs hold weights only. {advice} Or make the edit with a method that changes "
        "weights: easyedit methods."
    )


def padded_factors(
    patch: WeightPatch, rank: int | None = None
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], int, dict[str, float]]:
    """``{module: (A, B)}`` of one rank, that rank, and the error per matrix.

    A is ``(rank, d_in)`` and B ``(d_out, rank)``; where a matrix needs less, the rest is zero.

    Raises:
        PatchError: see :func:`lora_factors`.
    """
    factors, errors = lora_factors(patch, rank)
    most = max(u.shape[1] for u, _ in factors.values())
    matrices = {}
    for name, (u, v) in factors.items():
        missing = most - u.shape[1]
        a = torch.nn.functional.pad(u, (0, missing)).T.contiguous()
        b = torch.nn.functional.pad(v, (0, 0, 0, missing)).T.contiguous()
        matrices[name] = (a, b)
    return matrices, most, errors


def lora_factors(
    patch: WeightPatch, rank: int | None = None
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], dict[str, float]]:
    """``{module: (u, v)}`` with ``Δᵀ = u v``, float32 on the CPU, and the error per matrix.

    ``u`` is ``(d_in, rank)`` and ``v`` ``(rank, d_out)``, so A = uᵀ and B = vᵀ.

    Raises:
        PatchError: the patch changes something else than matrices of linear layers, or ``rank`` is
            below one.
    """
    patch = weights_of(patch)
    _check_linear(patch)
    if rank is not None and rank < 1:
        raise PatchError(f"rank={rank}: an adapter has a rank of 1 or more; leave it out for 64.")
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    errors: dict[str, float] = {}
    with bar(len(patch.entries), "exporting", "matrix") as progress:
        for path, parts in patch.entries.items():
            u, v, errors[path] = _factors(patch, path, parts, rank)
            factors[path.removesuffix(".weight")] = (u.float().cpu(), v.float().cpu())
            progress.update(1)
    return factors, errors


def lora_rank(patch: Patch, rank: int | None = None) -> int:
    """The rank of the adapter that is exported, without computing it.

    Raises:
        PatchError: the patch changes something else than matrices of linear layers.
    """
    weights = weights_of(patch)
    _check_linear(weights)
    ranks = []
    for path, parts in weights.entries.items():
        low = [part for part in parts if isinstance(part, LowRank)]
        if len(low) == len(parts):
            ranks.append(sum(part.u.shape[1] for part in low))
        else:
            ranks.append(min(rank or DENSE_RANK, *weights.shapes[path]))
    return max(ranks)


def lossy_notes(errors: Mapping[str, float], rank: int) -> list[str]:
    """What has to be said of an adapter whose rank leaves out much of a change."""
    worst = max(errors, key=lambda path: errors[path])
    if errors[worst] <= LARGEST_SILENT_ERROR:
        return []
    return [
        f"Rank {rank} leaves out {errors[worst]:.0%} of the change of {worst}, by norm: ask the "
        "adapter the edited questions, or store more (rank=, --rank)."
    ]


def _factors(
    patch: WeightPatch, path: str, parts: Iterable[Part], rank: int | None
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """``(u, v, relative error)`` with ``u v`` the change of one matrix."""
    parts = list(parts)
    low = [part for part in parts if isinstance(part, LowRank)]
    if len(low) == len(parts):
        return torch.cat([part.u for part in low], 1), torch.cat([part.v for part in low], 0), 0.0
    whole = patch.dense(path).double()
    stored = min(rank or DENSE_RANK, *whole.shape)
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    u, v = left[:, :stored] * values[:stored], right[:stored]
    return u, v, float((whole - u @ v).norm() / whole.norm().clamp(min=1e-30))


def _check_linear(patch: WeightPatch) -> None:
    for path, shape in patch.shapes.items():
        if len(shape) != 2 or path in patch.no_linear:
            _refuse(path)


def _refuse(path: str) -> NoReturn:
    raise PatchError(
        f"This patch cannot be a LoRA adapter: {path} is no change of a linear layer's matrix. "
        "Export a whole model: --format merged, or --format gguf. Or use the patch as it is: "
        "load_patch(path).apply(model), easyedit generate --patch, easyedit serve --patch."
    )
