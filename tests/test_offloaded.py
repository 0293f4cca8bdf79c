"""Models whose weights accelerate keeps on the CPU or on disk are edited like any other."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AutoModelForCausalLM, PreTrainedModel

import tiny
from cases import WRITING
from easyeditor import LM, BaseEditor, FTHyperParams, load, load_patch, save_patch
from easyeditor.errors import MetaDeviceError, ModelLoadError, UnsupportedModelError
from easyeditor.export.lora import export_lora
from easyeditor.lm.fingerprint import fingerprint
from easyeditor.lm.forward.activation_memory import BufferPool, low_memory_autograd
from easyeditor.lm.hooks import adding
from easyeditor.lm.inference import generate
from easyeditor.lm.memory import model_bytes
from easyeditor.lm.weights import weight_handle, whole_state
from easyeditor.patches.adapter import AddVector
from easyeditor.patches.copies import edited_copy
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.norms import change_norms
from easyeditor.patches.weight import LowRank, WeightPatch
from easyeditor.patches.weight_sum import WeightSum
from support import EDITS, logits, same_bits
from synthetic import info, some_patch
from tiers import paired

PATHS = {
    "llama": "model.layers.{}.mlp.down_proj.weight",
    "gpt2": "transformer.h.{}.mlp.c_proj.weight",
}


def offload(model: PreTrainedModel, where: str, folder: Path) -> PreTrainedModel:
    """Every weight leaves the model, as for an accelerator that is too small."""
    import accelerate

    if where == "cpu":
        return accelerate.cpu_offload(model, execution_device="cpu")
    return accelerate.disk_offload(model, folder, execution_device="cpu")


def partly(folder: Path, offloaded: Path) -> PreTrainedModel:
    """As ``from_pretrained`` leaves a model with one block on disk."""
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    places |= {"lm_head": "cpu", "model.layers.0": "cpu", "model.layers.2": "cpu"}
    return AutoModelForCausalLM.from_pretrained(
        folder, device_map={**places, "model.layers.1": "disk"}, offload_folder=offloaded
    )


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {
        name: weight_handle(model, name).read_weight().clone()
        for name, _ in model.named_parameters()
    }


def maps(model: PreTrainedModel) -> list[object]:
    """What accelerate's hooks look weights up in: the very objects."""
    return [
        getattr(m._hf_hook, "weights_map", None) for m in model.modules() if hasattr(m, "_hf_hook")
    ]


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in sorted(folder.iterdir())}


@pytest.mark.parametrize(("name", "where"), paired(WRITING, ["disk", "cpu"]))
def test_an_edit_is_the_plain_models(name, where, make_method, tmp_path):
    plain = LM(tiny.model("llama"), tiny.tokenizer())
    lm = LM(offload(tiny.model("llama"), where, tmp_path), tiny.tokenizer())
    assert all(p.is_meta for p in lm.model.parameters())
    before, files_before, maps_before = weights(lm.model), files(tmp_path), maps(lm.model)
    wanted = make_method(name, plain, "llama").edit(plain, EDITS[:1]).patch
    patch = make_method(name, lm, "llama").edit(lm, EDITS[:1]).patch
    for path in wanted.entries:
        assert same_bits(patch.dense(path), wanted.dense(path))
        assert patch.dense(path).abs().max() > 0
    after = weights(lm.model)
    assert all(same_bits(after[path], before[path]) for path in before)
    assert [id(m) for m in maps(lm.model)] == [id(m) for m in maps_before]
    wanted.apply(plain.model)  # and a patch of the plain model fits the offloaded one
    wanted.apply(lm.model)
    assert same_bits(logits(lm.model), logits(plain.model))
    assert files(tmp_path) == files_before


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("where", ["disk", "cpu"])
def test_adapters_act_on_offloaded_modules(where, family, tmp_path):
    plain = LM(tiny.model(family), tiny.tokenizer())
    lm = LM(offload(tiny.model(family), where, tmp_path), tiny.tokenizer())
    clean, maps_before, files_before = logits(lm.model), maps(lm.model), files(tmp_path)
    vector = torch.randn(plain.projection(1).d_out, generator=torch.Generator().manual_seed(0))
    site = plain.projection(1).path.removesuffix(".weight")
    steering = ModulePatch({site: (AddVector(vector * 20, positions="answer"),)}, info(plain))
    low = some_patch(plain, 1)
    for patch in (steering, low):  # beside a weight of the same module
        patch.apply(plain.model)
        patch.apply(lm.model)
    assert same_bits(logits(lm.model), logits(plain.model))
    prompts = [edit.prompt for edit in EDITS]
    assert generate(lm, prompts, 4) == generate(plain, prompts, 4)
    for patch in (steering, low):
        patch.revert(lm.model)
    assert same_bits(logits(lm.model), clean)
    assert [id(m) for m in maps(lm.model)] == [id(m) for m in maps_before]
    assert files(tmp_path) == files_before


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_are_undone_in_any_order(family, dtype, tmp_path):
    plain = LM(tiny.model(family, dtype), tiny.tokenizer())
    patches = [some_patch(plain, layer, seed) for seed, layer in enumerate((1, 1, 2))]
    lm = LM(offload(tiny.model(family, dtype), "disk", tmp_path), tiny.tokenizer())
    clean, maps_before = logits(lm.model), maps(lm.model)
    for on in patches:
        on.apply(lm.model)
        on.apply(plain.model)
    assert same_bits(logits(lm.model), logits(plain.model))
    assert not same_bits(logits(lm.model), clean)
    for off in (patches[0], patches[2], patches[1]):
        off.revert(lm.model)
        off.revert(plain.model)
        assert same_bits(logits(lm.model), logits(plain.model))
        path = PATHS[family].format(1)
        now = weight_handle(lm.model, path).read_weight()
        assert same_bits(now, plain.model.get_parameter(path))
    assert [id(m) for m in maps(lm.model)] == [id(m) for m in maps_before]


def test_one_block_on_disk(folder, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = partly(folder, tmp_path / "offloaded")
    assert model.get_parameter(PATHS["llama"].format(1)).is_meta
    assert not model.get_parameter(PATHS["llama"].format(0)).is_meta
    editor = BaseEditor.from_pretrained(
        model, tiny.tokenizer(), FTHyperParams(layers=[0, 1], num_steps=3, lr=5e-3)
    )
    clean = logits(model)
    told = {"prompts": EDITS[0].prompt, "target_new": EDITS[0].target}
    result = editor.edit(**told, verbose=False)
    assert result.edited_model is model
    assert len(result.patch.entries) == 2
    file = save_patch(result.patch, tmp_path / "p.safetensors")
    edited = logits(model)
    assert not same_bits(edited, clean)
    plain = LM(tiny.model("llama"), tiny.tokenizer())
    load_patch(file).apply(plain.model)
    assert same_bits(logits(plain.model), edited)
    lm = LM(model, tiny.tokenizer())
    assert generate(lm, [EDITS[0].prompt], 5) == generate(plain, [EDITS[0].prompt], 5)
    with pytest.warns(UserWarning, match="offloaded modules"):
        model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert same_bits(logits(again), edited)
    editor.undo(result.patch)
    assert same_bits(logits(model), clean)


def test_whoever_reads_a_weight_reads_the_real_one(tmp_path):
    plain = LM(tiny.model("gpt2"), tiny.tokenizer())  # whose head is tied to its embedding
    lm = LM(offload(tiny.model("gpt2"), "disk", tmp_path), tiny.tokenizer())
    assert fingerprint(lm.model) == fingerprint(plain.model)
    assert lm.device == torch.device("cpu")
    assert same_bits(lm.projection(1).weight, plain.projection(1).weight)
    patch = some_patch(lm, 1)
    assert change_norms(lm, patch) == change_norms(plain, patch)
    patch.apply(lm.model)
    assert fingerprint(lm.model) == fingerprint(plain.model)
    assert change_norms(lm, patch) == change_norms(plain, patch)
    assert export_lora(patch, tmp_path / "adapter").errors == {next(iter(patch.entries)): 0.0}
    assert model_bytes(lm) == model_bytes(plain)
    state, wanted = whole_state(lm.model), plain.model.state_dict()
    patch.revert(lm.model)
    again = tiny.model("gpt2", seed=1)
    again.load_state_dict(whole_state(lm.model))
    assert state.keys() == wanted.keys()
    assert same_bits(logits(again), logits(plain.model))


@pytest.mark.parametrize("where", ["disk", "cpu"])
def test_copies_share_what_is_offloaded(where, tmp_path):
    model = offload(tiny.model("llama"), where, tmp_path)
    lm = LM(model, tiny.tokenizer())
    first, second = some_patch(lm, 1), some_patch(lm, 1, seed=1)
    clean = logits(model)
    first.apply(model)
    one = logits(model)
    twin = edited_copy(model, second)
    two = logits(twin)
    assert same_bits(logits(model), one)
    assert not same_bits(two, one)
    first.revert(model)
    assert same_bits(logits(model), clean)
    assert same_bits(logits(twin), two)
    second.revert(twin)
    assert same_bits(logits(twin), one)
    untouched = weight_handle(twin, PATHS["llama"].format(0))
    if where == "cpu":
        shared = weight_handle(model, PATHS["llama"].format(0)).read_weight()
        assert untouched.read_weight().data_ptr() == shared.data_ptr()


class Watched(Mapping[str, torch.Tensor]):
    """A map of weights that knows which of those it gave are still in memory."""

    def __init__(self, under: Mapping[str, torch.Tensor]) -> None:
        self.under, self.given = under, []

    def __getitem__(self, name: str) -> torch.Tensor:
        weight = self.under[name]
        self.given.append(StorageWeakRef(weight.untyped_storage()))
        return weight

    def __iter__(self):
        return iter(self.under)

    def __len__(self) -> int:
        return len(self.under)

    @property
    def alive(self) -> int:
        return sum(not ref.expired() for ref in self.given)


def test_a_graph_holds_no_offloaded_weights(tmp_path):
    plain = LM(tiny.model("llama"), tiny.tokenizer())
    lm = LM(offload(tiny.model("llama"), "disk", tmp_path), tiny.tokenizer())
    watched = []
    for module in lm.model.modules():
        hook = getattr(module, "_hf_hook", None)
        if getattr(hook, "weights_map", None) is not None:
            hook.weights_map = Watched(hook.weights_map)
            watched.append(hook.weights_map)
    row = lm.text.row(EDITS[0].prompt, EDITS[0].target)
    found = []
    for one in (plain, lm):
        delta = torch.zeros(1, 32, requires_grad=True)
        at = torch.tensor([2])
        with (
            one.at_rest(),
            adding(one.blocks[0], at, delta),
            low_memory_autograd(one, BufferPool()) as kept,
        ):
            loss = one.target_logits([row]).logsumexp(-1).sum()
            bytes_kept = kept.bytes
            if one is lm:
                assert sum(len(each.given) for each in watched) > 20
                assert sum(each.alive for each in watched) == 0
            loss.backward()
        found.append((bytes_kept, delta.grad))
    assert found[0][0] == found[1][0]
    assert same_bits(found[0][1], found[1][1])


def test_failing_edits_leave_the_maps(tmp_path, monkeypatch):
    lm = LM(offload(tiny.model("llama"), "disk", tmp_path), tiny.tokenizer())
    before = maps(lm.model)
    good = some_patch(lm, 1)

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(WeightSum, "weight", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            good.apply(lm.model)
    assert [id(m) for m in maps(lm.model)] == [id(m) for m in before]


def test_a_tied_weight_is_not_changed_by_halves(tmp_path):
    lm = LM(offload(tiny.model("gpt2"), "disk", tmp_path), tiny.tokenizer())
    path = "transformer.wte.weight"
    shape = tuple(lm.model.get_parameter(path).shape)
    part = LowRank(torch.ones(shape[0], 1), torch.ones(1, shape[1]))
    clean, before = logits(lm.model), maps(lm.model)
    patch = WeightPatch({path: (part,)}, some_patch(lm, 1).info)
    with pytest.raises(UnsupportedModelError, match="tied to another weight"):
        patch.apply(lm.model)
    assert [id(m) for m in maps(lm.model)] == [id(m) for m in before]
    assert same_bits(logits(lm.model), clean)


@pytest.mark.parametrize("accelerated", [True, False])
def test_a_checkpoint_is_read_straight_to_its_place(folder, monkeypatch, accelerated):
    asked: list[dict[str, object]] = []

    def read(_where: str, **how: object) -> None:
        asked.append(how)
        raise OSError("seen enough")

    monkeypatch.setattr("easyeditor.lm.loading.pick_device", torch.device)
    find = importlib.util.find_spec
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", read)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: find(name, *a) if accelerated else None
    )
    for device in ("meta", "cpu"):  # which stands for an accelerator
        with pytest.raises(ModelLoadError, match="seen enough"):
            load(str(folder), device=device, dtype="bfloat16")
    away = {"device_map": {"": torch.device("meta")}} if accelerated else {}
    how = {
        "dtype": torch.bfloat16,
        "trust_remote_code": False,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # the error names the shapes
    }
    assert asked == [{**how, **away}, how]


def test_weights_that_are_nowhere_are_refused():
    model = tiny.model("llama")
    down = model.model.layers[1].mlp.down_proj
    down.weight = nn.Parameter(down.weight.to("meta"))
    with pytest.raises(MetaDeviceError, match=r"1 weights .*no hook of accelerate's"):
        LM(model, tiny.tokenizer())
    with pytest.raises(MetaDeviceError, match="offload_folder"):
        weight_handle(model, PATHS["llama"].format(1))
