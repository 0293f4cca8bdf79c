"""An edited model as a checkpoint: the bits, the precision and the files of the original."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from easyeditor import LM, load
from easyeditor.errors import OutputError, PatchError, PatchMismatchError
from easyeditor.export.merged import export_merged
from easyeditor.patches.adapter import AddVector
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.stack import applied
from support import Snapshot, same_bits
from synthetic import info, patch
from test_lora import change_of

CARD = "# A card of the unedited model"


def write_checkpoint(folder, dtype=torch.bfloat16, shard="20KB", **changes):
    """A folder as on a hub: shards, a tokenizer, a licence, a card, other weights."""
    model = tiny.model("llama", dtype, **changes)
    model.save_pretrained(folder, max_shard_size=shard)
    tiny.tokenizer().save_pretrained(folder)
    (folder / "LICENSE").write_text("a licence")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    (folder / "README.md").write_text(CARD)
    (folder / "pytorch_model.bin").write_bytes(b"the same weights")
    return folder


def digests(folder):
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def check_loads_as_applied(target: LM, edit, out):
    """Plain transformers loads the bits of the model that carries the patch."""
    again = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    with applied(target.model, edit):
        for name, parameter in target.model.named_parameters():
            loaded = again.get_parameter(name)
            assert same_bits(loaded, parameter.to(loaded.dtype)), name
    return again


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_precision_files_and_all_other_bits_are_the_originals(dtype, tied, tmp_path):
    original = write_checkpoint(tmp_path / "model", dtype, tie_word_embeddings=tied)
    target = load(str(original), device="cpu")
    edit = patch(target, "low", 1, (1,), size=0.3)
    before = Snapshot(target.model)
    result = export_merged(edit, tmp_path / "out", lm=target)
    assert before.differences(target.model) == []
    assert (result.format, result.notes) == ("merged", ())
    old, new = digests(original), digests(tmp_path / "out")
    assert set(old) - set(new) == {"README.md", "pytorch_model.bin"}
    assert set(new) <= set(old)
    assert len([name for name in old if name.endswith(".safetensors")]) > 2
    index = json.loads((original / "model.safetensors.index.json").read_text())["weight_map"]
    assert {name for name in new if new[name] != old[name]} == {index[next(iter(edit.entries))]}
    again = check_loads_as_applied(target, edit, tmp_path / "out")
    assert again.dtype == dtype
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("Rome")["input_ids"]


@pytest.mark.parametrize(
    ("stored", "loaded", "size", "note"),
    [
        ("float32", "float32", 0.3, None),
        ("float32", "bfloat16", 0.3, "stored in float32 and the model was loaded in bfloat16"),
        ("bfloat16", "bfloat16", 0.3, None),
        ("bfloat16", "float32", 0.3, None),
        ("bfloat16", "bfloat16", 0.003, "Rounding to bfloat16 leaves out"),
    ],
)
def test_the_error_is_what_rounding_leaves_out(stored, loaded, size, note, tmp_path):
    original = write_checkpoint(tmp_path / "model", getattr(torch, stored))
    target = load(str(original), device="cpu", dtype=loaded)
    edit = patch(target, "low", 1, (1,), size=size)
    result = export_merged(edit, tmp_path / "out", lm=target)
    ((path, error),) = result.errors.items()
    old, new = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        .get_parameter(path)
        .detach()
        for folder in (original, tmp_path / "out")
    )
    change = edit.dense(path).T
    missing = torch.linalg.vector_norm(new - old - change) / torch.linalg.vector_norm(change)
    assert error == pytest.approx(float(missing), rel=0.02, abs=1e-6)
    assert (error == 0) == (stored == loaded == "float32")
    assert [note in text for text in result.notes] == ([True] if note else [])


def test_tied_embeddings_change_together(tmp_path):
    original = write_checkpoint(tmp_path / "model", tie_word_embeddings=True)
    tensors = {}
    for file in original.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (original / "model.safetensors.index.json").unlink()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()  # stored twice
    save_file(tensors, original / "model.safetensors", metadata={"format": "pt"})
    target = load(str(original), device="cpu")
    edit = change_of(target, "model.embed_tokens.weight")
    export_merged(edit, tmp_path / "out", lm=target)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert same_bits(stored["lm_head.weight"], stored["model.embed_tokens.weight"])
    assert not same_bits(stored["lm_head.weight"], tensors["lm_head.weight"])
    again = check_loads_as_applied(target, edit, tmp_path / "out")
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_names_without_the_prefix_of_the_base_model(tmp_path):
    tiny.model("gpt2").transformer.save_pretrained(tmp_path / "model")  # as GPT-2 lies on the hub
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    target = load(str(tmp_path / "model"), device="cpu")
    edit = patch(target, "low", 1, (1,), size=0.3)
    assert export_merged(edit, tmp_path / "out", lm=target).notes == ()
    assert "h.1.mlp.c_proj.weight" in load_file(tmp_path / "out" / "model.safetensors")
    check_loads_as_applied(target, edit, tmp_path / "out")


def test_a_checkpoint_in_another_format_is_written_anew(tmp_path):
    model = tiny.model("llama", torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.config.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    target = load(str(tmp_path / "model"), device="cpu")
    edit = patch(target, "low", 1, (1,), size=0.3)
    result = export_merged(edit, tmp_path / "out", lm=target)
    assert "written anew by transformers" in result.notes[0]
    assert check_loads_as_applied(target, edit, tmp_path / "out").dtype == torch.bfloat16
    target.checkpoint = "/no/such/folder/any/more"
    result = export_merged(edit, tmp_path / "three", lm=target)
    assert "written anew by transformers" in result.notes[0]
    in_memory = LM(tiny.model("llama"), tiny.tokenizer())
    result = export_merged(patch(in_memory, "low", 1), tmp_path / "two", lm=in_memory)
    assert "written anew by transformers" in result.notes[0]


def test_several_patches_are_applied_in_order(tmp_path):
    target = load(str(write_checkpoint(tmp_path / "model")), device="cpu")
    one, two = patch(target, "low", 1, (1,)), patch(target, "dense", 2, (1, 2))
    export_merged([one, two], tmp_path / "out", lm=target)
    with applied(target.model, one):
        check_loads_as_applied(target, two, tmp_path / "out")


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, limited):
    target = load(str(write_checkpoint(tmp_path / "model")), device="cpu")
    before = Snapshot(target.model)
    limited(2000)
    with pytest.raises(OutputError, match="out cannot be written: File too large"):
        export_merged(patch(target, "low", 1), tmp_path / "out", lm=target)
    assert before.differences(target.model) == []
    assert not (tmp_path / "out").exists()


def test_refusals_leave_the_model_and_the_disk_as_they_were(tmp_path):
    target = load(str(write_checkpoint(tmp_path / "model")), device="cpu")
    before, out = Snapshot(target.model), tmp_path / "out"
    vector = AddVector(torch.ones(32))
    modules = ModulePatch({"model.layers.1.mlp.down_proj": (vector,)}, info(target))
    with pytest.raises(PatchError, match="changes no weight: it runs modules beside"):
        export_merged(modules, out, lm=target)
    other = LM(tiny.model("llama", seed=5), tiny.tokenizer())
    with pytest.raises(PatchMismatchError, match="does not belong to this model"):
        export_merged(patch(other, "low", 1), out, lm=target)
    with pytest.raises(OutputError, match="not an empty folder"):
        export_merged(patch(target, "low", 1), tmp_path / "model", lm=target)
    assert before.differences(target.model) == []
    assert not out.exists()
