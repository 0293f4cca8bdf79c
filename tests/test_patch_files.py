"""Patch files: damaged, foreign and mismatched ones are refused; writing is all or nothing."""

import json
import random
import struct

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import outer
import tiny
from easyeditor import load_patch, save_patch
from easyeditor import tensor_file as headed
from easyeditor.errors import PatchError, PatchFormatError, PatchMismatchError, PatchStateError
from easyeditor.patches.stack import is_patched
from easyeditor.patches.weight_sum import WeightSum
from easyeditor.tensor_file import content_digest

METHODS = ["FT", "ROME", "MEMIT"]


@pytest.fixture(scope="module")
def patches():
    """One patch per method, made on the tiny llama."""
    return {
        method: outer.editor(method)
        .edit(outer.PROMPT, outer.TARGET, subject=outer.SUBJECT, keep_original_weight=True)
        .patch
        for method in METHODS
    }


@pytest.fixture(params=METHODS)
def patch(request, patches):
    return patches[request.param]


@pytest.fixture
def file(tmp_path, patches):
    return save_patch(patches["ROME"], tmp_path / "rome.safetensors")


def parts_of(file):
    """Header and tensors of a patch file."""
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()["easyedit"]), {
            name: opened.get_tensor(name)
            for name in opened.keys()  # noqa: SIM118
        }


def tampered(file, header, tensors):
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors, file, metadata={"easyedit": text, "sha256": content_digest(text, tensors)})
    return file


# -- there and back ---------------------------------------------------------------------------


def test_a_file_holds_the_whole_patch(patch, tmp_path):
    again = load_patch(save_patch(patch, tmp_path / "made" / "here" / "patch.safetensors"))
    assert again.info == patch.info
    assert again.in_out == patch.in_out
    assert again.entries.keys() == patch.entries.keys()
    one, two = tiny.model("llama"), tiny.model("llama")
    before = outer.bits(one)
    patch.apply(one)
    again.apply(two)
    assert outer.changed(two, outer.bits(one)) == []
    assert outer.changed(two, before) != []
    again.revert(two)
    assert outer.changed(two, before) == []


def test_a_merged_sequence_survives_a_file(tmp_path):
    result = outer.editor("ROME").edit(outer.PROMPTS, outer.TARGETS, subject=outer.SUBJECTS)
    again = load_patch(save_patch(result.patch, tmp_path / "three.safetensors"))
    assert [edit.target for edit in again.info.edits] == outer.TARGETS
    fresh = tiny.model("llama")
    again.apply(fresh)
    assert outer.changed(fresh, outer.bits(result.edited_model)) == []


def test_texts_survive(tmp_path):
    prompt, target = "Zürich \u2028 東京 🗼 {} is", 'a "quoted"\nline'
    patch = outer.editor("FT").edit(prompt, target, keep_original_weight=True).patch
    (edit,) = load_patch(save_patch(patch, tmp_path / "p.safetensors")).info.edits
    assert (edit.prompt, edit.target) == (prompt, target)


# -- files that are no patches ----------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 4, 8, 200, 0.5, -1])
def test_truncated(file, keep):
    whole = file.read_bytes()
    length = int(len(whole) * keep) if isinstance(keep, float) else keep
    file.write_bytes(whole[:length])
    with pytest.raises(PatchFormatError, match=r"rome\.safetensors"):
        load_patch(file)


def test_trailing_bytes(file):
    file.write_bytes(file.read_bytes() + b"\0" * 64)
    with pytest.raises(PatchFormatError):
        load_patch(file)


@pytest.mark.parametrize("content", [b"", b"The Eiffel Tower", b"\0" * 4096, b'{"format": 1}' * 9])
def test_other_files(tmp_path, content):
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    with pytest.raises(PatchFormatError, match=r"notes\.txt"):
        load_patch(file)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_foreign_safetensors(tmp_path, metadata):
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "model.safetensors", metadata=metadata)
    with pytest.raises(PatchFormatError, match="not an EasyEdit patch"):
        load_patch(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["nothing.safetensors", "."])
def test_no_file(tmp_path, name):
    with pytest.raises(PatchFormatError, match="No patch file"):
        load_patch(tmp_path / name)


@pytest.mark.parametrize("version", [0, 3, 99, "1.5", None])
def test_another_format_version(file, version):
    header, tensors = parts_of(file)
    with pytest.raises(PatchFormatError, match=f"format {version}"):
        load_patch(tampered(file, {**header, "format": version}, tensors))


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '"text"', "null"])
def test_a_header_that_is_no_object(file, text):
    with pytest.raises(PatchFormatError):
        load_patch(tampered(file, text, parts_of(file)[1]))


@pytest.mark.parametrize(
    "name", ["format", "kind", "method", "edits", "hyperparams", "model", "versions", "seconds"]
)
def test_a_header_that_lacks_something(file, name):
    header, tensors = parts_of(file)
    del header[name]
    with pytest.raises(PatchFormatError, match=name):
        load_patch(tampered(file, header, tensors))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "nothing"},
        {"method": 5},
        {"edits": 5},
        {"edits": "abc"},
        {"edits": [{"prompt": "a"}]},
        {"edits": [{"prompt": "a", "target": ""}]},
        {"edits": [{"prompt": "a", "target": "b", "subject": "not there"}]},
        {"edits": [{"prompt": "a", "target": "b", "more": 1}]},
        {"hyperparams": 5},
        {"model": 5},
        {"model": {}},
        {"model": {"architecture": "LlamaForCausalLM", "shapes": "0", "samples": 5}},
        {"model": {"architecture": "LlamaForCausalLM", "shapes": "0", "samples": ["a"]}},
        {"versions": ["1"]},
        {"seconds": "long"},
        {"data": {"in_out": 5}},
        {"data": 5},
        {"more": 5},
    ],
    ids=str,
)
def test_a_header_that_does_not_fit(file, change):
    header, tensors = parts_of(file)
    with pytest.raises(PatchFormatError):
        load_patch(tampered(file, {**header, **change}, tensors))


def _rename(tensors, old, new):
    return {key.replace(old, new): value for key, value in tensors.items()}


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {},
        lambda t: {key: value for key, value in t.items() if ".u:" in key},
        lambda t: _rename(t, "0.u:", "zero.u:"),
        lambda t: _rename(t, "0.u:", ""),
        lambda t: _rename(t, ".u:", ".x:"),
        lambda t: {key: value.flatten() for key, value in t.items()},
        lambda t: {key: value.long() for key, value in t.items()},
        lambda t: {
            key: torch.cat([value, value]).contiguous() if ".v:" in key else value
            for key, value in t.items()
        },
        lambda t: {key: value * float("nan") for key, value in t.items()},
    ],
    ids=["empty", "half", "label", "no-label", "field", "flat", "integer", "ranks", "nan"],
)
def test_tensors_that_do_not_fit(file, change):
    header, tensors = parts_of(file)
    with pytest.raises(PatchFormatError):
        load_patch(tampered(file, header, change(tensors)))


def test_a_header_length_that_lies(file):
    whole = file.read_bytes()
    file.write_bytes(struct.pack("<Q", 1 << 40) + whole[8:])
    with pytest.raises(PatchFormatError):
        load_patch(file)


# -- another model ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (lambda: tiny.model("llama", seed=1), "sampled weights differ"),
        (lambda: tiny.model("mistral"), "MistralForCausalLM.*LlamaForCausalLM"),
        (lambda: tiny.model("gpt2"), "GPT2LMHeadModel"),
        (lambda: smaller(), "names or shapes"),
    ],
    ids=["weights", "class", "far class", "shapes"],
)
def test_another_model_is_refused(patch, other, why):
    model = other()
    before = outer.bits(model)
    with pytest.raises(PatchMismatchError, match=why):
        patch.apply(model)
    assert outer.changed(model, before) == []
    assert not is_patched(model)


def smaller():
    """A llama with narrower MLPs."""
    return tiny.model("llama", intermediate_size=48)


def test_force_applies_where_the_shapes_fit(patch):
    model = tiny.model("llama", seed=1)
    before = outer.bits(model)
    patch.apply(model, force=True)
    assert outer.changed(model, before) != []
    patch.revert(model)
    assert outer.changed(model, before) == []


@pytest.mark.parametrize("other", [smaller, lambda: tiny.model("gpt2")], ids=["shape", "names"])
def test_force_cannot_bend_shapes(patch, other):
    model = other()
    before = outer.bits(model)
    with pytest.raises(PatchMismatchError, match="the model has"):
        patch.apply(model, force=True)
    assert outer.changed(model, before) == []
    assert not is_patched(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_model_in_another_precision(patch, dtype):
    model = tiny.model("llama", dtype)
    before = outer.bits(model)
    patch.apply(model)
    for path in patch.entries:
        whole = tiny.model("llama").get_parameter(path).detach().to(dtype).float()
        expected = (whole + patch.dense(path).T).to(dtype)
        assert torch.allclose(model.get_parameter(path), expected, rtol=1e-2, atol=1e-6)
    patch.revert(model)
    assert outer.changed(model, before) == []


def test_an_edited_model_is_still_the_same_model(patches):
    model = tiny.model("llama")
    for patch in patches.values():  # each was made for the unedited one
        patch.apply(model)
    for patch in patches.values():
        patch.check(model)


# -- damaged ----------------------------------------------------------------------------------


def test_every_flipped_bit_is_found(file):
    whole, draw = file.read_bytes(), random.Random(0)
    clean = load_patch(file)
    for _ in range(150):
        place, bit = draw.randrange(len(whole)), draw.randrange(8)
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        file.write_bytes(flipped)
        try:
            again = load_patch(file)
        except PatchFormatError:
            continue
        else:  # in what fills the header up, or names the format: the content is what it was
            assert again.info == clean.info
            assert all(torch.equal(again.dense(p), clean.dense(p)) for p in clean.entries)


@pytest.mark.parametrize(
    "change",
    [
        {"hyperparams": {"a": float("nan")}},
        {"hyperparams": {"a": "\ud800"}},
        {"method": "\ud800"},
        {"seconds": {"search": "long"}},
        {"seconds": {"search": float("inf")}},
        {"model_name": 5},
        {"edits": [{"prompt": 5, "target": "b"}]},
        {"edits": [["a", "b"]]},
        {"kind": ["weights"]},
        {"format": True},
        {"format": "2"},
    ],
    ids=str,
)
def test_a_header_of_other_types_is_refused(file, change):
    header, tensors = parts_of(file)
    text = json.dumps({**header, **change})
    with pytest.raises(PatchFormatError):
        load_patch(tampered(file, text, tensors))


@pytest.mark.parametrize("depth", [100, 100_000])
def test_a_deep_header_is_refused(file, depth):
    tensors, nested = parts_of(file)[1], "[" * depth + "]" * depth
    with pytest.raises(PatchFormatError):
        load_patch(tampered(file, f'{{"format": 2, "kind": {nested}}}', tensors))


@pytest.mark.parametrize("samples", [[], [0.5], ["a"], [None], [[0.5]]])
def test_a_fingerprint_of_another_length_is_another_model(file, samples):
    header, tensors = parts_of(file)
    header["model"]["samples"] = samples
    model = tiny.model("llama")
    before = outer.bits(model)
    with pytest.raises(PatchError):
        load_patch(tampered(file, header, tensors)).apply(model)
    assert outer.changed(model, before) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.float8_e4m3fn, torch.bool])
def test_numbers_of_another_type_are_refused_or_fit(file, dtype):
    header, tensors = parts_of(file)
    damaged = tampered(file, header, {name: t.to(dtype) for name, t in tensors.items()})
    with pytest.raises(PatchFormatError):
        load_patch(damaged)


def test_factors_whose_product_is_infinite_are_refused(file):
    header, tensors = parts_of(file)
    large = {name: torch.full_like(t, 1e30) for name, t in tensors.items()}
    with pytest.raises(PatchFormatError, match="not finite"):
        load_patch(tampered(file, header, large))


# -- twice, and never -------------------------------------------------------------------------


def test_applying_twice(patch):
    model = tiny.model("llama")
    patch.apply(model)
    once = outer.bits(model)
    with pytest.raises(PatchStateError, match="already"):
        patch.apply(model)
    assert outer.changed(model, once) == []


def test_reverting_what_is_not_applied(patch):
    model, other = tiny.model("llama"), tiny.model("llama")
    with pytest.raises(PatchStateError, match="not applied"):
        patch.revert(model)
    patch.apply(other)
    with pytest.raises(PatchStateError, match="not applied"):
        patch.revert(model)
    patch.revert(other)
    with pytest.raises(PatchStateError):
        patch.revert(other)


def test_applying_fails_half_way(patches, monkeypatch):
    patch, model = patches["MEMIT"], tiny.model("llama")
    patches["FT"].apply(model)
    before = outer.bits(model)
    real, seen = WeightSum.weight, []

    def second_fails(self, original):
        seen.append(self)
        if len(seen) == 2:
            raise MemoryError("no room")
        return real(self, original)

    with monkeypatch.context() as context:
        context.setattr(WeightSum, "weight", second_fails)
        with pytest.raises(MemoryError):
            patch.apply(model)
    assert seen
    assert outer.changed(model, before) == []
    patch.apply(model)  # it was not left on the stack
    patch.revert(model)
    assert outer.changed(model, before) == []


# -- writing ----------------------------------------------------------------------------------


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_saving_leaves_nothing_else(file):
    assert names_in(file.parent) == [file.name]


def test_saving_replaces_the_old_file(file, patches):
    save_patch(patches["FT"], file)
    assert load_patch(file).info.method == "FT"
    assert names_in(file.parent) == [file.name]


@pytest.mark.parametrize("error", [OSError, SafetensorError, KeyboardInterrupt])
def test_a_failing_write_keeps_the_old_file(file, patches, monkeypatch, error):
    before = file.read_bytes()

    def breaks(tensors, path, metadata):
        with open(path, "wb") as out:
            out.write(b"half a fi")
        raise error("No space left on device")

    monkeypatch.setattr(headed, "save_file", breaks)
    # safetensors reports a full disk as its own error; save_patch promises OSError.
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else OSError):
        save_patch(patches["FT"], file)
    assert file.read_bytes() == before
    assert names_in(file.parent) == [file.name]


@pytest.mark.parametrize("place", ["folder", "under a file", "long name"])
def test_places_that_cannot_be_written(tmp_path, patches, place):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    target = {
        "folder": tmp_path / "folder",
        "under a file": tmp_path / "file" / "patch.safetensors",
        "long name": tmp_path / ("n" * 300),
    }[place]
    with pytest.raises(OSError, match=r".+"):
        save_patch(patches["ROME"], target)
    assert names_in(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "kept"


def test_errors_are_of_one_kind(tmp_path):
    with pytest.raises(PatchError):
        load_patch(tmp_path / "nothing")
    with pytest.raises(ValueError, match="No patch file"):
        load_patch(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["", "gone", "x" * 400, "\0"])
def test_a_name_that_is_no_file(name, tmp_path):
    with pytest.raises(PatchFormatError, match="No patch file"):
        load_patch(f"{tmp_path}/{name}")
