"""The trainer: what it leaves, and exact resuming."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from easyeditor import (
    BaseEditor,
    CounterFactDataset,
    EditTrainer,
    MENDHyperParams,
    MENDTrainingHparams,
    ZsreDataset,
)
from easyeditor.errors import TrainingError
from easyeditor.lm.inference import score
from easyeditor.methods.mend.learner import MENDLearner
from easyeditor.train.log import CURVE, LOG, read_log
from support import EDITS, Interrupt, Snapshot, lm, unsettle
from tiers import tiered
from training_child import CASES, config, trainer

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted training."""
    return trainer(tmp_path_factory.mktemp("whole")).run()


def breaking(monkeypatch, call: int, error: type[BaseException] = Interrupt) -> None:
    """Let the ``call``-th loss fail."""
    true, passes = MENDLearner.loss, 0

    def loss(self, cases):
        nonlocal passes
        passes += 1
        if passes == call:
            raise error
        return true(self, cases)

    monkeypatch.setattr(MENDLearner, "loss", loss)


# -- what a training leaves -------------------------------------------------------------------


def test_it_leaves_an_archive_a_log_and_a_curve(whole):
    folder = whole.path.parent
    assert folder.parts[-2:] == ("MEND", "tiny")
    left = {whole.path.name, LOG, CURVE, "training.json", "training.lock"}
    assert {p.name for p in folder.iterdir()} == left
    assert whole.curve == folder / CURVE
    assert whole.curve.read_bytes().startswith(b"\x89PNG")
    assert whole.log == folder / LOG
    assert whole.steps == 12


def test_the_history_is_the_log_and_tells_losses_and_accuracies(whole):
    assert read_log(whole.path.parent) == list(whole.history)
    evaluate_cases = [record for record in whole.history if "eval_edit_loss" in record]
    assert [record["step"] for record in evaluate_cases] == [3, 6, 9, 12]
    shares = ("eval_rewrite", "eval_rephrase", "eval_locality")
    assert all(0 <= record[name] <= 1 for record in evaluate_cases for name in shares)
    trained = [record for record in whole.history if "loss" in record]
    assert [record["step"] for record in trained] == [2, 4, 6, 8, 10, 12]
    for record in trained:
        parts = 0.1 * record["edit_nll"] + record["loc_kl"]
        assert record["loss"] == pytest.approx(parts, rel=1e-4)
    assert trained[-1]["loss"] < trained[0]["loss"]


def test_the_archive_is_the_best_state_and_edits(whole):
    target = lm("gpt2")
    learner = MENDLearner(target, config("x"))
    learner.load(whole.path)
    evaluate_cases = [r["eval_edit_loss"] for r in whole.history if "eval_edit_loss" in r]
    assert learner.validate(CASES[:4])["edit_loss"] == pytest.approx(min(evaluate_cases), rel=1e-6)
    assert whole.metrics["edit_loss"] == pytest.approx(min(evaluate_cases), rel=1e-6)
    editor = BaseEditor.from_pretrained(
        target.model, target.tokenizer, MENDHyperParams(archive=str(whole.path))
    )
    before = score(target, [(EDITS[0].prompt, EDITS[0].target)])[0].mean_logprob
    editor.edit(EDITS[0].prompt, EDITS[0].target, verbose=False)
    assert score(target, [(EDITS[0].prompt, EDITS[0].target)])[0].mean_logprob > before + 0.5


def test_the_model_and_the_generators_are_left_as_they_were(tmp_path):
    target = lm("gpt2")
    unsettle(target.model)
    before = Snapshot(target.model)
    random.seed(5)
    numpy.random.seed(5)
    torch.manual_seed(5)
    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()
    EditTrainer(config(tmp_path, max_iters=4), CASES, CASES[:4], lm=target).run()
    assert before.differences(target.model) == []
    assert random.getstate() == states[0]
    assert numpy.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_the_same_seed_gives_the_same_bits_and_another_gives_others(whole, tmp_path):
    torch.manual_seed(99)
    again = trainer(tmp_path / "again").run()
    assert again.path.read_bytes() == whole.path.read_bytes()
    other = trainer(tmp_path / "other", seed=1).run()
    assert other.path.read_bytes() != whole.path.read_bytes()


def test_it_is_silent_in_a_pipe(tmp_path, capfd):
    trainer(tmp_path, max_iters=4).run()
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err == ""


@pytest.mark.parametrize("family", tiered(["llama", "t5"], {"t5"}))
def test_it_trains_beside_other_families(family, tmp_path):
    target = lm(family)
    before = Snapshot(target.model)
    result = EditTrainer(config(tmp_path), CASES, CASES[:4], lm=target).run()
    evaluate_cases = [r["eval_edit_loss"] for r in result.history if "eval_edit_loss" in r]
    assert evaluate_cases[-1] < evaluate_cases[0]
    assert before.differences(target.model) == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_it_trains_beside_a_model_in_low_precision(dtype, tmp_path):
    target = lm("llama", dtype)
    result = EditTrainer(config(tmp_path, half=True), CASES, CASES[:4], lm=target).run()
    assert result.metrics["edit_loss"] < result.history[1]["eval_edit_loss"] + 1e-6


def test_it_loads_the_model_its_settings_name(folder, tmp_path):
    settings = config(tmp_path, model_name=str(folder), max_iters=4)
    result = EditTrainer(settings, CASES, CASES[:4]).run()
    assert result.path.parent == tmp_path / "MEND" / folder.name


def test_the_classic_lines_run_as_they_were_written(tmp_path, monkeypatch, folder):
    from easyeditor.cli.info import write_presets

    write_presets(tmp_path / "hparams")
    monkeypatch.chdir(tmp_path)
    records = [
        {"src": c.edit.prompt.text, "alt": c.edit.target, "answers": ["Danish"], "pred": "x"}
        | {"rephrase": c.probes[0].prompt.text, "loc": "nq question: she plays", "loc_ans": "piano"}
        for c in CASES
    ]
    Path("train.json").write_text(json.dumps(records))
    hparams = MENDTrainingHparams.from_hparams("./hparams/TRAINING/MEND/gpt2-xl")
    assert hparams.lr == 1e-6
    # What stands for the 6 GB of GPT-2 XL here, and for its 100,000 steps.
    hparams = hparams.replace(model_name=str(folder), max_iters=20, val_interval=10, device="cpu")
    train_ds = ZsreDataset("./train.json", config=hparams)
    eval_ds = ZsreDataset("./train.json", config=hparams, size=3)
    result = EditTrainer(config=hparams, train_set=train_ds, val_set=eval_ds).run()
    assert result.path.is_relative_to("results/MEND")
    edit = MENDHyperParams(archive=str(result.path), model_name=str(folder), device="cpu")
    metrics, _, _ = BaseEditor.from_hparams(edit).edit(
        prompts=[EDITS[0].prompt], target_new=[EDITS[0].target], keep_original_weight=True
    )
    pre, post = (metrics[0][when]["rewrite_prob"]["target_new"] for when in ("pre", "post"))
    assert post > pre, metrics


def test_counterfact_records_train_too(tmp_path):
    record = {
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "subject": "Anna Lind",
            "target_new": {"str": "Italy"},
            "target_true": {"str": "Danish"},
        },
        "paraphrase_prompts": ["Anna Lind speaks", "Anna Lind grew up with"],
        "neighborhood_prompts": ["She plays", "You can see", "Berlin"],
        "case_id": 7,
    }
    file = tmp_path / "counterfact.json"
    file.write_text(json.dumps([record]))
    dataset = CounterFactDataset(file, config=config(tmp_path))
    made = EditTrainer(config(tmp_path, max_iters=4), dataset, dataset, lm=lm("gpt2"))
    assert len(made.train_set) == 3
    assert len(made.val_set) == 1
    assert made.run().steps == 2


# -- going on after a crash -------------------------------------------------------------------


@pytest.mark.parametrize("call", tiered([7, 12, 13, 14, 20, 24], {14}))
def test_a_training_that_broke_off_ends_with_the_same_bits(call, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        breaking(patched, call)
        with pytest.raises(Interrupt):
            trainer(tmp_path).run()
    result = trainer(tmp_path).run(resume=True)
    assert result.path.read_bytes() == whole.path.read_bytes()
    assert result.metrics == whole.metrics
    timeless = [
        [{k: v for k, v in r.items() if "loss" in k} for r in run.history if "train_loss" not in r]
        for run in (result, whole)
    ]
    evaluate_cases = [[r for r in run if "eval_edit_loss" in r] for run in timeless]
    assert evaluate_cases[0] == evaluate_cases[1]
    assert not (tmp_path / "MEND" / "tiny" / "checkpoints").exists()


@pytest.mark.slow
def test_a_killed_process_is_taken_up_with_the_same_bits(whole, tmp_path):
    command = [sys.executable, str(HERE / "training_child.py"), str(tmp_path), "15"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "MEND" / "tiny" / "checkpoints" / "checkpoint-6").is_dir()
    result = trainer(tmp_path).run(resume=True)
    assert result.path.read_bytes() == whole.path.read_bytes()


def broken_off(folder: Path, monkeypatch, call: int = 14) -> Path:
    """A training that broke off; returns its checkpoints."""
    with monkeypatch.context() as patched:
        breaking(patched, call)
        with pytest.raises(Interrupt):
            trainer(folder).run()
    return folder / "MEND" / "tiny" / "checkpoints"


def test_a_checkpoint_holds_what_is_trained_and_not_the_model(tmp_path, monkeypatch):
    from safetensors.torch import load_file

    (last,) = broken_off(tmp_path, monkeypatch).iterdir()
    held = load_file(last / "model.safetensors")
    learner = MENDLearner(lm("gpt2"), config("x"))
    assert held.keys() == {f"trained.{name}" for name in learner.module.state_dict()}
    assert not [p.name for p in last.iterdir() if p.name.startswith("training_args")]


def test_a_checkpoint_that_was_being_written_is_passed_over(whole, tmp_path, monkeypatch):
    checkpoints = broken_off(tmp_path, monkeypatch)
    (last,) = checkpoints.iterdir()
    for name, spoil in (("checkpoint-8", None), ("checkpoint-9", '{"global_step": 9, "lo')):
        half = checkpoints / name
        half.mkdir()
        shutil.copy(last / "model.safetensors", half)
        if spoil is not None:
            (half / "trainer_state.json").write_text(spoil)
    result = trainer(tmp_path).run(resume=True)
    assert result.path.read_bytes() == whole.path.read_bytes()


def test_an_unfinished_training_is_not_overwritten(tmp_path, monkeypatch):
    (last,) = broken_off(tmp_path, monkeypatch).iterdir()
    before = (last / "model.safetensors").read_bytes()
    with pytest.raises(TrainingError, match=r"broke off at checkpoint-6.*resume=True"):
        trainer(tmp_path).run()
    assert (last / "model.safetensors").read_bytes() == before


def test_there_must_be_something_to_go_on_with(whole, tmp_path):
    with pytest.raises(TrainingError, match="no unfinished training"):
        trainer(tmp_path).run(resume=True)
    with pytest.raises(TrainingError, match="no unfinished training"):
        trainer(whole.path.parents[2]).run(resume=True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"lr": 5e-4}, "lr: 0.001, now 0.0005"), ({"seed": 3}, "seed"), ({"max_iters": 30}, "max_it")],
)
def test_other_settings_cannot_go_on(changes, named, tmp_path, monkeypatch):
    broken_off(tmp_path, monkeypatch)
    with pytest.raises(TrainingError, match=named):
        trainer(tmp_path, **changes).run(resume=True)


def test_other_data_or_another_model_cannot_go_on(tmp_path, monkeypatch):
    broken_off(tmp_path, monkeypatch)
    with pytest.raises(TrainingError, match="data"):
        EditTrainer(config(tmp_path), CASES[1:], CASES[:4], lm=lm("gpt2")).run(resume=True)
    with pytest.raises(TrainingError, match="model"):
        EditTrainer(config(tmp_path), CASES, CASES[:4], lm=lm("gpt2", seed=3)).run(resume=True)
    (tmp_path / "MEND" / "tiny" / "training.json").write_text("{")
    with pytest.raises(TrainingError, match="unreadable"):
        trainer(tmp_path).run(resume=True)


def test_a_finished_training_may_be_made_again(tmp_path):
    first = trainer(tmp_path, max_iters=4).run()
    second = trainer(tmp_path, max_iters=8).run()
    assert first.path == second.path
    assert second.steps == 4
