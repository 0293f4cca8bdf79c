"""The trainer: everything it refuses."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from easyeditor import Case, EditTrainer, FTHyperParams
from easyeditor.errors import (
    DataError,
    HyperParamsError,
    MissingExtraError,
    OutputError,
    TrainingBusyError,
    TrainingError,
    UnknownMethodError,
)
from easyeditor.methods.learning import TrainingHyperParams
from easyeditor.methods.training import learner_of
from support import EDITS, Snapshot, lm, unsettle
from training_child import CASES, config, trainer


def test_cases_without_the_probes_are_counted(tmp_path):
    bare = [Case("0", EDITS[0]), Case("1", EDITS[1], CASES[1].probes[:1]), *CASES]
    for train, held_out in ((bare, CASES), (CASES, bare)):
        with pytest.raises(DataError) as error:
            EditTrainer(config(tmp_path), train, held_out, lm=lm("gpt2"))
        assert "1 of 10 have no rephrase probe" in str(error.value)
        assert "2 of 10 have no locality probe" in str(error.value)
    with pytest.raises(DataError, match="no cases"):
        EditTrainer(config(tmp_path), [], CASES, lm=lm("gpt2"))
    with pytest.raises(DataError, match="no cases"):
        EditTrainer(config(tmp_path), CASES, [], lm=lm("gpt2"))
    assert list(tmp_path.iterdir()) == []


def test_no_rephrase_is_needed_where_none_is_used(tmp_path):
    bare = [Case(c.id, c.edit, c.probes[1:]) for c in CASES]
    result = EditTrainer(
        config(tmp_path, edit_loss_on="prompt", max_iters=4), bare, bare, lm=lm("gpt2")
    ).run()
    assert "rephrase" not in result.metrics


def test_settings_of_an_edit_are_refused(tmp_path):
    with pytest.raises(HyperParamsError, match="FTHyperParams; those are for editing"):
        EditTrainer(FTHyperParams(), CASES, CASES)
    with pytest.raises(HyperParamsError, match="str"):
        EditTrainer("gpt2-xl", CASES, CASES)


def test_a_method_that_does_not_learn_is_refused():
    class FTTraining(TrainingHyperParams):
        alg_name: str = "FT"

    with pytest.raises(TrainingError, match=r"FT needs no training.*MEND"):
        EditTrainer(FTTraining(), CASES, CASES)
    with pytest.raises(TrainingError, match="FT needs no training"):
        learner_of(lm("gpt2"), FTTraining())
    with pytest.raises(UnknownMethodError):
        EditTrainer(TrainingHyperParams(), CASES, CASES)


def test_accelerate_missing(tmp_path, monkeypatch):
    true = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "accelerate" else true(name)
    )
    with pytest.raises(MissingExtraError, match=r"easyedit-lm\[train\]"):
        trainer(tmp_path).run()
    with pytest.raises(MissingExtraError, match=r"easyedit-lm\[train\]"):
        EditTrainer(config(tmp_path), CASES, CASES).load()
    assert list(tmp_path.iterdir()) == []


def test_matplotlib_missing(tmp_path, monkeypatch, caplog):
    true = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else true(name)
    )
    with caplog.at_level(logging.INFO, "easyeditor"):
        result = trainer(tmp_path, max_iters=4).run()
    assert result.curve is None
    assert result.path.is_file()
    assert [r for r in caplog.records if "easyedit-lm[bench]" in r.getMessage()]


def test_module_names_of_another_model_are_refused(tmp_path):
    settings = config(tmp_path, layer_module_tmp="model.layers.{}")
    with pytest.raises(HyperParamsError, match="layer_module_tmp"):
        EditTrainer(settings, CASES, CASES[:4], lm=lm("gpt2")).run()


# -- one training per folder ------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from easyeditor.errors import TrainingBusyError
from easyeditor.folder_lock import FolderLock
with FolderLock(Path(sys.argv[1]), "training", TrainingBusyError):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_training_in_one_folder_is_refused(tmp_path, resume):
    target = lm("gpt2")
    unsettle(target.model)
    before = Snapshot(target.model)
    second = EditTrainer(config(tmp_path), CASES, CASES[:4], lm=target)
    second.folder.mkdir(parents=True)
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(second.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "held\n"
    expected = (
        rf"works in {second.folder} \(process {child.pid} on host .*, since 20.* UTC\)\. Wait"
    )
    for start in (second.check, second.run):
        with pytest.raises(TrainingBusyError, match=expected):
            start(resume=resume)
    assert before.differences(target.model) == []
    child.kill()
    child.communicate()
    second._lock().check_free()
    with second._lock():
        pass


def test_the_lock_is_held_while_it_trains_and_given_back(tmp_path, monkeypatch):
    first, second = trainer(tmp_path, max_iters=4), trainer(tmp_path, max_iters=4)
    seen = []

    def on_train(*_, **__):
        with pytest.raises(TrainingBusyError, match=f"process {os.getpid()} on host"):
            second.run()
        seen.append(True)
        raise KeyboardInterrupt

    monkeypatch.setattr("easyeditor.train.loop.Loop.train", on_train)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert seen
    monkeypatch.undo()
    second.check()


# -- full disks -------------------------------------------------------------------------------


def test_a_place_that_cannot_be_written_is_told_before_the_model_is_loaded(tmp_path):
    (tmp_path / "MEND").touch()
    for start in (trainer(tmp_path).check, trainer(tmp_path).run):
        with pytest.raises(OutputError, match=r"archive.* cannot be written"):
            start()


def test_too_little_room(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(OutputError, match=r"needs about .* Make room"):
        trainer(tmp_path).run()


def test_a_disk_that_fills_up(tmp_path, limited):
    target = lm("gpt2")
    unsettle(target.model)
    before = Snapshot(target.model)
    made = EditTrainer(config(tmp_path, max_iters=4), CASES, CASES[:4], lm=target)
    limited(5_000)
    with pytest.raises(OutputError, match=r"cannot write to .*tiny: .*There is no checkpoint yet"):
        made.run()
    assert before.differences(target.model) == []
    limited(10**9)
    assert made.run().path.is_file()
