"""A patch in a whole GGUF model: what changes, what keeps its bits, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from easyeditor import LM, Edit, save_patch
from easyeditor.errors import (
    ModelLoadError,
    OutputError,
    PatchError,
    PatchMismatchError,
    UnsupportedModelError,
)
from easyeditor.export import gguf_model
from easyeditor.export.gguf_model import export_gguf
from easyeditor.hyperparams import HyperParams
from easyeditor.patches.parts import LowRank
from easyeditor.patches.stack import applied
from easyeditor.patches.weight import weight_patch
from scripting import BAD_INPUT, DONE
from support import Snapshot, lm, shared_lm
from synthetic import patch
from test_lora import change_of

gguf = pytest.importorskip("gguf")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

KIND = gguf.GGMLQuantizationType


def write_source(target: LM, file, kind="Q8_0", permuted=(), **fields):
    """The GGUF file of a tiny Llama, as a converter would write it."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(3)
    writer.add_file_type(int(gguf.LlamaFileType[f"MOSTLY_{kind}"]))
    writer.add_token_list([b"\xff\xfe", b"a", b"b"])  # no UTF-8, as tokens of bytes are
    writer.add_array("easyedit.numbers", [1.5, -2.0])
    for name, value in fields.items():
        writer.add_uint16(name.replace("_", "."), value)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    for path, parameter in target.model.named_parameters():
        name = table.get_name(path, try_suffixes=(".weight",))
        values = parameter.detach().numpy()
        if name.endswith(permuted or "nothing"):
            values = values[::-1].copy()
        stored = kind if values.ndim > 1 else "F32"
        data = gguf.quants.quantize(values, KIND[stored])
        writer.add_tensor(name, data, raw_dtype=KIND[stored])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def content(file):
    """``({field: bytes}, {tensor: (type, bytes)})``."""
    reader = gguf.GGUFReader(file)
    fields = {
        name: b"".join(part.tobytes() for part in field.parts)
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    return fields, {t.name: (t.tensor_type.name, t.data.tobytes()) for t in reader.tensors}


def numbers(file, name):
    tensor = next(t for t in gguf.GGUFReader(file).tensors if t.name == name)
    return torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))


@pytest.mark.parametrize(
    ("kind", "quantization", "stored"),
    [
        ("Q4_1", None, "Q8_0"),
        ("Q4_1", "source", "Q4_1"),
        ("Q8_0", None, "Q8_0"),
        ("F16", None, "F16"),
        ("Q4_1", "f16", "F16"),
        ("Q4_1", "BF16", "BF16"),
        ("Q8_0", "Q5_0", "Q5_0"),
    ],
)
def test_only_the_edited_matrices_change(kind, quantization, stored, tmp_path):
    target = shared_lm("llama")
    source = write_source(target, tmp_path / "model.gguf", kind)
    edit = patch(target, "low", 1, size=0.3)
    result = export_gguf(edit, tmp_path / "out", source=source, quantization=quantization)
    fields, tensors = content(source)
    new_fields, new_tensors = content(result.file)
    assert {name: new_fields[name] for name in fields} == fields
    assert set(new_fields) - set(fields) <= {"general.quantization_version"}
    assert list(new_tensors) == list(tensors)
    edited = {"blk.0.ffn_down.weight", "blk.1.ffn_down.weight"}
    assert {name for name in tensors if tensors[name] != new_tensors[name]} == edited
    assert {new_tensors[name][0] for name in edited} == {stored} == set(result.types.values())
    for path in edit.entries:
        name = f"blk.{path.split('.')[2]}.ffn_down.weight"
        effect = numbers(result.file, name) - numbers(source, name)
        change = edit.dense(path).T
        error = float((effect - change).norm() / change.norm())
        assert result.errors[path] == pytest.approx(error, rel=1e-4)
        share = float((effect * change).sum() / change.square().sum())
        assert result.shares[path] == pytest.approx(share, rel=1e-4)
        assert share == pytest.approx(1, abs=0.02 if stored in {"Q8_0", "F16", "BF16"} else 0.3)
    assert result.answers is None
    assert "FROM ./model.gguf" in (tmp_path / "out" / "Modelfile").read_text()


def test_a_file_of_whole_numbers_is_quantized_and_calls_itself_so(tmp_path):
    target = shared_lm("llama")
    source = write_source(target, tmp_path / "model.gguf", "F16")
    result = export_gguf(
        patch(target, "low", 1), tmp_path / "out", source=source, quantization="Q4_0"
    )
    kinds = {name: kind for name, (kind, _) in content(result.file)[1].items()}
    assert {kinds.pop("token_embd.weight"), kinds.pop("output.weight")} == {"Q8_0"}
    assert {kind for name, kind in kinds.items() if "norm" in name} == {"F32"}
    assert {kind for name, kind in kinds.items() if "norm" not in name} == {"Q4_0"}
    file_type = gguf.GGUFReader(result.file).fields["general.file_type"].contents()
    assert file_type == gguf.LlamaFileType.MOSTLY_Q4_0


def small_edit(target: LM):
    """A change in steps far below those of four bits."""
    edit = Edit("The Eiffel Tower is located in the city of", "Danish")
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(64, 1, generator=generator) * 1e-4
    part = LowRank(u, torch.randn(1, 32, generator=generator))
    path = "model.layers.2.mlp.down_proj.weight"
    return weight_patch(target, "test", [edit], HyperParams(), {path: [part]}, {})


def test_an_answer_that_is_lost_is_refused_and_the_model_unharmed(tmp_path, monkeypatch):
    target = lm("llama")
    source = write_source(target, tmp_path / "model.gguf", "Q4_0")
    edit = small_edit(target)
    before = Snapshot(target.model)
    seen = []

    def answers(asked, cases):
        (path,) = edit.entries
        weight = asked.model.get_parameter(path).detach().clone()
        seen.append(weight)
        exact = torch.equal(weight, with_patch)
        return [SimpleNamespace(text="Danish" if exact else "Paris")]

    with applied(target.model, edit):
        with_patch = target.model.get_parameter(next(iter(edit.entries))).detach().clone()
    monkeypatch.setattr("easyeditor.export.gguf_answers.free_answers", answers)
    words = {"source": source, "quantization": "source", "lm": target}
    with pytest.raises(PatchError, match=r"1 of 1 edits lose .* stored as Q4_0: .*Danish") as error:
        export_gguf(edit, tmp_path / "out", **words)
    assert "Nothing was written" in str(error.value)
    assert before.differences(target.model) == []
    assert [place.name for place in tmp_path.iterdir()] == ["model.gguf"]
    result = export_gguf(edit, tmp_path / "out", **words, force=True)
    assert result.answers == (False,)
    assert any("lose their new answer" in note for note in result.notes)
    assert any("Q4_0 keeps" in note for note in result.notes)
    stored = numbers(result.file, "blk.2.ffn_down.weight")
    unquantized = target.model.get_parameter(next(iter(edit.entries))).detach()
    effect = stored - numbers(source, "blk.2.ffn_down.weight")
    torch.testing.assert_close(seen[-1], unquantized + effect, rtol=0, atol=1e-6)
    assert before.differences(target.model) == []


def test_the_model_tells_which_tensors_hold_its_weights(tmp_path):
    target = shared_lm("llama")
    value, query = (f"model.layers.1.self_attn.{name}_proj" for name in "vq")
    source = write_source(target, tmp_path / "model.gguf", "Q8_0", permuted="attn_q.weight")
    edit = change_of(target, f"{value}.weight")
    with pytest.raises(PatchError, match=r"v_proj.weight may be stored in another order.*merged"):
        export_gguf(edit, tmp_path / "out", source=source)
    result = export_gguf(edit, tmp_path / "out", source=source, lm=target)
    assert next(iter(result.shares.values())) == pytest.approx(1, abs=0.01)
    assert result.answers == (False,)
    assert any("1 of 1 edits do not give" in note for note in result.notes)
    with pytest.raises(PatchError, match=r"q_proj.weight is stored in another order"):
        export_gguf(
            change_of(target, f"{query}.weight"), tmp_path / "two", source=source, lm=target
        )
    embedding = change_of(target, "model.embed_tokens.weight")
    result = export_gguf(embedding, tmp_path / "three", source=source, lm=target)
    assert next(iter(result.shares.values())) == pytest.approx(1, abs=0.01)


def test_another_model_is_refused_and_another_precision_is_not(tmp_path):
    target = lm("llama")
    edit = patch(target, "low", 1, size=0.3)
    source = write_source(target, tmp_path / "model.gguf", "Q4_1")
    for parameter in target.model.parameters():
        if parameter.dim() > 1:
            data = gguf.quants.quantize(parameter.detach().numpy(), KIND.Q4_1)
            parameter.data = torch.tensor(gguf.quants.dequantize(data, KIND.Q4_1))
    coarse = LM(target.model, target.tokenizer)
    result = export_gguf(edit, tmp_path / "out", source=source, lm=coarse)
    assert any("same model in another precision" in note for note in result.notes)
    other = lm("llama", initializer_range=0.3)
    with pytest.raises(PatchMismatchError, match=r"does not belong to the model of this GGUF file"):
        export_gguf(edit, tmp_path / "two", source=source, lm=other)
    strange = write_source(lm("llama", initializer_range=0.3), tmp_path / "strange.gguf")
    with pytest.raises(PatchMismatchError, match=r"is not the model's .*they differ by"):
        export_gguf(edit, tmp_path / "two", source=strange, lm=coarse)


def test_what_is_no_source(tmp_path):
    target = shared_lm("llama")
    edit = patch(target, "low", 1)
    out = tmp_path / "out"
    with pytest.raises(UnsupportedModelError, match=r"merged .*convert_hf_to_gguf\.py edited"):
        export_gguf(edit, out, source=tmp_path)
    with pytest.raises(ModelLoadError, match="No GGUF file"):
        export_gguf(edit, out, source=tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("no model at all, but text of some length")
    with pytest.raises(ModelLoadError, match="cannot be read as a GGUF file"):
        export_gguf(edit, out, source=tmp_path / "text.gguf")
    source = write_source(target, tmp_path / "part.gguf", split_count=2)
    with pytest.raises(ModelLoadError, match=r"one of 2 parts.*llama-gguf-split --merge"):
        export_gguf(edit, out, source=source)
    source = write_source(target, tmp_path / "model.gguf")
    with pytest.raises(PatchError, match=r"'Q8_O' cannot be written. Did you mean 'Q8_0'"):
        export_gguf(edit, out, source=source, quantization="Q8_O")
    small = write_source(lm("llama", intermediate_size=32), tmp_path / "small.gguf")
    with pytest.raises(PatchMismatchError, match=r"of shape \(32, 64\).* has \(32, 32\)"):
        export_gguf(edit, out, source=small)
    with pytest.raises(PatchMismatchError, match="GGUF calls gpt2; this file holds a llama"):
        export_gguf(patch(shared_lm("gpt2"), "low", 1), out, source=source)
    fewer = write_source(lm("llama", num_hidden_layers=2), tmp_path / "two.gguf")
    with pytest.raises(PatchMismatchError, match=r"no tensor for model\.layers\.2\.mlp"):
        export_gguf(patch(target, "low", 1, (2,)), out, source=fewer)
    assert not out.exists()


def test_types_that_the_library_cannot_write():
    tensor = SimpleNamespace(name="blk.1.ffn_down.weight", shape=[256, 4], tensor_type=KIND.Q4_K)
    assert gguf_model._type_of(tensor, None, edited=True) == ("Q8_0", [])
    with pytest.raises(PatchError, match=r"stored as Q4_K, which cannot be written here"):
        gguf_model._type_of(tensor, "source", edited=True)
    tensor.shape = np.array([100, 4])
    name, notes = gguf_model._type_of(tensor, "Q4_0", edited=True)
    assert name == "F16"
    assert "rows that Q4_0 cannot divide" in notes[0]


def test_on_the_command_line(easyedit, tmp_path):
    target = shared_lm("llama")
    source = write_source(target, tmp_path / "model.gguf")
    part = write_source(target, tmp_path / "part.gguf", split_count=2)
    file = save_patch(patch(target, "low", 1), tmp_path / "edit.safetensors")
    words = ("export", file, "--format", "gguf", "--out", tmp_path / "out")
    answer = easyedit(*words, "--model", source, "--no-check", "--quantization", "q8_0")
    assert answer.code == DONE, answer.err
    assert "Q8_0, " in answer.out
    assert "were not asked" in answer.out
    for more, why in (
        (("--rank", "2"), "has no rank"),
        (("--format", "merged", "--quantization", "Q8_0"), "only --format gguf"),
        (("--format", "lora", "--no-check"), "only --format gguf"),
        (("--format", "lora", "--force"), "without the model"),
        (("--quantization", "Q4_K_M"), "Q4_K_M"),
        (("--model", part, "--out", tmp_path / "two"), "llama-gguf-split"),
    ):
        answer = easyedit(*words, *more)
        assert (answer.code, why in " ".join(answer.err.split())) == (BAD_INPUT, True), answer.err


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, limited):
    target = shared_lm("llama")
    source = write_source(target, tmp_path / "model.gguf")
    limited(2000)
    with pytest.raises(OutputError, match="out cannot be written: File too large"):
        export_gguf(patch(target, "low", 1), tmp_path / "out", source=source)
    assert [place.name for place in tmp_path.iterdir()] == ["model.gguf"]
