"""Models quantized by bitsandbytes: only what is edited is unpacked, and packed again after."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

import tiny
from cases import BY_NAME, WRITING
from easyeditor import LM, BaseEditor, FTHyperParams, load, load_patch, save_patch
from easyeditor.associative.value_optimization import ValueOptions, optimize_values
from easyeditor.errors import (
    HyperParamsError,
    MissingExtraError,
    ModelLoadError,
    PatchMismatchError,
    UnsupportedModelError,
)
from easyeditor.lm.fingerprint import fingerprint
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.inference import generate
from easyeditor.lm.quantized import dequantized, quantized_layers
from easyeditor.lm.weights import weight_handle, whole_state
from easyeditor.methods import METHODS
from easyeditor.patches.copies import edited_copy
from support import EDITS, Snapshot, logits, logprobs, same_bits
from synthetic import some_patch
from tiers import paired

SCHEMES = ("8bit", "4bit")
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}  # 4 bits come in blocks of 64
DOWN = "model.layers.{}.mlp.down_proj"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models on disk that are wide enough to be quantized."""
    made = {"llama": tiny.model("llama", **WIDE), "gpt2": tiny.model("gpt2", n_embd=64)}
    places = {}
    for name, model in made.items():
        places[name] = tmp_path_factory.mktemp("whole") / name
        model.save_pretrained(places[name])
        tiny.tokenizer().save_pretrained(places[name])
    return places


def whole(lm: LM) -> dict[str, torch.Tensor]:
    return {
        f"{name}.weight": dequantized(module)
        for name, module in lm.model.named_modules()
        if module in quantized_layers(lm.model)
    }


def packed(model: PreTrainedModel) -> list[tuple[int, torch.Tensor]]:
    """Every quantized layer: the very object and its bits."""
    return [(id(m), m.weight.data.clone()) for m in quantized_layers(model)]


def same(a: list[tuple[int, torch.Tensor]], b: list[tuple[int, torch.Tensor]]) -> bool:
    return [i for i, _ in a] == [i for i, _ in b] and all(
        same_bits(x, y) for (_, x), (_, y) in zip(a, b, strict=True)
    )


def unquantized(lm: LM, folder: Path) -> LM:
    """The plain model with the quantized one's numbers."""
    plain = load(str(folder), device="cpu")
    for path, weight in whole(lm).items():
        transposed = isinstance(plain.model.get_submodule(path.rpartition(".")[0]), Conv1D)
        assert plain.model.get_parameter(path).shape == weight.shape, transposed
        plain.model.get_parameter(path).data = weight.float().clone()
    return plain


@pytest.mark.parametrize(("name", "scheme"), paired(WRITING, SCHEMES))
def test_edits_take_and_are_undone(name, scheme, folders, stats_dir, tmp_path):
    lm = load(str(folders["llama"]), device="cpu", quantization=scheme)
    clean, before = logits(lm.model), packed(lm.model)
    assert len(before) == 3 * 7
    snapshot = Snapshot(lm.model)
    kind = METHODS.get(name)
    fields = kind.hyperparams_class.model_fields
    more = {"stats_dir": stats_dir, "mom2_update_weight": 1}  # of the text that is shipped
    more = {key: value for key, value in more.items() if key in fields}
    patch = kind(kind.hyperparams_class(**BY_NAME[name].quick, **more)).edit(lm, EDITS[:1]).patch
    assert snapshot.differences(lm.model) == []
    assert all(patch.dense(path).abs().max() > 0 for path in patch.entries)
    asked = [(EDITS[0].prompt, EDITS[0].target)]
    said = sum(logprobs(lm, asked)[0])
    reads = {path: weight_handle(lm.model, path).read_weight() for path in patch.entries}
    patch.apply(lm.model)
    for path in patch.entries:  # the exact change, rounded once
        layer = lm.model.get_submodule(path.removesuffix(".weight"))
        linear = reads[path].ndim == 2  # else the weights of a norm, which are not packed
        assert (type(layer) is nn.Linear) == linear
        change = patch.dense(path).T if linear else patch.dense(path)
        exact = (reads[path].float() + change).to(lm.model.dtype)
        assert same_bits(layer.weight.data, exact)
    assert len(quantized_layers(lm.model)) == 3 * 7
    if BY_NAME[name].takes:
        assert sum(logprobs(lm, asked)[0]) > said + 0.1
    assert generate(lm, [EDITS[0].prompt], 3)[0]
    loaded = load_patch(save_patch(patch, tmp_path / "p.safetensors"))
    loaded.apply(load(str(folders["llama"]), device="cpu").model)  # the unquantized model
    patch.revert(lm.model)
    assert same(packed(lm.model), before)
    assert snapshot.differences(lm.model) == []
    assert same_bits(logits(lm.model), clean)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_patch_is_that_of_the_unpacked_numbers(scheme, folders):
    lm = load(str(folders["llama"]), device="cpu", quantization=scheme)
    plain = unquantized(lm, folders["llama"])
    site = Site(1, "down")
    search = ValueOptions(3, 0.5, 0.5, 4.0, 0.0625)
    found = optimize_values(lm, site, EDITS[:1], [""], search)
    wanted = optimize_values(plain, site, EDITS[:1], [""], search)
    # 8-bit layers round their inputs, too.
    near = 0.01 if scheme == "4bit" else 0.2
    assert (found.delta - wanted.delta).norm() < near * wanted.delta.norm()
    slow = optimize_values(lm, site, EDITS[:1], [""], search, resume=False)
    assert (found.delta - slow.delta).norm() < near * slow.delta.norm()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_patches_are_undone_in_any_order(scheme, family, folders):
    lm = load(str(folders[family]), device="cpu", quantization=scheme)
    before = packed(lm.model)
    clean = logits(lm.model)
    patches = [some_patch(lm, layer, seed) for seed, layer in enumerate((1, 1, 2))]
    one_on = []
    for patch in patches:
        patch.apply(lm.model)
        one_on.append(logits(lm.model))
        patch.revert(lm.model)
        assert same(packed(lm.model), before)
        patch.check(load(str(folders[family]), device="cpu").model)
    for patch in patches:
        patch.apply(lm.model)
    patches[0].revert(lm.model)
    patches[2].revert(lm.model)
    assert same_bits(logits(lm.model), one_on[1])
    patches[1].revert(lm.model)
    assert same(packed(lm.model), before)
    assert same_bits(logits(lm.model), clean)


def test_an_unpacked_layer_keeps_what_hangs_on_it(folders):
    lm = load(str(folders["gpt2"]), device="cpu", quantization="4bit")
    layer = lm.projection(1).module
    seen: list[str] = []
    handle = layer.register_forward_hook(lambda *_: seen.append("before"))
    patch = some_patch(lm, 1)
    seen.clear()
    patch.apply(lm.model)
    edited = lm.projection(1).module
    assert type(edited) is Conv1D
    assert edited.bias is layer.bias
    later = edited.register_forward_hook(lambda *_: seen.append("during"))
    logits(lm.model)
    assert seen == ["before", "during"]
    handle.remove()
    patch.revert(lm.model)
    logits(lm.model)
    assert lm.projection(1).module is layer
    assert seen == ["before", "during", "during"]
    later.remove()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_copies_share_what_is_packed(scheme, folders):
    lm = load(str(folders["llama"]), device="cpu", quantization=scheme)
    first, second = some_patch(lm, 1), some_patch(lm, 1, seed=1)
    clean = logits(lm.model)
    first.apply(lm.model)
    one = logits(lm.model)
    twin = edited_copy(lm.model, second)
    two = logits(twin)
    assert same_bits(logits(lm.model), one)
    assert not same_bits(two, one)
    first.revert(lm.model)
    second.revert(twin)
    assert same_bits(logits(lm.model), clean)
    assert same_bits(logits(twin), one)
    first.revert(twin)
    pairs = list(zip(quantized_layers(lm.model), quantized_layers(twin), strict=True))
    assert all(a is not b and a.weight is not b.weight for a, b in pairs)
    assert all(a.weight.data_ptr() == b.weight.data_ptr() for a, b in pairs)
    assert same_bits(logits(twin), clean)


def test_a_model_quantized_by_its_owner_and_an_editor(folders, tmp_path):
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True
    )
    model = AutoModelForCausalLM.from_pretrained(
        folders["llama"], quantization_config=config, dtype=torch.bfloat16
    )
    editor = BaseEditor.from_pretrained(
        model, tiny.tokenizer(), FTHyperParams(layers=[1], num_steps=3, lr=5e-3)
    )
    told = {"prompts": EDITS[0].prompt, "target_new": EDITS[0].target, "verbose": False}
    clean, before = logits(model), packed(model)
    kept = editor.edit(**told, keep_original_weight=True)
    assert same_bits(logits(model), clean)
    assert same(packed(model), before)
    edited = logits(kept.edited_model)
    assert not same_bits(edited, clean)
    result = editor.edit(**told)
    assert result.edited_model is model
    assert same_bits(logits(model), edited)
    editor.undo(result.patch)
    assert same(packed(model), before)
    assert same_bits(logits(model), clean)


def test_hyperparameters_and_the_script(folders, easyedit, tmp_path):
    place = str(folders["llama"])
    settings = FTHyperParams(model_name=place, device="cpu", quantization="8bit", layers=[1])
    assert len(quantized_layers(BaseEditor.from_hparams(settings).model)) == 3 * 7
    with pytest.raises(HyperParamsError, match="quantization='2bit'"):
        FTHyperParams(quantization="2bit")
    told = ("--model", place, "--device", "cpu")
    file, out = str(tmp_path / "p.safetensors"), str(tmp_path / "out")
    asked = ("--prompt", EDITS[0].prompt, "--target", EDITS[0].target, "--save", file)
    steps = ("--set", "num_steps=2", "--set", "layers=1")
    easyedit("edit", "-m", "ft", *asked, *told, *steps, "--quantization", "4bit")
    assert load_patch(file).info.hyperparams["quantization"] == "4bit"
    said = easyedit("generate", "Anna", "--patch", file, *told, "--quantization", "8bit", "--json")
    assert said.code == 0
    assert set(json.loads(said.out)) >= {"before", "after"}
    assert easyedit("apply", file, "--out", out, *told).code == 0  # whole
    load(place, device="cpu", quantization="8bit").model.save_pretrained(tmp_path / "packed")
    tiny.tokenizer().save_pretrained(tmp_path / "packed")
    told = ("--model", str(tmp_path / "packed"), "--device", "cpu")
    refused = easyedit("apply", file, "--out", str(tmp_path / "other"), *told)
    assert refused.code == 2
    assert "unquantized model" in refused.err
    assert not (tmp_path / "other").exists()


def test_layers_with_accelerates_hooks(folders):
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    plain = load(str(folders["llama"]), device="cpu", quantization="4bit")
    lm = load(str(folders["llama"]), device="cpu", quantization="4bit")
    for module in lm.model.modules():
        if not list(module.children()):
            add_hook_to_module(module, AlignDevicesHook("cpu", io_same_device=True))
    patch = some_patch(plain, 1)
    layer, hook = lm.projection(1).module, lm.projection(1).module._hf_hook
    clean = logits(lm.model)
    patch.apply(lm.model)
    patch.apply(plain.model)
    edited = lm.projection(1).module
    assert edited is not layer
    assert edited._hf_hook is hook
    assert same_bits(logits(lm.model), logits(plain.model))
    patch.revert(lm.model)
    assert lm.projection(1).module is layer
    assert same_bits(logits(lm.model), clean)


def test_fingerprints_know_the_model_and_its_precision(folders):
    place = str(folders["llama"])
    plain = load(place, device="cpu")
    eight, four = (load(place, device="cpu", quantization=s) for s in SCHEMES)
    marks = [fingerprint(lm.model) for lm in (plain, eight, four)]
    assert len({mark.digest for mark in marks}) == 3  # statistics of one are not another's
    assert not any(a.differences(b) for a in marks for b in marks)
    whole_model = tiny.model("llama", seed=1, **WIDE)
    whole_model.load_state_dict(whole_state(four.model))
    assert same_bits(whole_model.lm_head.weight, plain.model.lm_head.weight)
    assert same_bits(
        LM(whole_model, tiny.tokenizer()).projection(1).weight, four.projection(1).weight
    )
    other = LM(tiny.model("llama", seed=1, **WIDE), tiny.tokenizer())
    patch = some_patch(four, 1)
    with pytest.raises(PatchMismatchError, match="sampled weights differ"):
        patch.apply(other.model)
    patch.apply(four.model)
    assert fingerprint(four.model) == marks[2]


def test_weights_of_other_quantizers_are_refused_before_anything_changes():
    class Packed(nn.Module):
        """A layer as GPTQ and AWQ have it: no weight, only its packed parts."""

        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            self.register_buffer("qweight", layer.weight.detach().clone())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.qweight.T

    for change in ("no weight", "float8"):
        model = tiny.model("llama")
        down = model.model.layers[1].mlp.down_proj
        if change == "no weight":
            model.model.layers[1].mlp.down_proj = Packed(down)
        else:
            down.weight = nn.Parameter(down.weight.to(torch.float8_e4m3fn), requires_grad=False)
        lm = LM(model, tiny.tokenizer())
        snapshot = Snapshot(model)
        ft = METHODS.get("FT")(FTHyperParams(layers=[1]))
        with pytest.raises(UnsupportedModelError, match=r"down_proj\.weight.*bitsandbytes"):
            ft.edit(lm, EDITS[:1])
        assert snapshot.differences(model) == []
        whole_model = LM(tiny.model("llama"), tiny.tokenizer())
        patch = some_patch(whole_model, 1)
        with pytest.raises((UnsupportedModelError, PatchMismatchError)):
            patch.apply(model, force=True)
        assert snapshot.differences(model) == []


def test_what_is_packed_and_offloaded_is_refused(folders):
    lm = load(str(folders["llama"]), device="cpu", quantization="4bit")
    patch = some_patch(lm, 1)
    layer = lm.projection(1).module
    layer.weight = nn.Parameter(layer.weight.data.to("meta"), requires_grad=False)
    weight = layer.weight
    again = LM(lm.model, tiny.tokenizer())
    with pytest.raises(UnsupportedModelError, match="quantized and offloaded at once"):
        again.projection(1)
    with pytest.raises(UnsupportedModelError, match="quantized and offloaded at once"):
        patch.apply(lm.model, force=True)
    assert lm.model.get_submodule(DOWN.format(1)).weight is weight


def test_weights_that_a_pass_has_repacked_are_refused(folders):
    lm = load(str(folders["llama"]), device="cpu", quantization="4bit")
    weight = lm.projection(1).module.weight
    patch = some_patch(lm, 1)
    weight.quant_state.packing_format_for_cpu = True  # as some CPUs' kernels leave it
    before = packed(lm.model)
    with pytest.raises(UnsupportedModelError, match="before its first pass"):
        patch.apply(lm.model)
    assert same(packed(lm.model), before)
    assert not vars(lm.model)["easyedit_stack"].patches


def test_loading_says_what_is_missing_or_wrong(folders, monkeypatch, tmp_path):
    with pytest.raises(ModelLoadError, match=r"quantization='3bit': use '8bit', '4bit'"):
        load(str(folders["llama"]), quantization="3bit")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError, match="name the original"):
        load(str(tmp_path / "m.gguf"), quantization="8bit")
    load(str(folders["llama"]), device="cpu", quantization="8bit").model.save_pretrained(
        tmp_path / "packed"
    )
    tiny.tokenizer().save_pretrained(tmp_path / "packed")
    assert quantized_layers(load(str(tmp_path / "packed"), device="cpu").model)
    with pytest.raises(ModelLoadError, match="quantized already"):
        load(str(tmp_path / "packed"), quantization="8bit")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "bitsandbytes" else find(n, *a)
    )
    with pytest.raises(MissingExtraError, match=r"pip install \"easyedit-lm\[quantized\]\""):
        load(str(folders["llama"]), quantization="4bit")
