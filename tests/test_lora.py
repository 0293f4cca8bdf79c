"""A patch exported as a LoRA adapter does in peft what it does here."""

from __future__ import annotations

import copy
import json
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from easyeditor import LM, load_patch, save_patch
from easyeditor.errors import OutputError, PatchError
from easyeditor.export.lora import export_lora
from easyeditor.hyperparams import HyperParams
from easyeditor.patches.patch import merge
from easyeditor.patches.weight import Dense, LowRank, WeightPatch, weight_patch
from support import Snapshot, lm, logits
from synthetic import EDIT, patch

# peft 0.21 asks transformers 5 for a name that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

FAMILIES = ["llama", "gpt2", "opt", "bloom"]


def rank_one(target: LM, count: int = 3) -> WeightPatch:
    """Of one rank per edit, at two layers, so that the ranks of the matrices differ."""
    return merge([patch(target, "low", i, (min(i, 1),), size=0.3) for i in range(count)])


def low_rank(target: LM, rank: int = 3) -> WeightPatch:
    """Of the same rank at two layers."""
    return patch(target, f"rank {rank}", 3, size=0.3)


def dense(target: LM) -> WeightPatch:
    """Of full rank at two layers."""
    return patch(target, "dense", 4)


PATCHES = {"ranks that differ": rank_one, "one rank": low_rank, "full rank": dense}


def patched(target: LM, edit: WeightPatch) -> torch.Tensor:
    edit.apply(target.model)
    result = logits(target.model)
    edit.revert(target.model)
    return result


def adapted(target: LM, folder: Path, *, merge: bool = False) -> torch.Tensor:
    """What a copy of the model says with the adapter that lies in ``folder``."""
    import peft

    model = peft.PeftModel.from_pretrained(copy.deepcopy(target.model), folder)
    return logits(model.merge_and_unload() if merge else model.eval())


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize(
    ("name", "family"), [*product(PATCHES, FAMILIES), ("full rank", "t5"), ("one rank", "gemma2")]
)
def test_peft_says_what_the_patched_model_says(
    name: str, family: str, merge: bool, tmp_path: Path
) -> None:
    target = lm(family)
    edit = PATCHES[name](target)
    before = Snapshot(target.model)
    made = export_lora(edit, tmp_path / "adapter")
    assert before.differences(target.model) == []
    assert set(made.errors) == set(edit.entries)
    wanted = patched(target, edit)
    said = adapted(target, made.folder, merge=merge)
    assert (wanted - logits(target.model)).abs().max() > 1e-2
    tolerance = 5e-4 if family == "t5" else 1e-5  # the tiny T5's logits reach 16
    torch.testing.assert_close(said, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_rank_is_that_of_the_patch_and_nothing_is_lost(
    family: str, count: int, tmp_path: Path
) -> None:
    target = lm(family)
    edit = low_rank(target, count)
    made = export_lora(edit, tmp_path)
    assert made.rank == count
    assert set(made.errors.values()) == {0.0}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (count, count)
    assert config["fan_in_fan_out"] == (family == "gpt2")
    for path in edit.entries:
        assert torch.equal(added(tmp_path, path), edit.dense(path))
    with pytest.raises(OutputError, match="is not an empty folder"):
        export_lora(edit, tmp_path)


def test_matrices_of_unequal_rank_share_the_largest(tmp_path: Path) -> None:
    target = lm("llama")
    edit = rank_one(target)
    made = export_lora(edit, tmp_path)
    assert [sum(part.u.shape[1] for part in parts) for parts in edit.entries.values()] == [1, 2]
    assert made.rank == 2
    torch.testing.assert_close(adapted(target, tmp_path), patched(target, edit), rtol=0, atol=1e-5)


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
    edit = dense(target)
    result = export_lora(edit, tmp_path, rank=rank, base="org/model")
    assert result.rank == rank
    for path, error in result.errors.items():
        whole = edit.dense(path).double()
        kept = added(tmp_path, path).double()
        true = float((whole - kept).norm() / whole.norm())
        spectrum = torch.linalg.svdvals(whole)
        best = float(spectrum[rank:].norm() / spectrum.norm())
        assert error == pytest.approx(true, rel=1e-4)
        assert error == pytest.approx(best, rel=1e-4)
        assert 0.01 < error < 1
    assert bool(result.notes) == (max(result.errors.values()) > 0.1)
    assert all(f"Rank {rank} leaves out" in note for note in result.notes)
    cut = WeightPatch(
        {path: (Dense(added(tmp_path, path)),) for path in edit.entries},
        edit.info,
        in_out=edit.in_out,
    )
    torch.testing.assert_close(adapted(target, tmp_path), patched(target, cut), rtol=0, atol=1e-5)


def test_a_dense_patch_of_full_rank_loses_nothing(tmp_path: Path) -> None:
    made = export_lora(dense(lm("llama")), tmp_path)
    assert made.rank == 32  # the default is more than the width allows
    assert max(made.errors.values()) < 1e-6


def test_dense_and_low_rank_parts_of_one_matrix_are_added(tmp_path: Path) -> None:
    target = lm("gpt2")
    low = rank_one(target, 1)
    both = merge([low, dense(target)])
    (path,) = low.entries
    assert {type(part) for part in both.entries[path]} == {LowRank, Dense}
    made = export_lora(both, tmp_path)
    assert made.errors[path] < 1e-6
    torch.testing.assert_close(adapted(target, tmp_path), patched(target, both), rtol=0, atol=1e-5)


def test_only_the_edited_layers_are_adapted(tmp_path: Path) -> None:
    import peft

    target = lm("gpt2")
    edit = rank_one(target, 1)
    export_lora(edit, tmp_path)
    model = peft.PeftModel.from_pretrained(copy.deepcopy(target.model), tmp_path)
    kind = peft.tuners.lora.LoraLayer
    layers = [name for name, module in model.named_modules() if isinstance(module, kind)]
    assert layers == ["base_model.model.transformer.h.0.mlp.c_proj"]


def change_of(target: LM, *paths: str) -> WeightPatch:
    """A change of rank one of each of these matrices."""
    generator = torch.Generator().manual_seed(0)
    entries = {}
    for path in paths:
        rows, columns = target.model.get_parameter(path).shape
        turned = isinstance(target.model.get_submodule(path.rpartition(".")[0]), nn.Linear)
        d_in, d_out = (columns, rows) if turned else (rows, columns)
        u, v = (torch.randn(size, generator=generator) / 4 for size in ((d_in, 1), (1, d_out)))
        entries[path] = [LowRank(u, v)]
    return weight_patch(target, "test", [EDIT], HyperParams(), entries, {})


@pytest.mark.parametrize(
    ("family", "path"),
    [("gpt2", "transformer.wte"), ("gpt2", "transformer.wpe"), ("llama", "model.embed_tokens")],
)
def test_a_change_of_an_embedding_is_refused(family: str, path: str, tmp_path: Path) -> None:
    target = lm(family)
    edit = change_of(target, f"{path}.weight")
    again = load_patch(save_patch(edit, tmp_path / "edit.safetensors"))
    for each in (edit, again, merge([again, low_rank(target, 1)])):
        with pytest.raises(PatchError, match=f"{path}.weight is no change of a linear layer"):
            export_lora(each, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


# peft says of a layer that it is stored the other way round than the setting says, and corrects it.
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_matrices_stored_both_ways_in_one_patch(tmp_path: Path) -> None:
    target = lm("gpt2", tie_word_embeddings=False)
    layers = "transformer.h.0.mlp.c_proj", "lm_head", "transformer.h.1.mlp.c_fc"
    paths = [f"{name}.weight" for name in layers]
    edit = change_of(target, *paths)
    assert edit.in_out == {paths[0], paths[2]}
    assert not edit.no_linear
    export_lora(edit, tmp_path)
    wanted = patched(target, edit)
    for merged in (False, True):
        said = adapted(target, tmp_path, merge=merged)
        torch.testing.assert_close(said, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("family", "auto"), [("llama", "CausalLM"), ("t5", "Seq2SeqLM")])
def test_peft_loads_base_and_adapter_by_itself(family: str, auto: str, tmp_path: Path) -> None:
    import peft

    target = lm(family)
    target.model.save_pretrained(tmp_path / "model")
    edit = low_rank(target)
    result = export_lora(edit, tmp_path / "adapter", base=str(tmp_path / "model"))
    loaded = getattr(peft, f"AutoPeftModelFor{auto}").from_pretrained(result.folder)
    tolerance = 5e-4 if family == "t5" else 1e-5
    torch.testing.assert_close(logits(loaded.eval()), patched(target, edit), rtol=0, atol=tolerance)


def test_what_is_written_of_the_base_model(tmp_path: Path) -> None:
    target = lm("llama")

    def config(name: str, place: str, **more: str) -> tuple[dict[str, object], tuple[str, ...]]:
        target.model.config._name_or_path = name
        result = export_lora(low_rank(target), tmp_path / place, **more)
        return json.loads((result.folder / "adapter_config.json").read_text()), result.notes

    written, notes = config("org/model", "a")
    assert written["task_type"] == "CAUSAL_LM"
    assert (written["base_model_name_or_path"], notes) == ("org/model", ())
    written, notes = config("smollm2-135m", "b")
    assert written["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "in 4 bits" in notes[0]
    written, notes = config("/some/where/model", "c")
    assert written["base_model_name_or_path"] == "model"
    assert "leads nowhere outside this machine" in notes[0]
    written, notes = config("/some/where/model", "d", base="org/model")
    assert (written["base_model_name_or_path"], notes) == ("org/model", ())


def test_a_model_that_is_neither_is_named_by_its_class() -> None:
    from easyeditor.export.lora import _kind_of_model

    written = _kind_of_model("LlavaForConditionalGeneration")
    assert written["task_type"] is None
    assert written["auto_mapping"]["base_model_class"] == "LlavaForConditionalGeneration"
    assert _kind_of_model("OfItsOwnCode") == {"task_type": None}


@pytest.mark.parametrize(
    ("rank", "words"), [(16, ""), (17, "--max-lora-rank 32"), (513, "up to rank 512")]
)
def test_the_rank_that_vllm_has_to_be_started_with(rank: int, words: str) -> None:
    from easyeditor.export.lora import _rank_notes

    assert words in " ".join(_rank_notes(rank))
    assert bool(_rank_notes(rank)) == bool(words)


def test_the_former_place_of_the_export() -> None:
    from easyeditor.patches import lora

    assert lora.export_lora is export_lora
    assert lora.LoraExport.__name__ == "Export"
    assert lora.DENSE_RANK == 64
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lora.nothing
