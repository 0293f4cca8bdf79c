"""Benchmark runs on tiny models: what is recorded, and that a crash loses and repeats nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import count, product
from pathlib import Path

import pytest
import torch

import benching
import outer
import support
import tiny
from benching import CASES, MEASURES, numbers, plan, records, tables
from easyeditor import BaseEditor, Case, IKEHyperParams, load_patch
from easyeditor.bench.run_dir import EventLog
from easyeditor.bench.runner import run
from easyeditor.bench.worker import Worker
from easyeditor.errors import DownstreamError
from easyeditor.evaluate.aggregate import flatten
from easyeditor.evaluate.query import Measures
from tiers import tiered

THREE = ("FT", "ROME", "MEMIT")
RUNS = {
    "single": plan("single", THREE),
    "batch": plan("batch", ("FT", "MEMIT"), batch_size=2),
    "sequential": plan("sequential", THREE),
    "sequential, two at a time": plan("sequential", THREE, batch_size=2),
}

two_together = benching.two_together


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Every run of ``RUNS``, uninterrupted: its folder, and what it changed of the model."""
    done = {}
    for name, wanted in RUNS.items():
        lm = benching.lm()
        before = support.Snapshot(lm.model)
        out = run(lm, wanted, tmp_path_factory.mktemp("run") / "out")
        done[name] = out, before.differences(lm.model)
    return done


@pytest.fixture
def done(monkeypatch):
    """The tasks that were carried out, as they are."""
    tasks = []
    real = Worker.run_task

    def run_task(self, task):
        tasks.append(task)
        return real(self, task)

    monkeypatch.setattr(Worker, "run_task", run_task)
    return tasks


def scores(half):
    """Without the free answer that only the editor asks for; a run asks Measures.answer_tokens."""
    return flatten({name: value for name, value in half.items() if name != "free_answer"})


def alike(found, expected):
    """Equal scores, whatever else was in the batch."""
    found, expected = scores(found), scores(expected)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-7, nan_ok=True)


# -- what is recorded -------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_one_record_per_case_and_stage(finished, name):
    out, _ = finished[name]
    assert json.loads((out / "run.json").read_text())["case_ids"] == [case.id for case in CASES]
    stages = ("post", "final") if RUNS[name].sequential else ("post",)
    for label in RUNS[name].methods:
        found = [(record["stage"], record["case_id"]) for record in records(out, label)]
        assert found == [(stage, case.id) for stage in stages for case in CASES]


@pytest.mark.parametrize("name", RUNS)
def test_the_model_is_as_it_was(finished, name):
    assert finished[name][1] == []


@pytest.mark.parametrize("name", RUNS)
def test_a_record_can_be_read_on_its_own(finished, name):
    out, _ = finished[name]
    wanted = RUNS[name]
    info = json.loads((out / "run.json").read_text())
    for label, settings in wanted.methods.items():
        for i, record in enumerate(records(out, label)):
            case, at_end = CASES[i % 3], record["stage"] == "final"
            assert set(record) == {
                *("stage", "unit", "of", "position", "case_id", "requested_rewrite", "method"),
                *("hparams", "fingerprint", "versions", "seed", "seconds", "peak_memory_mb"),
                *("extra_memory_mb", "change", "pre", "post", "texts"),
            }
            assert (record["position"], record["case_id"]) == (i % 3, case.id)
            asked = record["requested_rewrite"]
            assert (asked["prompt"], asked["target_new"]) == (case.edit.prompt, case.edit.target)
            assert record["method"] == label
            assert record["hparams"] == settings.resolved(3).model_dump(mode="json")
            assert (record["fingerprint"], record["versions"], record["seed"]) == (
                info["fingerprint"],
                info["versions"],
                0,
            )
            sizes = {"norm", "relative", "spectral"}
            assert set(record["change"]) == {
                f"model.layers.{layer}.mlp.down_proj.weight" for layer in settings.layers
            }
            assert all(set(own) == sizes and own["norm"] > 0 for own in record["change"].values())
            assert record["seconds"]["evaluate"] > 0
            if at_end:
                assert record["peak_memory_mb"] is None
            else:
                assert record["seconds"]["edit"] > 0
                assert set(record["seconds"]) > {"edit", "evaluate"}  # the method's own phases
                assert record["peak_memory_mb"] > record["extra_memory_mb"] >= 0
            scores = {"rewrite_acc", "rewrite_prob", "rephrase_acc", "locality", "portability"}
            free = {"generation", "fluency", "consistency", "perplexity"}
            assert set(record["pre"]) >= scores | free
            everything = at_end or not wanted.sequential
            assert set(record["post"]) >= scores
            assert (set(record["post"]) & free) == (free if everything else set())
            assert set(record["texts"]) == ({"answers", "continuations"} if everything else set())


def test_texts_are_what_the_edited_model_writes(finished):
    """By transformers alone, on a model that holds the edit."""
    lm = benching.lm()
    case, record = CASES[1], records(finished["single"][0])[1]
    edited = outer.editor().edit_cases([case], keep_original_weight=True).edited_model
    for prompt, told in record["texts"]["answers"].items():
        ids = lm.tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out = edited.generate(ids, do_sample=False, max_new_tokens=4)
        assert told == lm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert set(record["texts"]["answers"]) == {
        case.edit.prompt,
        *(p.prompt for p in case.probes if p.group != "locality"),
    }
    assert list(record["texts"]["continuations"]) == list(case.generation[:1])


@pytest.mark.parametrize("method", THREE)
def test_single_measures_as_the_editor_does(finished, method):
    for case, record in zip(CASES, records(finished["single"][0], method), strict=True):
        editor = outer.editor(method)
        result = editor.edit_cases([case], keep_original_weight=True, measures=MEASURES)
        (metric,) = result.metrics
        without(metric, "consistency")  # its word frequencies come from all cases of a run
        without(record, "consistency")
        alike(record["pre"], metric["pre"])
        alike(record["post"], metric["post"])


@pytest.mark.parametrize(
    ("family", "together"),
    tiered(
        product(["gpt2", "opt", "falcon", "t5", "bfloat16"], [1, 8]),
        {("gpt2", 8), ("opt", 1), ("t5", 8)},
    ),
)
def test_single_measures_alone_whatever_the_model(family, together, monkeypatch, tmp_path):
    """Cases share forward passes where that is exact, else they are asked one by one."""
    monkeypatch.setattr("easyeditor.bench.config.CASES_PER_FORWARD", together)
    half = {"dtype": torch.bfloat16} if family == "bfloat16" else {}
    family = family if family in tiny.CONFIGS else "llama"
    names = ("FT",) if family == "t5" else ("FT", "MEMIT")
    lm = support.lm(family, **half)
    before = support.Snapshot(lm.model)
    run(lm, plan("single", names), tmp_path)
    assert before.differences(lm.model) == []
    for method in names:
        editor = BaseEditor.from_pretrained(lm.model, lm.tokenizer, outer.settings(method))
        for case, record in zip(CASES, records(tmp_path, method), strict=True):
            result = editor.edit_cases([case], keep_original_weight=True, measures=MEASURES)
            (metric,) = result.metrics
            without(metric, "consistency")
            without(record, "consistency")
            found, expected = scores(record["post"]), scores(metric["post"])
            noise = 0.05 if half else 1e-3
            assert found == pytest.approx(expected, rel=noise, abs=1e-4, nan_ok=True)


def without(metric, name):
    for half in ("pre", "post"):
        del metric[half][name]


@pytest.mark.parametrize("method", ["FT", "MEMIT"])
def test_batch_measures_as_the_editor_does(finished, method, monkeypatch):
    found = records(finished["batch"][0], method)
    assert [(r["unit"], r["of"]) for r in found] == [(0, 2), (0, 2), (1, 1)]
    for unit in ([0, 1], [2]):
        cases = [CASES[i] for i in unit]
        editor = outer.editor(method, batch_size=2)
        # FT's own batch_size is how it learns; in a run it stays what the settings say.
        editor.session.method = outer.editor(method).method
        monkeypatch.setattr(type(editor.method), "batch_size", 2)
        metrics = editor.edit_cases(cases, batch=True, evaluate_when="end").metrics
        for i, metric in zip(unit, metrics, strict=True):
            for name in ("rewrite_prob", "rephrase_acc", "locality", "portability"):
                alike({name: found[i]["post"][name]}, {name: metric["post"][name]})


@pytest.mark.parametrize("method", THREE)
def test_sequential_measures_as_the_editor_does(finished, method):
    found = records(finished["sequential"][0], method)
    metrics = outer.editor(method).edit_cases(CASES, evaluate_when="both").metrics
    for i, metric in enumerate(metrics):
        alike(found[i]["post"], metric["post"])
        for name in ("fluency", "consistency", "perplexity", "generation"):
            del found[i + 3]["post"][name]
        alike(found[i + 3]["post"], metric["final"])


def test_the_change_of_a_sequence_is_kept(finished):
    out, _ = finished["sequential"]
    assert sorted(p.name for p in (out / "ROME").iterdir()) == [
        "records.jsonl",
        "total-000003.safetensors",
        "total-000003.state.safetensors",
    ]
    model = benching.lm().model
    load_patch(out / "ROME" / "total-000003.safetensors").apply(model)
    expected = outer.editor("ROME").edit_cases(CASES).edited_model
    assert outer.logits(model) == pytest.approx(outer.logits(expected).numpy(), abs=1e-4)


def test_a_case_with_several_edits(tmp_path):
    case = Case("two", CASES[0].edit, also=(CASES[1].edit,))
    run(benching.lm(), plan("single", THREE, cases=[case]), tmp_path)
    for method in THREE:
        (record,) = records(tmp_path, method)
        (metric,) = outer.editor(method).edit_cases([case]).metrics
        assert record["requested_rewrite"]["also"][0]["target_new"] == CASES[1].edit.target
        assert record["post"]["rewrite_acc"] == metric["post"]["rewrite_acc"]


def test_one_method_under_two_labels(tmp_path):
    methods = {"gentle": outer.settings(lr=1e-3), "strong": outer.settings(lr=3e-2)}
    run(benching.lm(), plan(methods=methods), tmp_path)
    gentle, strong = (records(tmp_path, label)[0]["change"] for label in methods)
    (path,) = gentle
    assert gentle[path]["norm"] < strong[path]["norm"]


def test_a_plain_run_asks_for_no_text(tmp_path):
    run(benching.lm(), plan(measures=Measures()), tmp_path)
    record = records(tmp_path)[0]
    assert record["texts"] == {}
    assert not {"generation", "fluency", "perplexity"} & set(record["post"])


@pytest.fixture
def tasks(monkeypatch):
    """Stands for the harness: the score of a task is the edited weight itself."""
    asked = []

    def downstream(lm, names, *, limit, include_path, seed, items):
        assert items  # for the interval of the difference
        asked.append((names, limit, include_path, seed))
        return {"task": {"sum": lm.model.model.layers[1].mlp.down_proj.weight.sum().item()}}

    monkeypatch.setattr("easyeditor.evaluate.downstream.downstream", downstream)
    monkeypatch.setattr("easyeditor.evaluate.downstream.check_tasks", lambda *_, **__: None)
    return asked


@pytest.mark.parametrize("protocol", ["sequential", "batch"])
def test_downstream_tasks_before_and_after(protocol, tasks, monkeypatch, tmp_path):
    lm = benching.lm()
    more = {"downstream": ("task",), "downstream_limit": 7, "downstream_path": "here", "seed": 3}
    wanted = plan(protocol, ("FT", "MEMIT"), batch_size=3, **more)
    with monkeypatch.context() as patched:
        dying_at(patched, 7 if protocol == "sequential" else 5, "nothing")  # at the first "after"
        with pytest.raises(Death):
            run(lm, wanted, tmp_path)
    assert len(tasks) == 2
    run(lm, wanted, tmp_path)
    assert tasks == [(("task",), 7, "here", 3)] * 4  # before, FT twice, MEMIT
    told = json.loads((tmp_path / "downstream.json").read_text())
    for label in ("FT", "MEMIT"):
        edited = benching.lm().model
        load_patch(tmp_path / label / "total-000001.safetensors").apply(edited)
        for model, when in ((lm.model, "before"), (edited, "after")):
            weight = model.model.layers[1].mlp.down_proj.weight
            assert told[label][when]["task"]["sum"] == weight.sum().item()
    assert "task" in tables(tmp_path)["table.md"].decode()


def test_a_method_that_has_no_downstream_scores_ends_no_run(tasks, monkeypatch, tmp_path, caplog):
    from easyeditor.lm.routing import routers_of

    def downstream(lm, *_, **__):
        if routers_of(lm.model):
            raise DownstreamError("bare forward passes")
        return {"task": {"sum": 1.0}}

    monkeypatch.setattr("easyeditor.evaluate.downstream.downstream", downstream)
    methods = {"IKE": IKEHyperParams(use_icl_examples=False), "FT": outer.settings("FT")}
    wanted = plan("sequential", methods=methods, downstream=("task",), measures=Measures())
    run(benching.lm(), wanted, tmp_path)
    scores = json.loads((tmp_path / "downstream.json").read_text())
    assert scores["IKE"]["after"] == {}
    assert scores["FT"]["after"] == {"task": {"sum": 1.0}}
    assert "IKE has no downstream scores: bare forward passes" in caplog.text
    assert "IKE" in tables(tmp_path)["table.md"].decode()


# -- dying ------------------------------------------------------------------------------------


class Death(BaseException):
    """The process dies here."""


def dying_at(monkeypatch, number, how):
    """Let the ``number``-th append leave only a part of what it was given, and the process die."""
    calls = count(1)
    real = EventLog.append

    def append(self, given):
        if next(calls) != number:
            return real(self, given)
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in given]
        left = {
            "nothing": "",
            "half a line": lines[0][: len(lines[0]) // 2],
            "all but the last line": "".join(lines[:-1]),
            "all but the last character": "".join(lines)[:-1],
            "all": "".join(lines),
        }[how]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(left.encode())
        raise Death

    monkeypatch.setattr(EventLog, "append", append)


SHORT = {
    "single": plan("single", ("ROME",)),
    "batch": plan("batch", ("MEMIT",), batch_size=2),
    "sequential": plan("sequential", ("FT",)),
    "sequential, two at a time": plan("sequential", ("MEMIT",), batch_size=2),
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What every run of ``SHORT`` says when nothing goes wrong."""
    found = {}
    for name, wanted in SHORT.items():
        out = run(benching.lm(), wanted, tmp_path_factory.mktemp("whole") / "out")
        found[name] = numbers(out), tables(out)
    return found


HOW = ["nothing", "half a line", "all but the last line", "all but the last character", "all"]


@pytest.mark.parametrize(
    ("name", "how"),
    tiered(product(SHORT, HOW), {*product(SHORT, HOW[1:2]), *product(["batch"], HOW)}),
)
def test_dying_at_any_append_loses_and_repeats_nothing(
    name, how, expected, done, monkeypatch, tmp_path
):
    wanted, lm = SHORT[name], benching.lm()
    units = sum(len(wanted.units(label)) for label in wanted.methods)
    appends = 1 + units + len(wanted.methods) * wanted.sequential
    for number in range(1, appends + 1):
        out = tmp_path / str(number)
        done.clear()
        with monkeypatch.context() as patched:
            dying_at(patched, number, how)
            with pytest.raises(Death):
                run(lm, wanted, out)
        assert len(done) == number
        run(lm, wanted, out)
        again = how != "all"  # only what was not written to its end is carried out again
        assert len(done) == appends + again
        assert (numbers(out), tables(out)) == expected[name]
        left = {file.name for file in out.rglob("*.safetensors")}
        total = f"total-{len(wanted.units('')):06d}"
        assert left <= {f"{total}.safetensors", f"{total}.state.safetensors"}
    run(lm, wanted, out)
    assert len(done) == appends + again  # a finished run has nothing to do


def test_dying_while_a_sequence_saves_its_change(expected, monkeypatch, tmp_path):
    from easyeditor.bench import jobs as lines

    real, calls = lines.save_patch, count(1)

    def save(patch, path):
        if next(calls) == 2:
            Path(path).with_name(f"{Path(path).name}.1.part").write_bytes(b"half")
            raise Death
        return real(patch, path)

    with monkeypatch.context() as patched:
        patched.setattr(lines, "save_patch", save)
        with pytest.raises(Death):
            run(benching.lm(), SHORT["sequential"], tmp_path)
    run(benching.lm(), SHORT["sequential"], tmp_path)
    assert (numbers(tmp_path), tables(tmp_path)) == expected["sequential"]
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow  # the fast tier has a killed process in test_toy_methods.py
def test_killed_processes_leave_a_run_that_goes_on(tmp_path, stats_dir):
    """Real processes, really killed: once in the first sequence, once in the second."""
    wanted = benching.sequence(stats_dir)
    whole = run(benching.lm(), wanted, tmp_path / "whole")
    out = tmp_path / "killed"
    # Killed after what the unedited model says and two steps; after a step, the end and a step.
    for method in ("FT", "MEMIT"):
        with child(out, stats_dir) as process:
            assert [process.stdout.readline() for _ in range(3)][-1]
            process.kill()
            assert process.wait() == -signal.SIGKILL
        assert {record["stage"] for record in records(out, method)} == {"post"}
    with child(out, stats_dir) as process:
        assert process.wait() == 0, process.stderr.read()
    assert (numbers(out), tables(out)) == (numbers(whole), tables(whole))


def child(out, stats_dir):
    return subprocess.Popen(
        [sys.executable, Path(__file__).parent / "bench_child.py", out, stats_dir],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
