"""A patch as a LoRA adapter in GGUF, read back by the library, and as a merged model."""

from __future__ import annotations

import sys

import pytest
import torch

import outer
import tiny
from easyeditor import load_patch, save_patch
from easyeditor.errors import MissingExtraError, OutputError, PatchError
from easyeditor.export.gguf_lora import export_gguf_lora
from easyeditor.hyperparams import HyperParams
from easyeditor.patches.parts import Dense, LowRank
from easyeditor.patches.weight import weight_patch
from scripting import BAD_INPUT, DONE, document
from support import EDITS, lm, shared_lm


def patch_of(family: str, rank: int = 2, dense: bool = False):
    """A patch with a random change of one or two MLP matrices of block 1."""
    target = shared_lm(family)
    generator = torch.Generator().manual_seed(3)
    parts = {}
    for i, projection in enumerate(target.mlp_projections((1,))):
        d_in, d_out = projection.d_in, projection.d_out
        u = torch.randn(d_in, rank + i, generator=generator)
        v = torch.randn(rank + i, d_out, generator=generator)
        parts[projection.path] = [Dense(u @ v) if dense else LowRank(u, v)]
    return weight_patch(target, "FT", EDITS[:1], HyperParams(), parts, {})


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma2", "phi3"])
def test_the_adapter_holds_the_change(family, tmp_path):
    gguf = pytest.importorskip("gguf")
    patch = patch_of(family)
    result = export_gguf_lora(patch, tmp_path / "out")
    reader = gguf.GGUFReader(result.file)
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["adapter.type"].contents() == "lora"
    assert reader.fields["adapter.lora.alpha"].contents() == result.rank
    table = gguf.get_tensor_name_map(
        next(
            kind
            for kind, name in gguf.MODEL_ARCH_NAMES.items()
            if name == reader.fields["general.architecture"].contents()
        ),
        3,
    )
    for path in patch.entries:
        name = f"{table.get_name(path.removesuffix('.weight'))}.weight"
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        assert len(a) == b.shape[1] == result.rank
        assert torch.allclose((b @ a).T, patch.dense(path), atol=1e-4)  # (d_in, d_out)
    assert len(tensors) == 2 * len(patch.entries)
    assert "ADAPTER ./adapter.gguf" in (tmp_path / "out" / "Modelfile").read_text()


def test_dense_changes_are_cut_to_a_rank(tmp_path):
    pytest.importorskip("gguf")
    result = export_gguf_lora(patch_of("llama", rank=6, dense=True), tmp_path / "out", rank=2)
    assert result.rank == 2
    assert all(0 < error < 1 for error in result.errors.values())


def test_what_cannot_be_in_a_gguf_adapter(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    with pytest.raises(PatchError, match="no GGUF adapter for a GPTJForCausalLM"):
        export_gguf_lora(patch_of("gptj"), tmp_path / "out")
    target = lm("llama")
    path = "model.layers.1.self_attn.q_proj.weight"
    part = LowRank(torch.ones(32, 1), torch.ones(1, 32))
    attention = weight_patch(target, "FT", EDITS[:1], HyperParams(), {path: [part]}, {})
    with pytest.raises(PatchError, match=r"self_attn.q_proj.weight cannot be in a GGUF adapter"):
        export_gguf_lora(attention, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(OutputError, match="not an empty folder"):
        export_gguf_lora(patch_of("llama"), tmp_path / "full")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"easyedit-lm\[gguf\]"):
        export_gguf_lora(patch_of("llama"), tmp_path / "out")
    assert sorted(place.name for place in tmp_path.iterdir()) == ["full"]


def test_on_the_command_line(easyedit, folder, tmp_path):
    pytest.importorskip("gguf")
    file = save_patch(patch_of("llama"), tmp_path / "edit.safetensors")
    words = ("export", file, "--format", "gguf-lora", "--out", tmp_path / "adapter")
    told = easyedit(*words)
    assert told.code == DONE, told.err
    assert "LoRA adapter of rank 4" in told.out
    words = ("export", file, "--format", "merged", "--model", folder, "--json")
    merged = easyedit(*words, "--out", tmp_path / "merged")
    assert document(merged)["out"] == str(tmp_path / "merged")
    edited = lm("llama")
    load_patch(file).apply(edited.model)
    loaded = tiny.model("llama").from_pretrained(tmp_path / "merged")
    assert outer.changed(loaded, outer.bits(edited.model)) == []
    for more, why in (
        (("--format", "merged", "--rank", "2"), "has no rank"),
        (("--format", "gguf-lora", "--model", folder), "needs no model"),
    ):
        told = easyedit("export", file, "--out", tmp_path / "none", *more)
        assert (told.code, why in told.err) == (BAD_INPUT, True)
