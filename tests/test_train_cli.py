"""``easyedit train``: what it prints, what it leaves, and mistakes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from easyeditor import MENDTrainingHparams, ZsreDataset, load
from easyeditor.methods.archive import NAME
from easyeditor.methods.learning import examples
from easyeditor.methods.mend.learner import MENDLearner
from outer import PROMPT, TARGET
from scripting import BAD_INPUT, DONE, document, refused, sets
from support import Interrupt
from training_child import CASES

QUICK = ("max_iters=4", "val_interval=2", "batch_size=2", "lr=1e-3", "edit_lr=1e-3")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """ZsRE records of eight edits."""
    file = tmp_path_factory.mktemp("data") / "zsre.json"
    records = [
        {
            "src": str(case.edit.prompt),
            "alt": f"{case.edit.target} {i}",
            "answers": ["Danish"],
            "rephrase": str(case.probes[0].prompt),
            "loc": str(case.probes[1].prompt),
            "loc_ans": case.probes[1].answers[0],
        }
        for i, case in enumerate(CASES)
    ]
    file.write_text(json.dumps(records), encoding="utf-8")
    return file


def training(folder, data, out, *more, settings=QUICK):
    """``easyedit train`` on this model."""
    words = ("train", "--model", folder, "--data", data, "--out", out)
    return (*words, "--device", "cpu", *sets(settings), *more)


def test_it_says_where_the_archive_is_and_that_edits(easyedit, folder, data, tmp_path):
    told = easyedit(*training(folder, data, tmp_path, "--method", "mend"))
    assert told.code == DONE
    archive = tmp_path / "MEND" / folder.name / NAME
    assert f"Archive: {archive}" in told.out
    assert "1 held-out case" in told.out
    assert "4 steps" in told.out
    assert "on 7 cases" in told.out
    (use,) = [line for line in told.out.splitlines() if line.startswith("Use it:")]
    words = use.removeprefix("Use it:").split()[1:]
    words = [PROMPT if w == "…" and words[i - 1] == "--prompt" else w for i, w in enumerate(words)]
    words[-1] = TARGET
    edited = easyedit(*words, "--json")
    assert document(edited)["method"] == "MEND"
    assert edited.code in {0, 1}


def test_json_is_one_document(easyedit, folder, data, tmp_path):
    told = easyedit(*training(folder, data, tmp_path, "--val", data, "--json"))
    assert told.code == DONE
    found = document(told)
    assert found["cases"] == {"train": 8, "val": 8}
    assert found["steps"] == 4
    assert {"rewrite", "rephrase", "locality", "edit_loss"} <= found["metrics"].keys()
    assert all(Path(found[name]).is_file() for name in ("archive", "log", "curve"))
    assert found["use"].endswith(f"--set archive={found['archive']}")


def test_the_share_held_out_depends_on_the_seed_alone(easyedit, folder, data, tmp_path):
    def archive(name, *settings):
        words = training(folder, data, tmp_path / name, "--share", "0.25", "--json")
        return Path(document(easyedit(*words, *sets(settings)))["archive"]).read_bytes()

    assert archive("a") == archive("b")
    assert archive("a") != archive("c", "seed=5")


def test_settings_come_from_a_file_and_the_command_line_wins(easyedit, folder, data, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"alg_name: MEND\nmodel_name: {folder}\nmax_iters: 50\nbatch_size: 2\n")
    words = ("train", "--data", data, "--hparams", file, "--out", tmp_path, "--device", "cpu")
    told = document(easyedit(*words, "--set", "max_iters=3", "--json"))
    assert told["model"] == str(folder)
    assert told["steps"] == 3


def test_a_training_that_broke_off_is_taken_up(easyedit, folder, data, tmp_path, monkeypatch):
    whole = document(easyedit(*training(folder, data, tmp_path / "whole", "--json")))
    true, passes = MENDLearner.loss, 0

    def loss(self, cases):
        nonlocal passes
        passes += 1
        if passes == 4:
            raise Interrupt
        return true(self, cases)

    words = training(folder, data, tmp_path / "mine")
    with monkeypatch.context() as patched:
        patched.setattr(MENDLearner, "loss", loss)
        assert easyedit(*words).code not in {0, BAD_INPUT}
    assert "broke off at checkpoint-2" in refused(easyedit(*words))
    told = document(easyedit(*words, "--resume", "--json"))
    assert Path(told["archive"]).read_bytes() == Path(whole["archive"]).read_bytes()
    assert "no unfinished training" in refused(easyedit(*words, "--resume"))


BARE = '[{"src": "a b", "alt": "c", "answers": ["d"]}, {"src": "e", "alt": "f", "answers": ["d"]}]'
BAD = {
    "unknown method": (("--method", "mand"), "Did you mean 'MEND'"),
    "a method that does not learn": (("--method", "ft"), "FT needs no training"),
    "unknown hyper-parameter": (("--set", "max_itres=3"), "Did you mean 'max_iters'"),
    "wrong type": (("--set", "lr=fast"), "lr='fast'"),
    "no name": (("--set", "lr"), "NAME=VALUE"),
    "a parameter that is none": (("--set", "inner_params=[model.x.weight]"), "is no parameter"),
    "unknown file of data": (("--data", "nothing.json"), "nothing.json"),
    "unknown held-out file": (("--val", "nothing.json"), "nothing.json"),
    "share of nothing": (("--share", "0.7"), "--share"),
    "unknown model": (("--model", "./nowhere/at/all"), "No folder './nowhere/at/all'"),
    "unknown settings": (("--hparams", "nothing.yaml"), "nothing.yaml"),
    "unknown device": (("--device", "abacus"), "abacus"),
    "unknown tracker": (("--set", "report_to=[tensorbord]"), "Did you mean 'tensorboard'"),
    "nothing to resume": (("--resume",), "no unfinished training"),
    "out is a file": (("--out", __file__), Path(__file__).name),
}


@pytest.mark.parametrize(("words", "why"), BAD.values(), ids=BAD)
def test_mistakes(easyedit, folder, data, tmp_path, words, why):
    assert why in refused(easyedit(*training(folder, data, tmp_path), *words))


@pytest.mark.parametrize(("words", "why"), BAD.values(), ids=BAD)
def test_mistakes_as_json(easyedit, folder, data, tmp_path, words, why):
    told = easyedit(*training(folder, data, tmp_path), *words, "--json")
    assert told.code == BAD_INPUT
    assert why in document(told)["error"]["message"]


def test_data_without_probes(easyedit, folder, tmp_path):
    file = tmp_path / "bare.json"
    file.write_text(BARE)
    told = refused(easyedit(*training(folder, file, tmp_path)))
    assert "1 of 1 have no rephrase probe, 1 of 1 have no locality probe" in told
    file.write_text(BARE.partition("}, ")[0] + "}]")
    assert "too few" in refused(easyedit(*training(folder, file, tmp_path)))


def test_data_is_needed(easyedit, folder):
    assert "--data" in refused(easyedit("train", "--model", folder))


def test_help_shows_examples(easyedit):
    told = easyedit("train", "--help")
    assert told.code == DONE
    assert "easyedit train --method mend --data" in " ".join(told.out.split())


def test_settings_for_training_are_listed_shown_and_written(easyedit, tmp_path):
    known = document(easyedit("hparams", "ls", "--json"))
    assert "gpt2-xl" in known["TRAINING/MEND"]
    assert "TRAINING/FT" not in known
    shown = document(easyedit("hparams", "show", "mend", "gpt2-xl", "--training", "--json"))
    assert shown["accumulate_bs"] == 10
    assert "FT needs no training" in refused(easyedit("hparams", "show", "ft", "--training"))
    easyedit("hparams", "write", "--out", tmp_path)
    assert (tmp_path / "TRAINING" / "MEND" / "gpt2-xl.yaml").is_file()


@pytest.mark.slow  # the fast tier has one launched training, in test_trainer_launched.py
def test_two_processes_share_a_training(easyedit, folder, data, tmp_path):
    """Each takes its share of the batches and of the held-out cases; one writes and tells."""
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    command = ("--no-python", shutil.which("easyedit", path=Path(sys.executable).parent))
    words = training(folder, data, tmp_path, "--val", data, "--json")
    told = subprocess.run(
        [str(word) for word in (*launch, *command, *words)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert told.returncode == DONE, told.stderr
    found = json.loads(told.stdout)
    assert found["steps"] == 4
    one = document(easyedit(*training(folder, data, tmp_path / "one", "--val", data, "--json")))
    assert Path(found["archive"]).read_bytes() != Path(one["archive"]).read_bytes()
    learner = MENDLearner(
        load(str(folder), device="cpu"), MENDTrainingHparams(**dict(map(parsed, QUICK)))
    )
    learner.load(Path(found["archive"]))
    alone = learner.validate(examples(list(ZsreDataset(data)), rephrase=True, once=True))
    assert found["metrics"] == pytest.approx(dict(alone), rel=1e-4)


def parsed(setting: str) -> tuple[str, float]:
    name, value = setting.split("=")
    return name, float(value)
