"""LocFT-BF, LoRA, QLoRA, AdaLoRA and DPO: what is trained, on which loss, in which order."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

import tiny
from easyeditor import LM, Edit, load, load_patch, save_patch
from easyeditor.errors import (
    ContradictingEditsError,
    DivergedError,
    EasyEditError,
    HyperParamsError,
    MissingExtraError,
)
from easyeditor.export.lora import export_lora
from easyeditor.gradients.parametrizations import BudgetedProducts, LowRankProducts
from easyeditor.methods import METHODS
from easyeditor.methods.dpo import rejected_rows
from easyeditor.methods.ft import FT, FTHyperParams
from easyeditor.methods.locft_bf import latest
from easyeditor.methods.qlora import QLoRAHyperParams
from easyeditor.methods.tuning import target_rows
from easyeditor.patches.patch import Patch, merge
from easyeditor.patches.stack import applied
from support import EDITS, Snapshot, lm, logits, logprobs, same_bits

QUICK = {"layers": [1], "num_steps": 4, "lr": 5e-3}
NAMES = ["LocFT-BF", "LoRA", "QLoRA", "AdaLoRA", "DPO"]
DOWN = "model.layers.1.mlp.down_proj.weight"


def patch_of(name: str, target: LM, edits: Any = EDITS, **changes: Any) -> Patch:
    kind = METHODS.get(name)
    settings = kind.hyperparams_class(**{**QUICK, **changes})
    return kind(settings).edit(target, edits).patch


def gain(target: LM, patch: Patch, edit: Edit = EDITS[0]) -> float:
    """How much likelier the target has become, in nats."""
    before = sum(logprobs(target, [(edit.prompt, edit.target)])[0])
    with applied(target.model, patch):
        return sum(logprobs(target, [(edit.prompt, edit.target)])[0]) - before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_training_makes_every_target_likelier(name: str, family: str) -> None:
    target = lm(family)
    changes = {"append_eos": False} if name == "LocFT-BF" else {}
    patch = patch_of(name, target, num_steps=12, lr=2e-2, **changes)
    assert all(gain(target, patch, edit) > 0.5 for edit in EDITS)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_is_the_settings_own(name: str) -> None:
    target = lm("llama")
    first, second, other = (patch_of(name, target, seed=seed, batch_size=2) for seed in (0, 0, 1))
    assert same_bits(first.dense(DOWN), second.dense(DOWN))
    assert not torch.equal(first.dense(DOWN), other.dense(DOWN))


# -- LocFT-BF -----------------------------------------------------------------------------------


def test_a_sequence_ends_where_one_batch_does() -> None:
    target = lm("llama")
    whole = patch_of("LocFT-BF", target)
    patches: list[Patch] = []
    for edit in EDITS:
        patches.append(patch_of("LocFT-BF", target, [edit]))
        assert patches[-1].info.edits == (edit,)
        patches[-1].apply(target.model)
    sequence = logits(target.model)
    for patch in patches:
        patch.revert(target.model)
    with applied(target.model, whole):
        torch.testing.assert_close(sequence, logits(target.model), rtol=0, atol=1e-5)


def test_a_merged_and_a_loaded_patch_carry_their_edits_on(tmp_path: Any) -> None:
    target = lm("llama")
    first = patch_of("LocFT-BF", target, EDITS[:1])
    with applied(target.model, first):
        second = patch_of("LocFT-BF", target, EDITS[1:2])
    whole = merge([first, second], compact=True)
    loaded = load_patch(save_patch(whole, tmp_path / "two.safetensors"))
    with applied(target.model, first), applied(target.model, second):
        expected = patch_of("LocFT-BF", target, EDITS[2:])
    with applied(target.model, loaded):
        result = patch_of("LocFT-BF", target, EDITS[2:])
    torch.testing.assert_close(result.dense(DOWN), expected.dense(DOWN), rtol=0, atol=1e-6)


def test_undoing_the_last_edit_of_a_sequence_is_exact() -> None:
    target = lm("llama")
    clean = logits(target.model)
    first = patch_of("LocFT-BF", target, EDITS[:1])
    first.apply(target.model)
    after_first = logits(target.model)
    second = patch_of("LocFT-BF", target, EDITS[1:])
    second.apply(target.model)
    second.revert(target.model)
    assert same_bits(logits(target.model), after_first)
    first.revert(target.model)
    assert same_bits(logits(target.model), clean)


def test_a_prompt_that_is_edited_anew_replaces_its_edit() -> None:
    anew = replace_target(EDITS[0], "Rome")
    assert latest([EDITS[0], EDITS[1], anew]) == [anew, EDITS[1]]
    target = lm("llama")
    with applied(target.model, patch_of("LocFT-BF", target, EDITS[:1])):
        second = patch_of("LocFT-BF", target, [anew], num_steps=10)
        assert gain(target, second, anew) > 0


def replace_target(edit: Edit, text: str) -> Edit:
    return replace(edit, target=text)


def test_edits_of_another_method_stay_in_the_matrix() -> None:
    target = lm("llama")
    other = FT(FTHyperParams(**QUICK)).edit(target, EDITS[1:2]).patch
    with applied(target.model, other):
        first = patch_of("LocFT-BF", target, EDITS[:1])
        with applied(target.model, first):
            again = patch_of("LocFT-BF", target, EDITS[:1])
    # The same set again, from the same start: nothing is left to change.
    assert again.dense(DOWN).abs().max() < 1e-6
    assert first.dense(DOWN).abs().max() > 1e-3


def test_edits_of_other_weights_cannot_be_trained_again() -> None:
    target = lm("llama")
    with applied(target.model, patch_of("LocFT-BF", target, EDITS[:1])):
        before = Snapshot(target.model)
        with pytest.raises(HyperParamsError, match=r"layers\.2.*layers\.1.*Use the same layers"):
            patch_of("LocFT-BF", target, EDITS[1:], layers=[2])
        assert before.differences(target.model) == []


@pytest.mark.parametrize("name", ["LocFT-BF", "LoRA"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
def test_stored_states_give_what_whole_passes_give(
    name: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = lm(family)
    path = target.projection(2).path
    fast = patch_of(name, target, layers=[2])
    module = "locft_bf" if name == "LocFT-BF" else "tuning"
    monkeypatch.setattr(
        f"easyeditor.methods.{module}.logits_above", lambda lm, _paths, _rows: lm.target_logits
    )
    slow = patch_of(name, target, layers=[2])
    difference = (fast.dense(path) - slow.dense(path)).norm()
    assert difference < 0.02 * slow.dense(path).norm()


def test_the_answer_ends_with_the_end_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    target = lm("llama")
    row = target_rows(target, EDITS[:1], append_eos=True)[0]
    assert row.ids[-1] == row.target[-1] == target.tokenizer.eos_token_id
    monkeypatch.setattr(target, "tokenizer", copy.deepcopy(target.tokenizer))
    target.tokenizer.eos_token = None
    monkeypatch.setattr(target.text, "tokenizer", target.tokenizer)
    before = Snapshot(target.model)
    with pytest.raises(HyperParamsError, match="no end-of-sequence token"):
        patch_of("LocFT-BF", target)
    assert before.differences(target.model) == []


# -- low-rank ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "count"),
    [(["q_proj", "v_proj"], 4), (["mlp.down_proj"], 2), (["model.layers.{}.mlp.up_proj"], 2)],
)
def test_modules_are_named_as_in_peft_or_whole(names: list[str], count: int) -> None:
    patch = patch_of("LoRA", lm("llama"), target_modules=names, layers=[0, 2])
    assert len(patch.entries) == count
    assert all(".1." not in path for path in patch.entries)


def test_without_layers_all_blocks_are_trained() -> None:
    assert len(patch_of("LoRA", lm("llama"), layers=[]).entries) == 3
    assert len(patch_of("LoRA", lm("t5"), layers=[], target_modules=["wo"]).entries) == 6


MISTAKES = {
    "unknown module": ({"target_modules": ["q_prj"]}, "q_prj.*Did you mean 'q_proj'"),
    "no matrix": ({"target_modules": ["input_layernorm"]}, "input_layernorm.weight is none"),
    "budget": ({"lora_type": "adalora", "initial_rank": 2, "rank": 4}, "initial_rank=2, rank=4"),
    "layer": ({"layers": [7]}, "has 3 layers"),
    "whole name": ({"target_modules": ["model.layers.{}.mlp.dawn"]}, "dawn"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_settings_that_do_not_fit_leave_the_model_alone(mistake: str) -> None:
    changes, message = MISTAKES[mistake]
    target = lm("llama")
    before = Snapshot(target.model)
    with pytest.raises(HyperParamsError, match=message):
        patch_of("LoRA", target, **changes)
    assert before.differences(target.model) == []


def test_a_mixture_of_experts_is_told_to_name_other_modules() -> None:
    target = lm("mixtral")
    before = Snapshot(target.model)
    with pytest.raises(HyperParamsError, match="attention projections"):
        patch_of("LoRA", target)
    assert before.differences(target.model) == []
    assert len(patch_of("LoRA", target, target_modules=["q_proj"]).entries) == 1


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_trained_leaves_the_model_alone(name: str) -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    with pytest.raises(ContradictingEditsError):
        patch_of(name, target, [EDITS[0], replace_target(EDITS[0], "Rome")])
    with pytest.raises(EasyEditError):
        patch_of(name, target, [])
    assert before.differences(target.model) == []
    target.head.register_forward_hook(lambda _module, _args, output: output * torch.nan)
    before = Snapshot(target.model)
    with pytest.raises(DivergedError, match=f"{name}'s loss became (nan|inf)"):
        patch_of(name, target)
    assert before.differences(target.model) == []


def test_low_rank_patches_hold_two_factors_and_start_at_the_model() -> None:
    target = lm("gpt2")
    weights = target.weights([1])
    generator = torch.Generator().manual_seed(0)
    before = logits(target.model)
    for products in (
        LowRankProducts(weights, 3, 6, 0.0, generator),
        BudgetedProducts(weights, 3, 1, 6, 0.0, generator),
    ):
        with products.applied(target.model):
            assert torch.equal(logits(target.model), before)
    patch = patch_of("LoRA", target, rank=3)
    part = patch.entries[weights[0].path][0]
    assert (part.u.shape[1], part.v.shape[0]) == (3, 3)


def test_the_trained_model_is_the_patched_model() -> None:
    target = lm("llama")
    weights = target.weights([1])
    for products in (
        LowRankProducts(weights, 3, 6, 0.0, torch.Generator().manual_seed(0)),
        BudgetedProducts(weights, 3, 1, 6, 0.0, torch.Generator().manual_seed(0)),
    ):
        with torch.no_grad():
            for tensor in products.parameters:
                tensor.add_(0.3)
        with products.applied(target.model):
            trained = logits(target.model)
        change = products.parts()[weights[0].path][0].dense()
        weight = target.model.get_parameter(weights[0].path)
        original = weight.data
        weight.data = original + change.T
        torch.testing.assert_close(logits(target.model), trained, rtol=0, atol=1e-4)
        weight.data = original


# peft 0.21 asks transformers 5 for a name that it has deprecated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ["LoRA", "AdaLoRA"])
def test_peft_gives_the_logits_of_the_patched_model(name: str, family: str, tmp_path: Any) -> None:
    import peft

    target = lm(family)
    before = logits(target.model)
    patch = patch_of(name, target, layers=[], rank=2, lr=5e-2)
    exported = export_lora(patch, tmp_path / "adapter")
    assert set(exported.errors.values()) == {0.0}
    with applied(target.model, patch):
        expected = logits(target.model)
    adapter = peft.PeftModel.from_pretrained(copy.deepcopy(target.model), exported.folder).eval()
    torch.testing.assert_close(logits(adapter), expected, rtol=0, atol=1e-4)
    assert (expected - before).abs().max() > 1e-2


@pytest.mark.parametrize("steps", [2, 8])
def test_the_budget_is_reached_over_all_matrices(steps: int) -> None:
    target = lm("llama")
    patch = patch_of("AdaLoRA", target, layers=[], num_steps=steps, rank=2, initial_rank=5, lr=5e-2)
    ranks = [parts[0].rank for parts in patch.entries.values()]
    assert sum(ranks) == 2 * 3
    assert max(ranks) <= 5


def test_training_goes_on_until_the_budget_is_reached() -> None:
    products = BudgetedProducts(lm("llama").weights([1]), 4, 1, 4, 0.0, torch.Generator())
    seen = []
    for epoch in range(10):
        products.after_epoch((epoch + 1) / 10)
        seen.append(products.settled)
    assert seen == sorted(seen)
    assert not seen[0]
    assert seen[7]


# -- DPO ----------------------------------------------------------------------------------------


def test_the_old_answer_is_the_given_one_or_the_models_own() -> None:
    target = lm("llama")
    new = target_rows(target, EDITS, append_eos=False)
    given = replace(EDITS[0], rejected="Danish")
    same = replace(EDITS[1], rejected=EDITS[1].target)
    rows = rejected_rows(target, [given, same, EDITS[2]], new)
    assert rows[0] == target.text.row(given.prompt, "Danish")
    assert rows[1] is None
    assert rows[2] is None or rows[2].target


def test_the_old_answer_loses_against_the_new_one() -> None:
    target = lm("llama")
    edit = replace(EDITS[0], rejected="Danish")
    margins = {}
    for alpha in (0.0, 1.0):
        patch = patch_of("DPO", target, [edit], alpha=alpha, num_steps=20, lr=1e-2)
        with applied(target.model, patch):
            new, old = logprobs(target, [(edit.prompt, edit.target), (edit.prompt, "Danish")])
        margins[alpha] = sum(new) - sum(old)
    before_new, before_old = logprobs(target, [(edit.prompt, edit.target), (edit.prompt, "Danish")])
    before = sum(before_new) - sum(before_old)
    assert all(margin > before for margin in margins.values())


# -- QLoRA --------------------------------------------------------------------------------------


def test_classic_names_of_its_settings() -> None:
    settings = QLoRAHyperParams(
        quantization_bit=8, lora_r=4, double_quant=True, quant_type="nf4", max_length=30
    )
    assert (settings.quantization, settings.rank) == ("8bit", 4)
    assert QLoRAHyperParams().quantization == "4bit"
    with pytest.raises(HyperParamsError, match="quantization"):
        QLoRAHyperParams(quantization_bit=3)


def test_an_unquantized_model_is_trained_and_named(caplog: pytest.LogCaptureFixture) -> None:
    patch_of("QLoRA", lm("llama"))
    assert "is not quantized" in caplog.text
    assert "easyedit-lm[quantized]" in caplog.text


def test_without_bitsandbytes_the_install_command_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    tiny.model("llama").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match="pip install"):
        load(str(tmp_path), device="cpu", quantization=QLoRAHyperParams().quantization)


@pytest.mark.parametrize("method", ["LoRA", "AdaLoRA"])
def test_dropout_leaves_inputs_out(method: str) -> None:
    plain, dropped = (
        patch_of(method, lm("llama"), layers=[1], num_steps=3, rank=2, lr=5e-2, lora_dropout=share)
        for share in (0.0, 0.5)
    )
    path = next(iter(plain.entries))
    assert not torch.equal(plain.entries[path][0].v, dropped.entries[path][0].v)
