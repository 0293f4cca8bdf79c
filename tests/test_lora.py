"""A patch exported as a LoRA adapter does in peft what it does here."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from easyeditor import LM, Edit
from easyeditor.errors import OutputError
from easyeditor.methods.adalora import AdaLoRA, AdaLoRAHyperParams
from easyeditor.methods.ft import FT, FTHyperParams
from easyeditor.methods.lora import LoRA, LoRAHyperParams
from easyeditor.methods.memit import MEMIT, MEMITHyperParams
from easyeditor.methods.rome import ROME, ROMEHyperParams
from easyeditor.patches.lora import export_lora
from easyeditor.patches.patch import merge
from easyeditor.patches.weight import Dense, LowRank, WeightPatch
from support import EDITS, Snapshot, lm, logits

# peft 0.21 asks transformers 5 for a name that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

FAMILIES = ["llama", "gpt2", "opt", "bloom"]
QUICK = {
    "v_num_grad_steps": 3,
    "context_template_length_params": (),
    "mom2_adjustment": False,
}


def rome(target: LM, edits: Sequence[Edit]) -> WeightPatch:
    """One rank per edit, at two layers so that the ranks of the matrices differ."""
    layers = [0, 1, 1]
    return merge(
        [
            ROME(ROMEHyperParams(layers=[layer], **QUICK)).edit(target, [edit]).patch
            for layer, edit in zip(layers, edits, strict=False)
        ]
    )


def memit(target: LM, edits: Sequence[Edit]) -> WeightPatch:
    settings = MEMITHyperParams(layers=[0, 1], mom2_update_weight=1e-2, **QUICK)
    return MEMIT(settings).edit(target, edits).patch


def ft(target: LM, edits: Sequence[Edit]) -> WeightPatch:
    return FT(FTHyperParams(layers=[0, 1], num_steps=3, lr=1e-2)).edit(target, edits).patch


def lora(target: LM, edits: Sequence[Edit]) -> WeightPatch:
    settings = LoRAHyperParams(num_steps=5, lr=2e-2, rank=3)
    return LoRA(settings).edit(target, edits).patch


def adalora(target: LM, edits: Sequence[Edit]) -> WeightPatch:
    settings = AdaLoRAHyperParams(num_steps=6, lr=5e-2, rank=1, initial_rank=3)
    return AdaLoRA(settings).edit(target, edits).patch


METHODS = {"rome": rome, "memit": memit, "ft": ft, "lora": lora, "adalora": adalora}


def patched(target: LM, patch: WeightPatch) -> torch.Tensor:
    patch.apply(target.model)
    said = logits(target.model)
    patch.revert(target.model)
    return said


def adapted(target: LM, folder: Path, *, merge: bool = False) -> torch.Tensor:
    """What a copy of the model says with the adapter that lies in ``folder``."""
    import peft

    model = peft.PeftModel.from_pretrained(copy.deepcopy(target.model), folder)
    return logits(model.merge_and_unload() if merge else model.eval())


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize(
    ("name", "family"), [*product(METHODS, FAMILIES), ("ft", "t5"), ("memit", "gemma2")]
)
def test_peft_says_what_the_patched_model_says(
    name: str, family: str, merge: bool, tmp_path: Path
) -> None:
    target = lm(family)
    patch = METHODS[name](target, EDITS)
    before = Snapshot(target.model)
    made = export_lora(patch, tmp_path / "adapter")
    assert before.differences(target.model) == []
    assert set(made.errors) == set(patch.entries)
    wanted = patched(target, patch)
    said = adapted(target, made.folder, merge=merge)
    assert (wanted - logits(target.model)).abs().max() > 1e-2
    tolerance = 5e-4 if family == "t5" else 1e-5  # the tiny T5's logits reach 16
    torch.testing.assert_close(said, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_rank_is_the_number_of_edits_and_nothing_is_lost(
    family: str, count: int, tmp_path: Path
) -> None:
    target = lm(family)
    patch = memit(target, EDITS[:count])
    made = export_lora(patch, tmp_path)
    assert made.rank == count
    assert set(made.errors.values()) == {0.0}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (count, count)
    assert config["fan_in_fan_out"] == (family == "gpt2")
    for path in patch.entries:
        assert torch.equal(added(tmp_path, path), patch.dense(path))
    with pytest.raises(OutputError, match="is not an empty folder"):
        export_lora(patch, tmp_path)


def test_matrices_of_unequal_rank_share_the_largest(tmp_path: Path) -> None:
    target = lm("llama")
    patch = rome(target, EDITS)
    made = export_lora(patch, tmp_path)
    assert [sum(part.u.shape[1] for part in parts) for parts in patch.entries.values()] == [1, 2]
    assert made.rank == 2
    torch.testing.assert_close(adapted(target, tmp_path), patched(target, patch), rtol=0, atol=1e-5)


def added(folder: Path, path: str) -> torch.Tensor:
    """``(d_in, d_out)``: what the adapter adds to one matrix."""
    name = f"base_model.model.{path.removesuffix('.weight')}"
    tensors = load_file(folder / "adapter_model.safetensors")
    return tensors[f"{name}.lora_A.weight"].T @ tensors[f"{name}.lora_B.weight"].T


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_dense_patch_is_cut_to_its_best_rank_and_says_what_it_lost(
    family: str, rank: int, tmp_path: Path
) -> None:
    target = lm(family)
    patch = ft(target, EDITS)
    made = export_lora(patch, tmp_path, rank=rank)
    assert made.rank == rank
    for path, error in made.errors.items():
        whole = patch.dense(path).double()
        kept = added(tmp_path, path).double()
        true = float((whole - kept).norm() / whole.norm())
        spectrum = torch.linalg.svdvals(whole)
        best = float(spectrum[rank:].norm() / spectrum.norm())
        assert error == pytest.approx(true, rel=1e-4)
        assert error == pytest.approx(best, rel=1e-4)
        assert 0.01 < error < 1
    cut = WeightPatch(
        {path: (Dense(added(tmp_path, path)),) for path in patch.entries},
        patch.info,
        in_out=patch.in_out,
    )
    torch.testing.assert_close(adapted(target, tmp_path), patched(target, cut), rtol=0, atol=1e-5)


def test_a_dense_patch_of_full_rank_loses_nothing(tmp_path: Path) -> None:
    made = export_lora(ft(lm("llama"), EDITS), tmp_path)
    assert made.rank == 32  # the default is more than the width allows
    assert max(made.errors.values()) < 1e-6


def test_dense_and_low_rank_parts_of_one_matrix_are_added(tmp_path: Path) -> None:
    target = lm("gpt2")
    low, dense = rome(target, EDITS[:1]), ft(target, EDITS)
    both = merge([low, dense])
    (path,) = low.entries
    assert {type(part) for part in both.entries[path]} == {LowRank, Dense}
    made = export_lora(both, tmp_path)
    assert made.errors[path] < 1e-6
    torch.testing.assert_close(adapted(target, tmp_path), patched(target, both), rtol=0, atol=1e-5)


def test_only_the_edited_layers_are_adapted(tmp_path: Path) -> None:
    import peft

    target = lm("gpt2")
    patch = rome(target, EDITS[:1])
    export_lora(patch, tmp_path)
    model = peft.PeftModel.from_pretrained(copy.deepcopy(target.model), tmp_path)
    kind = peft.tuners.lora.LoraLayer
    layers = [name for name, module in model.named_modules() if isinstance(module, kind)]
    assert layers == ["base_model.model.transformer.h.0.mlp.c_proj"]
