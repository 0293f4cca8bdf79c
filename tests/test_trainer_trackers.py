"""The trainer: trackers are told what its log is told, or are refused."""

from __future__ import annotations

import pytest

from easyeditor import EditTrainer
from easyeditor.errors import HyperParamsError, MissingExtraError
from training_child import CASES, config, trainer


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_tracker_is_told_what_the_log_is_told(elsewhere, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    if elsewhere:
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "there"))
    result = trainer(tmp_path, report_to=["tensorboard"], max_iters=8).run()
    own = tmp_path / "there" if elsewhere else result.path.parent / "tensorboard"
    (events,) = own.rglob("events.out.*")
    kept = EventAccumulator(str(events)).Reload()
    for name, tag in (("eval_edit_loss", "eval/edit_loss"), ("loss", "train/loss")):
        logged = {r["step"]: r[name] for r in result.history if name in r}
        told = {event.step: event.value for event in kept.Scalars(tag)}
        assert told == pytest.approx(logged, rel=1e-6)
        assert told


def test_an_unknown_tracker_is_refused_before_the_model_is_loaded(tmp_path):
    settings = config(tmp_path, model_name="no/such-model", report_to=["tensorbord"])
    with pytest.raises(HyperParamsError, match="Did you mean 'tensorboard'"):
        EditTrainer(settings, CASES, CASES).run()
    assert not (tmp_path / "MEND").exists()


def test_a_tracker_that_is_not_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", bool)
    with pytest.raises(MissingExtraError, match="pip install wandb"):
        trainer(tmp_path, report_to=["wandb"]).run()
    assert not (tmp_path / "MEND").exists()


@pytest.mark.parametrize("names", [["all"], ["none"], []])
def test_all_and_none_are_trackers_that_are_installed_and_none(names, tmp_path):
    from easyeditor.train.trackers import trackers

    known = {type(tracker).__name__ for tracker in trackers(names, tmp_path)}
    assert ("TensorBoardCallback" in known) == (names == ["all"])
    assert known if names == ["all"] else not known
