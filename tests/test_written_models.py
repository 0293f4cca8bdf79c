"""Edited models and adapters as folders: whole or not there, on a disk that fills up too."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace

import pytest
import torch

import tiny
from easyeditor import LM, Case, Edit, IKEHyperParams, save_patch
from easyeditor.bench.run_dir import RunDirectory
from easyeditor.data.write import write_cases
from easyeditor.errors import EasyEditError, OutputError, PatchStateError
from easyeditor.evaluate.judge import Judge, Question
from easyeditor.lm.loading import save
from easyeditor.methods.ike.ike import IKE
from easyeditor.patches.adapter import AddVector
from easyeditor.patches.module import ModulePatch
from easyeditor.tensor_file import write_tensor_file
from support import full
from synthetic import info


@pytest.fixture(scope="module")
def lm():
    return LM(tiny.model("llama"), tiny.tokenizer())


@pytest.fixture
def small_files(limited):
    """No file may grow beyond 2000 bytes, as safetensors meets it."""
    limited(2000)


def test_a_disk_that_fills_up_leaves_nothing_and_a_second_run_works(lm, tmp_path, monkeypatch):
    out = tmp_path / "edited"
    with monkeypatch.context() as patched:
        patched.setattr(type(lm.tokenizer), "save_pretrained", full)
        with pytest.raises(OutputError, match=r"edited cannot be written: No space left"):
            save(lm, out)
    assert list(tmp_path.iterdir()) == []
    save(lm, out)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(os.listdir(out))
    assert {path.name for path in tmp_path.iterdir()} == {"edited"}
    modes = {path.stat().st_mode & 0o777 for path in out.iterdir()}
    mask = os.umask(0)
    os.umask(mask)
    assert modes == {0o666 & ~mask}
    with pytest.raises(OutputError, match="edited exists and is not an empty folder"):
        save(lm, out)


@pytest.mark.parametrize("kind", ["adapter", "route"])
def test_an_edit_that_is_in_no_weight_is_not_written(lm, kind, tmp_path, easyedit, folder):
    """Neither by Python nor by the command line: a checkpoint would hold the unedited model."""
    if kind == "adapter":
        vector = AddVector(torch.ones(lm.model.config.hidden_size))
        patch = ModulePatch({"model.layers.1.mlp.down_proj": (vector,)}, info(lm))
    else:
        edit = Edit("Rome is the capital of", "France", subject="Rome")
        patch = IKE(IKEHyperParams(use_icl_examples=False)).edit(lm, [edit]).patch
    patch.apply(lm.model)
    try:
        with pytest.raises(PatchStateError, match=r"not in its weights.*save_patch\(patch, path\)"):
            save(lm, tmp_path / "out")
    finally:
        patch.revert(lm.model)
    file = save_patch(patch, tmp_path / "edit.safetensors")
    answer = easyedit("apply", file, "--model", folder, "--out", tmp_path / "out")
    assert answer.code == 2
    assert "easyedit generate --patch" in " ".join(answer.err.split())
    assert not (tmp_path / "out").exists()
    save(lm, tmp_path / "out")


def test_weights_that_do_not_fit(lm, tmp_path, small_files):
    with pytest.raises(OutputError, match=r"edited cannot be written: File too large"):
        save(lm, tmp_path / "edited")
    assert list(tmp_path.iterdir()) == []


def test_room_is_checked_before_writing(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    monkeypatch.setattr(type(lm.model), "save_pretrained", lambda *_, **__: pytest.fail("written"))
    with pytest.raises(OutputError, match=r"edited needs about .* but the disk .* has 10.0 kB"):
        save(lm, tmp_path / "edited")


NAMES = {"a NUL": "a\0b", "too long": "x" * 300, "no folder": "/proc/x", "in a file": "file/x"}
WRITERS = {
    "cases": lambda place: write_cases([Case("0", Edit("a", "b"))], f"{place}.json"),
    "tensors": lambda place: write_tensor_file(place, {"a": torch.ones(1)}, "easyedit", {}),
    "run": lambda place: RunDirectory(place, {}),
    "model": lambda place: save(LM(tiny.model("llama"), tiny.tokenizer()), place),
    "cache": lambda place: Judge("http://127.0.0.1:9/v1", "m", cache=place)([QUESTION]),
}
QUESTION = Question("a", "b", "c")


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_bad_names_are_typed_errors_of_the_name_that_was_given(tmp_path, write, name):
    (tmp_path / "file").touch()
    with pytest.raises(EasyEditError, match=r"cannot be") as error:
        write(tmp_path / name)
    assert ".part" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
