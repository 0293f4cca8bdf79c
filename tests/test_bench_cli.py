"""``easyedit bench`` through the script, on a tiny model."""

from __future__ import annotations

import json
import sys

import pytest

import benching
import outer
import scripting
from easyeditor import load_patch
from easyeditor.bench import cluster
from easyeditor.bench.runner import SerialExecutor
from easyeditor.bench.worker import Worker
from scripting import BAD_INPUT, DONE, document, refused

FT = ("layers=[1]", "num_steps=2", "lr=0.01", "objective_optimization=target_new")
ROME = (*scripting.ROME[:-1], "context_template_length_params='[[2, 2]]'")
ONLY_FT = ("--methods", "ft", *(word for setting in FT for word in ("--set", setting)))
QUICK = ("--answers", 4, "--continuation-tokens", 6, "--heldout", "none")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file of edits."""
    file = tmp_path_factory.mktemp("data") / "facts.json"
    told = [
        {
            "case_id": case.id,
            "prompt": case.edit.prompt.text,
            "target_new": case.edit.target,
            "subject": case.edit.subject,
            "ground_truth": case.edit.ground_truth,
            "rephrase_prompts": [str(p.prompt) for p in case.probes if p.kind == "rephrase"],
            "locality": ["She plays the => piano"],
        }
        for case in benching.CASES
    ]
    file.write_text(json.dumps(told), encoding="utf-8")
    return file


@pytest.fixture
def bench(easyedit, folder, data, tmp_path, monkeypatch):
    """``easyedit bench`` on this model and data; with FT, without pictures (they take a second)."""

    def call(*words, out=tmp_path / "out", methods=ONLY_FT, pictures=False):
        known = ("bench", "--model", folder, "--data", data, "--out", out, *QUICK)
        with monkeypatch.context() as patched:
            if not pictures:
                patched.setitem(sys.modules, "matplotlib", None)
            return easyedit(*known, *methods, *words)

    return call


def entrant(label, method, settings):
    return "--entrant", f"{label}={method} {' '.join(settings)}"


# -- running ----------------------------------------------------------------------------------


def test_for_people(bench, tmp_path):
    told = bench("--limit", 2, pictures=True)
    assert told.code == DONE
    assert "Traceback" not in told.err
    assert all(word in told.out for word in ("\n| FT |", "| unedited |", "protocol single"))
    assert f"Tables and plots: {tmp_path / 'out' / 'report'}" in told.out
    assert len(benching.records(tmp_path / "out")) == 2
    written = {file.name for file in (tmp_path / "out" / "report").iterdir()}
    assert {"table.md", "table.csv", "table.tex", "table.json", "scores.png"} <= written


def test_as_json(bench, tmp_path):
    told = bench("--json")
    assert told.code == DONE
    found = document(told)
    assert found == json.loads((tmp_path / "out" / "report" / "table.json").read_text())
    assert [row["method"] for row in found["rows"]] == ["unedited", "FT"]


def test_the_same_command_again(bench, monkeypatch):
    first = document(bench("--json"))
    monkeypatch.setattr(Worker, "run_task", lambda *_: pytest.fail("computed again"))
    assert document(bench("--json")) == first


def test_going_on_after_control_c(bench, monkeypatch, tmp_path):
    real, left = Worker.run_task, [1, 2]

    def two(self, task):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return real(self, task)

    with monkeypatch.context() as patched:
        patched.setattr(Worker, "run_task", two)
        told = bench("--protocol", "sequential")
        assert told.code not in {DONE, BAD_INPUT}
        assert "Traceback" not in told.err
    assert len(benching.records(tmp_path / "out")) == 1
    assert bench("--protocol", "sequential").code == DONE
    assert len(benching.records(tmp_path / "out")) == 6


def test_entrants(bench, tmp_path):
    methods = (
        *entrant("FT, gentle", "ft", (*FT, "lr=0.001")),
        *entrant("FT-M", "FT", FT),
        *entrant("R", "rome", ROME),
    )
    # A label with spaces is quoted as shells do.
    methods = ("--entrant", f"'FT, gentle=ft' {' '.join((*FT, 'lr=0.001'))}", *methods[2:])
    found = document(bench("--json", "--seed", 5, methods=methods))
    assert [row["method"] for row in found["rows"]] == ["unedited", "FT, gentle", "FT-M", "R"]
    info = json.loads((tmp_path / "out" / "run.json").read_text())
    assert info["methods"]["FT, gentle"]["lr"] == 0.001
    assert info["methods"]["R"]["context_template_length_params"] == [[2, 2]]
    assert (info["seed"], info["methods"]["R"]["seed"], info["measures"]["seed"]) == (5, 5, 5)


def test_methods_and_entrants_together(bench, tmp_path):
    methods = ("--methods", "ft", *entrant("Other", "ft", ("lr=0.02",)), *ONLY_FT[2:])
    assert bench("--limit", 1, methods=methods).code == DONE
    info = json.loads((tmp_path / "out" / "run.json").read_text())
    assert {label: own["lr"] for label, own in info["methods"].items()} == {
        "FT": 0.01,
        "Other": 0.02,
    }


def test_what_is_asked(bench, tmp_path):
    assert bench("--limit", 1, "--answers", 0, "--continuation-tokens", 0).code == DONE
    record = benching.records(tmp_path / "out")[0]
    assert record["texts"] == {}
    assert "perplexity" not in record["post"]
    text = tmp_path / "prose.txt"
    text.write_text("You can see the river from here.")
    assert bench("--limit", 1, "--heldout", text, out=tmp_path / "b").code == DONE
    assert benching.records(tmp_path / "b")[0]["post"]["perplexity"] > 1


def test_in_the_wild_with_distractors(bench, tmp_path):
    words = ("--protocol-preset", "Wild", "--distractors", "--limit", 1, "--answers", 0)
    result = bench(*words, "--continuation-tokens", 0)
    assert result.code == DONE
    assert "preset wild" in result.out
    assert "question ended" in result.out
    (record,) = benching.records(tmp_path / "out")
    assert {"question_acc", "question_ended"} <= set(record["post"]["generation"])
    assert {"distracting_success", "distracting_kl"} <= set(record["post"]["locality"])
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (run["preset"], run["measures"]["asked_tokens"]) == ("wild", 64)


def test_batches(bench, tmp_path):
    assert bench("--protocol", "batch", "--batch-size", 2).code == DONE
    assert [r["unit"] for r in benching.records(tmp_path / "out")] == [0, 0, 1]


def test_sequences_are_kept(bench, tmp_path):
    assert bench("--protocol", "sequential", "--batch-size", 3).code == DONE
    patch = load_patch(tmp_path / "out" / "FT" / "total-000001.safetensors")
    assert len(patch.info.edits) == 3


# -- Ray --------------------------------------------------------------------------------------


class Executor(SerialExecutor):
    """Stands for the cluster."""

    asked = None

    def __init__(self, open_model, plan, workers, address):
        type(self).asked = (workers, address)
        super().__init__(Worker(open_model(), plan))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        type(self).left = True


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("--ray",), (None, None)),
        (("--ray", "--limit", 1), (None, None)),
        (("--ray", "10.0.0.1:6379", "--workers", 3), (3, "10.0.0.1:6379")),
        (("--workers", 3, "--ray"), (3, None)),
        (("--ray=auto",), (None, "auto")),
    ],
    ids=str,
)
def test_ray_with_and_without_an_address(bench, words, asked, monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "RayExecutor", Executor)
    monkeypatch.setattr(Executor, "left", False, raising=False)
    assert bench("--limit", 1, *words).code == DONE
    assert Executor.asked == asked
    assert Executor.left
    assert len(benching.records(tmp_path / "out")) == 1


def test_workers_without_ray(bench):
    assert "--workers" in refused(bench("--workers", 2))


# -- reporting --------------------------------------------------------------------------------


def test_report(bench, easyedit, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("a", "b"):
        bench("--limit", 1 + (name == "b"), out=tmp_path / name)
    told = easyedit("bench", "report", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "both")
    assert told.code == DONE
    assert told.out.count("FT |") >= 2
    assert f"Tables and plots: {tmp_path / 'both'}" in told.out
    found = document(easyedit("bench", "report", tmp_path / "a", "--json"))
    assert [row["method"] for row in found["rows"]] == ["unedited", "FT"]


def test_report_without_matplotlib(bench, easyedit, monkeypatch, tmp_path):
    bench("--limit", 1)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    told = easyedit("bench", "report", tmp_path / "out")
    assert told.code == DONE
    assert "easyedit-lm[bench]" in told.out


# -- mistakes ---------------------------------------------------------------------------------

NO_METHOD = {"methods": ()}
WRONG = {
    "unknown method": ((), {"methods": ("--methods", "ft,roem")}, "Did you mean 'ROME'"),
    "no method": ((), NO_METHOD, "--methods"),
    "only commas": ((), {"methods": ("--methods", " , ")}, "--methods"),
    "the same twice": ((), {"methods": ("--methods", "ft,FT")}, "'FT' takes part twice"),
    "unknown setting": (("--set", "num_stps=3"), {}, "Did you mean 'num_steps'"),
    "unknown data": (("--data", "wrldfacts"), {}, "Did you mean 'worldfacts'"),
    "no such file": (("--data", "nothing.json"), {}, "nothing.json"),
    "unknown protocol": (("--protocol", "parallel"), {}, "'single', 'batch' or 'sequential'"),
    "unknown preset": (("--protocol-preset", "wyld"), {}, "Did you mean 'wild'"),
    "a batch of one": (("--batch-size", "2"), {}, "1 for 'single'"),
    "ROME in batches": (
        ("--protocol", "batch", "--batch-size", "2"),
        {"methods": ("--methods", "rome")},
        "ROME makes one edit at a time",
    ),
    "entrant without method": ((), {"methods": ("--entrant", "FT-M")}, "'LABEL=METHOD NAME=VALUE"),
    "entrant without label": ((), {"methods": ("--entrant", "=ft lr=1")}, "'LABEL=METHOD NAME="),
    "empty entrant": ((), {"methods": ("--entrant", "")}, "'LABEL=METHOD NAME=VALUE"),
    "open quote": ((), {"methods": ("--entrant", "a=ft layers='[1")}, "quotation"),
    "entrant's method": ((), {"methods": ("--entrant", "a=roem")}, "Did you mean 'ROME'"),
    "entrant's setting": ((), {"methods": ("--entrant", "a=ft lr")}, "NAME=VALUE"),
    "label": ((), {"methods": ("--entrant", "a/b=ft")}, "'a/b' cannot"),
    "two models": (
        (),
        {"methods": ("--methods", "ft", "--entrant", "b=ft dtype=bfloat16")},
        "dtype must be the same for all",
    ),
    "no such model": (("--model", "./nowhere"), {}, "No folder './nowhere'"),
    "no such text": (("--heldout", "nothing.txt"), {}, "nothing.txt cannot be read"),
    "limit": (("--limit", "0"), {}, "--limit"),
    "downstream": (("--downstream", "piqa"), {}, "--protocol sequential"),
    "option": (("--protocl", "single"), {}, "--protocol"),
}


@pytest.mark.parametrize(("words", "more", "why"), WRONG.values(), ids=WRONG)
def test_mistakes(bench, words, more, why, tmp_path):
    assert why in refused(bench(*words, **more))
    assert not (tmp_path / "out").exists()
    told = bench(*words, "--json", **more)
    assert told.code == BAD_INPUT
    error = document(told)["error"]
    assert why in " ".join(error["message"].split())
    assert error["type"]


def test_no_folder_was_named(easyedit, folder, data):
    told = refused(easyedit("bench", "--model", folder, "--data", data, "--methods", "ft"))
    assert "--out" in told
    assert "missing" in told


def test_options_of_a_run_before_another_command(easyedit, tmp_path):
    told = refused(easyedit("bench", "--out", tmp_path / "x", "report", tmp_path))
    assert "those of report come after its name" in " ".join(told.split())


def test_other_settings_in_the_same_folder(bench):
    bench("--limit", 1)
    assert "seed: 0 → 1" in refused(bench("--limit", 1, "--seed", 1))
    assert "n: 1 → 2" in refused(bench("--limit", 2))


def test_a_missing_subject(bench, data, tmp_path):
    file = tmp_path / "nameless.json"
    file.write_text(json.dumps([{"prompt": "Rome is", "target_new": "old"}]))
    told = bench("--data", file, methods=entrant("R", "rome", ROME))
    assert "names no subject" in refused(told)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["report", "judge"])
def test_reporting_what_is_no_run(easyedit, tmp_path, command):
    more = ("--base-url", "http://127.0.0.1:1/v1", "--judge-model", "m") * (command == "judge")
    assert "run.json" in refused(easyedit("bench", command, tmp_path, *more))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [(), ("report",), ("judge",)], ids=str)
def test_help_shows_examples(easyedit, path):
    told = easyedit("bench", *path, "--help")
    assert told.code == DONE
    assert "Example" in told.out
    assert " ".join(("easyedit bench", *path)) in told.out.split("Example", 1)[1]
    if not path:
        for word in ("--entrant", "--ray", "sequential", "goes on where it was"):
            assert word in told.out.split("Example", 1)[1]


@pytest.mark.slow
def test_downstream_tasks_from_the_command_to_the_table(bench, tmp_path, monkeypatch):
    """Through lm-evaluation-harness itself, with a task defined here, before and after."""
    tasks = outer.ROOT / "tests" / "data" / "downstream"
    monkeypatch.chdir(tasks)  # where the harness looks a task's own files up
    words = ("--protocol", "sequential", "--downstream", "tiny_cities")
    result = bench(*words, "--downstream-path", tasks, "--downstream-limit", 3, "--json")
    assert result.code == DONE
    found = json.loads((tmp_path / "out" / "downstream.json").read_text(encoding="utf-8"))
    for when in ("before", "after"):
        assert found["FT"][when]["tiny_cities"]["n"] == 3
    table = (tmp_path / "out" / "report" / "table.md").read_text(encoding="utf-8")
    assert "tiny_cities acc change" in table.replace("\\", "")
    numbers = document(result)["rows"][-1]["numbers"]
    accuracy = numbers["downstream/tiny_cities/acc"]["value"]
    before = found["FT"]["before"]["tiny_cities"]["acc"]
    difference = numbers["downstream/tiny_cities/acc_change"]
    assert difference["value"] == pytest.approx(accuracy - before)
    assert difference["low"] <= difference["value"] <= difference["high"]
