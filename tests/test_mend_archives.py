"""MEND: archives that fit or are refused, and how they are saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mending
from easyeditor import MENDHyperParams, save_patch
from easyeditor.errors import ArchiveError, HyperParamsError
from easyeditor.methods.archive import KEY, NAME, read_archive
from easyeditor.methods.mend.mend import MEND
from mending import stirred
from support import EDITS, Interrupt, Snapshot, lm, unsettle

archive = mending.archive


def test_without_an_archive_it_says_how_to_train_one():
    target = lm("gpt2")
    before = Snapshot(target.model)
    method = MEND(MENDHyperParams())
    with pytest.raises(HyperParamsError, match="easyedit train --method mend"):
        method.edit(target, EDITS)
    with pytest.raises(HyperParamsError, match="easyedit train --method mend"):
        method.initial_state(target)
    assert before.differences(target.model) == []


def test_a_preset_whose_archive_is_not_there_says_so_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArchiveError, match=r"results/MEND/gpt2-xl.*easyedit train --method mend"):
        MEND(MENDHyperParams.preset("gpt2-xl")).edit(lm("gpt2"), EDITS)


def spoilt(archive: Path, folder: Path, how: str) -> Path:
    """A bad archive."""
    file = folder / NAME
    tensors, header = load_file(archive), {}
    with torch.no_grad():
        if how == "truncated":
            file.write_bytes(archive.read_bytes()[:-1000])
        elif how == "not safetensors":
            file.write_bytes(b"PK\x03\x04" + b"x" * 500)
        elif how == "no header":
            save_file(tensors, file)
        elif how == "a patch":
            patch = MEND(MENDHyperParams(archive=str(archive))).edit(lm("gpt2"), EDITS).patch
            save_patch(patch, file)
        elif how == "empty folder":
            return folder
        else:
            with safe_open(archive, framework="pt") as opened:
                header = json.loads(opened.metadata()[KEY])
            header, tensors = SPOILS[how](header, tensors)
            text = header if isinstance(header, str) else json.dumps(header)
            save_file(tensors, file, metadata={KEY: text})
    return file


def _drop(header, tensors):
    return header, {name: t for name, t in tensors.items() if name != "rates"}


def _reshape(header, tensors):
    return header, {**tensors, "rates": tensors["rates"][:-1].clone()}


def _nan(header, tensors):
    return header, {**tensors, "rates": tensors["rates"] * float("nan")}


SPOILS = {
    "no json": lambda h, t: ("{", t),
    "a list": lambda h, t: ([1], t),
    "another format": lambda h, t: ({**h, "format": 99}, t),
    "another method": lambda h, t: ({**h, "method": "ROME"}, t),
    "hyperparams missing": lambda h, t: ({k: v for k, v in h.items() if k != "hyperparams"}, t),
    "unknown hyperparams": lambda h, t: ({**h, "hyperparams": {"alg_name": "MEND", "x": 1}}, t),
    "another rank": lambda h, t: ({**h, "hyperparams": {**h["hyperparams"], "rank": 2}}, t),
    "other weights": lambda h, t: (
        {**h, "model": {**h["model"], "samples": [s + 1 for s in h["model"]["samples"]]}},
        t,
    ),
    "a tensor missing": _drop,
    "a tensor of another shape": _reshape,
    "numbers that are none": _nan,
}
WHY = {
    "truncated": "cannot be read",
    "not safetensors": "cannot be read",
    "no header": "not an EasyEdit archive",
    "a patch": "not an EasyEdit archive",
    "empty folder": "no archive",
    "another method": "trained for ROME",
    "other weights": "does not belong to this model",
    "unknown hyperparams": "cannot be used",
    "numbers that are none": "not finite",
}


@pytest.mark.parametrize(
    "how", ["truncated", "not safetensors", "no header", "a patch", "empty folder", *SPOILS]
)
def test_a_bad_archive_is_refused_and_the_model_unharmed(archive, tmp_path, how):
    target = lm("gpt2")
    unsettle(target.model)
    before = Snapshot(target.model)
    bad = spoilt(archive, tmp_path, how)
    with pytest.raises(ArchiveError, match=WHY.get(how, "archive")) as error:
        MEND(MENDHyperParams(archive=str(bad))).edit(target, EDITS)
    assert str(tmp_path) in str(error.value)
    assert before.differences(target.model) == []


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_an_archive_of_another_model_is_refused(archive, family):
    target = lm(family)
    before = Snapshot(target.model)
    with pytest.raises(ArchiveError, match="does not belong to this model"):
        MEND(MENDHyperParams(archive=str(archive))).edit(target, EDITS)
    assert before.differences(target.model) == []


def test_an_archive_of_the_same_class_with_other_weights_is_refused(archive):
    with pytest.raises(ArchiveError, match="sampled weights differ"):
        MEND(MENDHyperParams(archive=str(archive))).edit(lm("gpt2", seed=7), EDITS)


def test_an_archive_works_in_another_precision_and_on_a_patched_model(archive):
    assert MEND(MENDHyperParams(archive=str(archive))).edit(lm("gpt2", torch.bfloat16), EDITS).patch
    target = lm("gpt2")
    method = MEND(MENDHyperParams(archive=str(archive)))
    method.edit(target, EDITS[:1]).patch.apply(target.model)
    assert method.edit(target, EDITS[1:]).patch


def test_saving_keeps_what_is_there_when_it_fails(tmp_path, monkeypatch):
    learner = stirred(lm("gpt2"))
    file = learner.save(tmp_path)
    before = file.read_bytes()

    def fail(*_args, **_more):
        raise Interrupt

    monkeypatch.setattr("easyeditor.tensor_file.save_file", fail)
    with pytest.raises(Interrupt):
        learner.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [NAME]
    assert file.read_bytes() == before


def test_an_archive_holds_no_place(tmp_path):
    learner = stirred(lm("gpt2"), results_dir=str(tmp_path / "secret"), device="cpu")
    learner.save(tmp_path)
    assert not {"results_dir", "device"} & set(read_archive(tmp_path, "MEND").hyperparams)
