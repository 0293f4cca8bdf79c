"""The trainer: what it leaves, exact resuming, and everything it refuses."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy
import pytest
import torch
from torch import nn

import easyeditor.methods.learning as learning
import outer
from easyeditor import (
    BaseEditor,
    Case,
    CounterFactDataset,
    Edit,
    EditTrainer,
    FTHyperParams,
    MENDHyperParams,
    MENDTrainingHparams,
    Probe,
    ZsreDataset,
)
from easyeditor.errors import (
    DataError,
    DivergedError,
    HyperParamsError,
    MissingExtraError,
    TrainingError,
    UnknownMethodError,
)
from easyeditor.methods.learning import TrainingHyperParams, examples, learner_of
from easyeditor.methods.mend.learner import MENDLearner
from easyeditor.registry import Registry
from easyeditor.train.log import CURVE, LOG, read_log
from easyeditor.train.trackers import trackers
from support import EDITS, Interrupt, Snapshot, lm, unsettle
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
    assert {p.name for p in folder.iterdir()} == {whole.path.name, LOG, CURVE, "training.json"}
    assert whole.curve == folder / CURVE
    assert whole.curve.read_bytes().startswith(b"\x89PNG")
    assert whole.log == folder / LOG
    assert whole.steps == 12


def test_the_history_is_the_log_and_tells_losses_and_accuracies(whole):
    assert read_log(whole.path.parent) == list(whole.history)
    judged = [record for record in whole.history if "eval_edit_loss" in record]
    assert [record["step"] for record in judged] == [3, 6, 9, 12]
    shares = ("eval_rewrite", "eval_rephrase", "eval_locality")
    assert all(0 <= record[name] <= 1 for record in judged for name in shares)
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
    judged = [r["eval_edit_loss"] for r in whole.history if "eval_edit_loss" in r]
    assert learner.validate(CASES[:4])["edit_loss"] == pytest.approx(min(judged), rel=1e-6)
    assert whole.metrics["edit_loss"] == pytest.approx(min(judged), rel=1e-6)
    editor = BaseEditor.from_pretrained(
        target.model, target.tokenizer, MENDHyperParams(archive=str(whole.path))
    )
    before = target.score([(EDITS[0].prompt, EDITS[0].target)])[0].mean_logprob
    editor.edit(EDITS[0].prompt, EDITS[0].target, verbose=False)
    assert target.score([(EDITS[0].prompt, EDITS[0].target)])[0].mean_logprob > before + 0.5


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


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_it_trains_beside_other_families(family, tmp_path):
    target = lm(family)
    before = Snapshot(target.model)
    result = EditTrainer(config(tmp_path), CASES, CASES[:4], lm=target).run()
    judged = [r["eval_edit_loss"] for r in result.history if "eval_edit_loss" in r]
    assert judged[-1] < judged[0]
    assert before.differences(target.model) == []


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
        {"src": c.edit.prompt, "alt": c.edit.target, "answers": ["Danish"], "pred": "x"}
        | {"rephrase": c.probes[0].prompt, "loc": "nq question: she plays", "loc_ans": "piano"}
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
    assert metrics[0]["post"]["rewrite_acc"] >= 0


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


@pytest.mark.parametrize("call", [7, 12, 13, 14, 20, 24])
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
    judged = [[r for r in run if "eval_edit_loss" in r] for run in timeless]
    assert judged[0] == judged[1]
    assert not (tmp_path / "MEND" / "tiny" / "checkpoints").exists()


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


# -- what it refuses --------------------------------------------------------------------------


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


# -- examples ---------------------------------------------------------------------------------


def test_every_probe_is_seen_once_per_round():
    def asked(kind, *prompts):
        return tuple(Probe(p, ("x",), kind) for p in prompts)

    probes = asked("rephrase", "r0", "r1") + asked("locality/a", "n0", "n1", "n2", "n3", "n4")
    case = Case("c", Edit("p", "t"), (*asked("portability/x", "q"), *probes))
    made = examples([case])
    assert [[p.prompt for p in one.probes] for one in made] == [
        ["r0", "n0"],
        ["r1", "n1"],
        ["r0", "n2"],
        ["r1", "n3"],
        ["r0", "n4"],
    ]
    assert len({one.id for one in made}) == 5
    assert [[p.prompt for p in one.probes] for one in examples([case], once=True)] == [["r0", "n0"]]
    assert examples([case])[0].edit is case.edit


# -- the loop, on a learner that could not be simpler -----------------------------------------


class Toy:
    """Learns one number: the mean length of the prompts."""

    class Hparams(TrainingHyperParams):
        alg_name: str = "TOY"

    training_class: ClassVar[type[TrainingHyperParams]] = Hparams
    seen: ClassVar[list[list[str]]] = []
    poison: ClassVar[int | None] = None
    script: ClassVar[Iterator[float]] = iter(())

    def __init__(self, config: TrainingHyperParams) -> None:
        self.module = nn.Linear(1, 1, bias=False)
        self.own = nn.Parameter(torch.zeros(1))
        self.module.register_parameter("own", self.own)
        with torch.no_grad():
            self.module.weight.zero_()

    @classmethod
    def learner(cls, _lm: Any, config: TrainingHyperParams) -> Toy:
        return cls(config)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.module.weight], "lr": 0.5}, {"params": [self.own], "lr": 0.25}]

    def loss(self, cases: Any) -> dict[str, torch.Tensor]:
        Toy.seen.append([case.id for case in cases])
        wanted = torch.tensor([[float(len(case.edit.prompt))] for case in cases])
        gap = self.module.weight - wanted + self.own
        scale = float("nan") if len(Toy.seen) == Toy.poison else 1.0
        return {"loss": scale * gap.square().mean(), "gap": gap.detach().mean()}

    @torch.no_grad()
    def validate(self, cases: Any) -> dict[str, float]:
        return {"edit_loss": next(Toy.script, 1.0), "rewrite": self.module.weight.item()}

    def save(self, folder: Path) -> Path:
        file = folder / "toy.json"
        file.write_text(json.dumps([self.module.weight.item(), self.own.item()]))
        return file


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """Train it; returns the two numbers and the result."""
    known = Registry("method", UnknownMethodError, {"TOY": f"{__name__}:Toy"})
    monkeypatch.setattr(learning, "METHODS", known)
    monkeypatch.setattr(Toy, "seen", [])
    monkeypatch.setattr(Toy, "poison", None)

    def run(**changes):
        usual = {"results_dir": str(tmp_path), "opt": "SGD", "grad_clip": None, "max_iters": 1}
        settings = Toy.Hparams(**{**usual, **changes})
        result = EditTrainer(settings, CASES, CASES, lm=lm("gpt2")).run()
        return json.loads(result.path.read_text()), result

    return run


def test_groups_have_their_own_step_sizes(toy):
    (weight, own), _ = toy(batch_size=8)
    mean = sum(len(case.edit.prompt) for case in CASES) / len(CASES)
    assert weight == pytest.approx(0.5 * 2 * mean, rel=1e-5)
    assert own == pytest.approx(0.25 * 2 * mean, rel=1e-5)


def test_accumulated_batches_are_one_large_batch(toy):
    one, _ = toy(batch_size=8)
    parts, _ = toy(batch_size=2, accumulate_bs=4, max_iters=4)
    assert len(Toy.seen) == 5
    assert sorted(name for batch in Toy.seen[1:] for name in batch) == sorted(Toy.seen[0])
    assert parts == pytest.approx(one, rel=1e-5)


def test_gradients_are_clipped(toy):
    (weight, own), _ = toy(batch_size=8, grad_clip=1.0)
    assert weight == pytest.approx(0.5 / 2**0.5, rel=1e-4)
    assert own == pytest.approx(0.25 / 2**0.5, rel=1e-4)


def test_every_round_shows_every_case_in_another_order(toy):
    toy(batch_size=4, max_iters=4)
    first, second = (Toy.seen[i] + Toy.seen[i + 1] for i in (0, 2))
    assert sorted(first) == sorted(second) == sorted(case.id for case in CASES)
    assert first != second != [case.id for case in CASES]


def test_it_stops_when_held_out_cases_gain_nothing(toy):
    _, result = toy(max_iters=100, val_interval=5, early_stop_patience=15, batch_size=4)
    assert result.steps == 20  # the first validation is the best; three more bring nothing


def test_the_best_state_is_kept_also_when_later_ones_are_worse(toy, monkeypatch):
    monkeypatch.setattr(Toy, "script", iter([3.0, 2.0, 5.0, 2.5]))
    (weight, _), result = toy(max_iters=4, val_interval=1, batch_size=4)
    judged = [record for record in result.history if "eval_edit_loss" in record]
    assert [record["eval_edit_loss"] for record in judged] == [3.0, 2.0, 5.0, 2.5]
    assert weight == judged[1]["eval_rewrite"]
    assert weight != judged[3]["eval_rewrite"]


def test_the_step_size_may_decay(toy):
    toy(lr_schedule="linear", max_iters=4, log_interval=1)
    _, result = toy(lr_schedule="cosine", max_iters=4, log_interval=1)
    rates = [record["learning_rate"] for record in result.history if "learning_rate" in record]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.6 * rates[0]


@pytest.mark.parametrize("opt", ["Adam", "AdamW", "SGD"])
def test_optimisers(toy, opt):
    (weight, _), _ = toy(opt=opt)
    assert weight != 0


def test_a_loss_that_is_no_number_ends_it_and_the_checkpoint_stands(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(Toy, "poison", 6)
    with pytest.raises(DivergedError, match=r"nan at step 5.*Lower lr"):
        toy(max_iters=10, val_interval=2)
    assert [*tmp_path.rglob("checkpoint-4/trainer_state.json")]
    assert not [*tmp_path.rglob("toy.json")]


def test_the_trainer_names_no_method():
    for file in (outer.SOURCE / "train").glob("*.py"):
        assert "mend" not in file.read_text(encoding="utf-8").lower()


# -- trackers ---------------------------------------------------------------------------------


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
    known = {type(tracker).__name__ for tracker in trackers(names, tmp_path)}
    assert ("TensorBoardCallback" in known) == (names == ["all"])
    assert known if names == ["all"] else not known
