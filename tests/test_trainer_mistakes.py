"""The trainer: everything it refuses."""

from __future__ import annotations

import importlib.util
import logging

import pytest

from easyeditor import Case, EditTrainer, FTHyperParams
from easyeditor.errors import (
    DataError,
    HyperParamsError,
    MissingExtraError,
    TrainingError,
    UnknownMethodError,
)
from easyeditor.methods.learning import TrainingHyperParams
from easyeditor.methods.training import learner_of
from support import EDITS, lm
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
    with pytest.raises(MissingExtraError, match=r"easyeditor\[train\]"):
        trainer(tmp_path).run()
    with pytest.raises(MissingExtraError, match=r"easyeditor\[train\]"):
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
    assert [r for r in caplog.records if "easyeditor[bench]" in r.getMessage()]


def test_module_names_of_another_model_are_refused(tmp_path):
    settings = config(tmp_path, layer_module_tmp="model.layers.{}")
    with pytest.raises(HyperParamsError, match="layer_module_tmp"):
        EditTrainer(settings, CASES, CASES[:4], lm=lm("gpt2")).run()
