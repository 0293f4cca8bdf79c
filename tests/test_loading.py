"""Loading a model: what is refused and why, what is written back, and the cache of made models."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import outer
import tiny
from easyeditor import BaseEditor, load
from easyeditor.errors import EasyEditError, ModelLoadError, UnsupportedModelError
from easyeditor.lm import model_cache
from easyeditor.lm.inference import generate, score
from easyeditor.lm.loading import ModelSpec, pick_device, save
from easyeditor.lm.model import LM
from easyeditor.lm.unwrapping import public_name, unwrap
from easyeditor.methods.ft import FT, FTHyperParams
from support import EDITS, Snapshot, logits, same_bits


def folder_of(name: str, where: Path, **changes: object) -> Path:
    model = tiny.model(name, **changes)
    model.save_pretrained(where)
    tiny.tokenizer().save_pretrained(where)
    return where


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of("llama", tmp_path / "llama")


def refused(folder: Path, *words: str, **options: object) -> None:
    with pytest.raises(ModelLoadError) as caught:
        load(str(folder), **options)
    assert isinstance(caught.value, OSError)
    for word in words:
        assert word in str(caught.value)


def test_a_spec_and_keywords_load_the_same_model(folder: Path) -> None:
    spec = ModelSpec(str(folder), dtype="bfloat16", chat_template=False)
    a, b = load(spec), load(str(folder), dtype="bfloat16")
    assert a.model.dtype == b.model.dtype == torch.bfloat16
    assert load(spec, dtype="float32").model.dtype == torch.float32
    assert ModelSpec(fp16=True).precision == "float16"
    with pytest.raises(TypeError):
        load(str(folder), precision="float32")


def test_artefacts_name_the_folder_and_no_path(folder: Path) -> None:
    assert load(str(folder)).name == "llama"
    assert public_name("meta-llama/Llama-2-7b-hf") == "meta-llama/Llama-2-7b-hf"
    assert public_name("/data/models/llama-2/") == "llama-2"
    assert public_name(r"C:\models\llama-2") == "llama-2"
    assert public_name("/c/hub/models--org--name/snapshots/0a1b2c") == "org/name"


def test_a_patch_names_no_place_on_this_machine(folder: Path) -> None:
    settings = FTHyperParams(model_name=str(folder), layers=[1], num_steps=1)
    outcome = FT(settings).edit(load(str(folder)), [EDITS[1]])
    info = getattr(outcome, "patch", outcome).info
    assert info.model_name == info.hyperparams["model_name"] == "llama"


# -- files ---------------------------------------------------------------------------------------


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    refused(folder, "holds no tokenizer", "save_pretrained")


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_weights_that_are_cut_off_are_refused(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(folder, "damaged or cut off")


def test_missing_weights_are_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "lacks 18 weights", "model.layers.3.")


def test_weights_of_another_shape_are_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "9 weights of other shapes", "model.layers.0.mlp.down_proj.weight is (32, 64)")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"\x80\x04junk", b"PK\x03\x04junk", b"\x80\x02}q."])
def test_weights_of_the_former_format_that_are_damaged(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    refused(folder, "could not be loaded")


def test_unused_weights_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    load(str(folder))
    assert "9 weights of the checkpoint have no place in the model" in caplog.text


def test_a_models_own_code_runs_only_when_asked(folder: Path) -> None:
    code = "from pathlib import Path\nPath(__file__).parent.joinpath('ran').touch()\n"
    (folder / "own.py").write_text(code + "raise SystemExit(3)\n")
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="own", auto_map={"AutoConfig": "own.OwnConfig"})
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "Python code", "trust_remote_code=True")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("command", ["generate", "edit"])
def test_the_command_line_never_asks_about_code(
    easyedit, folder: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that says yes to everything is no consent; the flag is."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(folder / "modules"))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 50))
    ran = folder / "ran"
    (folder / "own.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config.update(model_type="own", auto_map=classes, architectures=["OwnModel"])
    (folder / "config.json").write_text(json.dumps(config))
    words = {
        "generate": ["generate", "Rome is", "--max-new-tokens", 1, "--json"],
        "edit": [*outer.EDITING, "--set", "num_steps=1", "--set", "layers=[1]", "--json"],
    }[command]
    refusal = easyedit(*words, "--model", folder)
    assert refusal.code == 2
    assert "--trust-remote-code" in json.loads(refusal.out)["error"]["message"]
    assert not ran.exists()
    answer = easyedit(*words, "--model", folder, "--trust-remote-code")
    assert answer.code in (0, 1)
    assert "error" not in json.loads(answer.out)
    assert ran.exists()


@pytest.mark.parametrize("call", ["score", "generate", "edit"])
def test_a_model_that_needs_an_image_says_so(call: str) -> None:
    target = LM(tiny.vision_model("blip-2"), tiny.tokenizer())
    calls = {
        "score": lambda: score(target, [("Rome is", "the")]),
        "generate": lambda: generate(target, ["Rome is"], 2),
        "edit": lambda: FT(FTHyperParams(layers=[1], num_steps=1)).edit(target, EDITS[:1]),
    }
    before = Snapshot(target.model)
    with pytest.raises(
        UnsupportedModelError, match=r"needs pixel_values.*LM\(model.language_model"
    ):
        calls[call]()
    assert before.differences(target.model) == []
    inside = LM(target.model.language_model, tiny.tokenizer())
    assert generate(inside, ["Rome is"], 2)


@pytest.mark.parametrize("device", ["cuda:0", "xpu", "mps", "meta", "gpu", "nonsense:1"])
def test_a_device_that_is_not_here_is_refused(device: str) -> None:
    if torch.accelerator.is_available():
        pytest.skip("written for a machine without an accelerator")
    with pytest.raises(ModelLoadError, match=r"cpu"):
        pick_device(device)
    assert pick_device(0) == pick_device(None) == pick_device("cpu") == torch.device("cpu")


def test_a_token_without_a_row_is_refused_by_name() -> None:
    tokenizer = tiny.tokenizer().__class__(tokenizer_object=tiny.tokenizer().backend_tokenizer)
    tokenizer.add_tokens(["Zorbia"])
    tokenizer.pad_token = "<pad>"
    lm = LM(tiny.model("llama"), tokenizer)
    with pytest.raises(ModelLoadError, match=r"'Zorbia'.*resize_token_embeddings"):
        score(lm, [("The capital of Zorbia is", "Paris")])


def test_an_edited_checkpoint_is_written_in_the_precision_it_was_read(tmp_path: Path) -> None:
    model = tiny.model("llama", torch.float16)
    model.save_pretrained(tmp_path / "half")
    tiny.tokenizer().save_pretrained(tmp_path / "half")
    lm = load(str(tmp_path / "half"), device="cpu")
    assert lm.model.dtype == torch.float32
    save(lm, tmp_path / "out")
    assert lm.model.dtype == torch.float32
    again = type(model).from_pretrained(tmp_path / "out")
    assert again.dtype == torch.float16
    state = again.state_dict()
    assert all(same_bits(state[name], old) for name, old in model.state_dict().items())


# -- wrappers ------------------------------------------------------------------------------------


def test_wrappers_are_opened() -> None:
    model = tiny.model("llama")
    for wrapped in (torch.compile(model, backend="eager"), torch.nn.DataParallel(model)):
        assert unwrap(wrapped) is model
    assert unwrap(torch.nn.DataParallel(torch.compile(model, backend="eager"))) is model
    assert LM(torch.compile(model, backend="eager"), tiny.tokenizer()).model is model


def test_a_model_that_processes_share_is_edited_inside_its_wrapper() -> None:
    from torch.distributed import HashStore, destroy_process_group, init_process_group
    from torch.nn.parallel import DistributedDataParallel

    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        shared = DistributedDataParallel(tiny.model("llama"))
        before, clean = Snapshot(shared.module), logits(shared.module)
        editor = BaseEditor.from_pretrained(
            shared, tiny.tokenizer(), FTHyperParams(layers=[1], num_steps=2, lr=1e-2)
        )
        edit = EDITS[0]
        result = editor.edit(str(edit.prompt), edit.target, subject=edit.subject, verbose=False)
        assert all(not path.startswith("module.") for path in result.patch.entries)
        ids = torch.tensor([tiny.tokenizer()(edit.prompt.text)["input_ids"]])
        with torch.no_grad():
            assert same_bits(shared(input_ids=ids).logits, logits(shared.module))
        assert not same_bits(logits(shared.module), clean)
        editor.undo(result.patch)
        assert before.differences(shared.module) == []
    finally:
        destroy_process_group()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_adapters_are_refused_with_what_to_call() -> None:
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    for config in (
        LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    ):
        with pytest.raises(UnsupportedModelError, match="merge_and_unload"):
            LM(get_peft_model(tiny.model("llama"), config), tiny.tokenizer())
    injected = tiny.model("llama")
    injected.add_adapter(LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UnsupportedModelError, match="merge_and_unload"):
        LM(injected, tiny.tokenizer())
    with pytest.raises(UnsupportedModelError, match="no model of transformers"):
        LM(torch.nn.Linear(2, 2), tiny.tokenizer())


# -- the cache -----------------------------------------------------------------------------------


def made(place: Path, calls: list[Path]) -> Path:
    def make(scratch: Path) -> Path:
        calls.append(scratch)
        return folder_of("llama", scratch / "model")

    return model_cache.cached_model(place, make, lambda: None)


def test_a_cached_model_is_verified_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place, calls = tmp_path / "models" / "tiny", []
    assert made(place, calls) == made(place, calls) == place
    assert len(calls) == 1
    weights = place / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    made(place, calls)
    assert weights.read_bytes() == whole
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    weights.write_bytes(flipped)
    made(place, calls)
    (place / "tokenizer.json").unlink()
    made(place, calls)
    assert len(calls) == 4
    assert "another digest" in caplog.text
    assert "tokenizer.json is missing" in caplog.text
    os.utime(weights)  # another time alone is no damage
    made(place, calls)
    assert len(calls) == 4


def test_left_overs_of_killed_processes_are_removed(tmp_path: Path) -> None:
    left = tmp_path / ".tiny-abc"
    left.mkdir()
    made(tmp_path / "tiny", [])
    assert not left.exists()
    assert not list(tmp_path.glob(".tiny-*"))


def test_a_cached_model_from_before_there_were_manifests_is_used(tmp_path: Path) -> None:
    calls: list[Path] = []
    place = folder_of("llama", tmp_path / "tiny")
    assert made(place, calls) == place
    assert not calls
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    made(place, calls)
    assert len(calls) == 1


def test_the_holder_of_the_lock_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(model_cache, "MAX_WAIT_SECONDS", 0.01)
    place = tmp_path / "tiny"
    with model_cache._locked(place), pytest.raises(ModelLoadError, match=rf"process {os.getpid()}"):
        made(place, [])
    assert "waiting for process" in caplog.text
    assert made(place, []) == place


def test_a_damaged_embedded_model_offline_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EASYEDITOR_CACHE", str(tmp_path))
    monkeypatch.setenv("EASYEDITOR_OFFLINE", "1")
    place = folder_of("llama", tmp_path / "models" / "smollm2-135m")
    (place / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ModelLoadError, match="is damaged and EASYEDITOR_OFFLINE") as caught:
        load("smollm2-135m")
    assert "Did you mean" not in str(caught.value)
    shutil.rmtree(place)
    with pytest.raises(EasyEditError, match="is not there yet"):
        load("smollm2-135m")
