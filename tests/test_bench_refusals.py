"""Benchmark runs that cannot be started: plans and folders that are refused, and what is said."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import benching
import outer
import tiny
from benching import CASES, MEASURES, contents, plan, records, tables
from easyeditor import LM, Case, Edit, FTHyperParams
from easyeditor.bench.run_dir import RunDirectory
from easyeditor.bench.runner import run
from easyeditor.errors import (
    BenchError,
    ContradictingEditsError,
    DownstreamError,
    HyperParamsError,
    MissingExtraError,
    RunBusyError,
    RunMismatchError,
    SubjectRequiredError,
)
from easyeditor.evaluate.query import Measures

begun, nothing_is_done = benching.begun, benching.nothing_is_done
two_together = benching.two_together

# -- plans that cannot be carried out ---------------------------------------------------------

TWICE = [CASES[0], Case(CASES[0].id, CASES[1].edit)]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"protocol": "parallel"}, "'single', 'batch' or 'sequential'"),
        ({"batch_size": 2}, "batch_size=2: .* 1 for 'single'"),
        ({"protocol": "batch", "batch_size": 0}, "batch_size=0"),
        ({"methods": {}}, "at least one method and one case"),
        ({"cases": []}, "at least one method and one case"),
        ({"cases": TWICE}, "same id: case 0"),
        ({"downstream": ("piqa",)}, "--protocol sequential"),
        ({"protocol": "batch", "batch_size": 2, "downstream": ("piqa",)}, "batch-size of all"),
        (
            {"protocol": "batch", "batch_size": 2, "names": ("FT", "ROME")},
            "ROME makes one edit at a time; use --protocol single or sequential",
        ),
        *(
            ({"methods": {label: outer.settings()}}, "names a folder and a table row")
            for label in ("", ".", "..", "a/b", "a\\b", "a\0b", "ü" * 120)
        ),
    ],
    ids=range(16),
)
def test_a_plan_that_cannot_be_carried_out(changes, why):
    with pytest.raises(BenchError, match=why):
        plan(**changes)


@pytest.mark.parametrize("label", ["FT-M", "ft-m", "FT-L"])
def test_a_label_that_names_a_variant_is_that_variant(label):
    wanted = FTHyperParams.variants[label.upper()]["objective_optimization"]
    other = {"target_new": "prompt_last", "prompt_last": "target_new"}[wanted]
    plan(methods={label: FTHyperParams(objective_optimization=wanted), "mine": FTHyperParams()})
    with pytest.raises(
        BenchError, match=f"'{label}' is the name of objective_optimization={wanted}"
    ):
        plan(methods={label: FTHyperParams(objective_optimization=other)})


class CountingId(str):
    """An id that counts how often it is compared."""

    compared = 0

    def __eq__(self, other):
        CountingId.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_a_repeated_id_among_many_is_found_in_linear_time():
    edit, n = CASES[0].edit, 3000
    cases = [Case(CountingId(i % (n - 1)), edit) for i in range(n)]
    with pytest.raises(BenchError, match="same id: 0"):
        plan(cases=cases)
    assert CountingId.compared < 5 * n


def test_labels_may_be_words(tmp_path):
    wanted = plan(methods={"FT, lr 0.01 – μ": outer.settings()}, measures=Measures())
    run(benching.lm(), wanted, tmp_path)
    assert "FT, lr 0.01 – μ" in tables(tmp_path)["table.md"].decode()


NAMELESS = Case("nameless", Edit("Rome is the capital of", "France"))
CLASH = Case("clash", CASES[0].edit, also=(Edit(CASES[0].edit.prompt, "Danish"),))


@pytest.mark.parametrize("crew", [None, object()], ids=["one process", "a crew"])
@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"names": ("FT", "ROME"), "cases": [*CASES, NAMELESS]}, SubjectRequiredError, "Rome is"),
        ({"cases": [CLASH]}, ContradictingEditsError, "'French' and 'Danish'"),
        (
            {"protocol": "batch", "batch_size": 2, "cases": [CASES[0], NAMELESS, CLASH], "n": 2},
            ContradictingEditsError,
            "contradict",
        ),
        ({"settings": {"layers": [3]}}, HyperParamsError, "3 layers"),
    ],
    ids=["no subject", "a clash", "a clash in a batch", "a layer too many"],
)
def test_what_is_known_to_be_wrong_is_said_first(
    changes, error, why, crew, tmp_path, nothing_is_done
):
    changes = {name: value for name, value in changes.items() if name != "n"}
    with pytest.raises(error, match=why):
        run(benching.lm(), plan(**changes), tmp_path / "out", crew)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # the harness is imported, and its 14,000 tasks are read
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"downstream": ("helaswag",)}, "Did you mean 'hellaswag'"),
        ({"downstream": ("hellaswag",), "downstream_limit": 0}, "limit=0"),
        ({"downstream": ("hellaswag",), "downstream_path": "nowhere"}, "no such folder"),
    ],
)
def test_a_downstream_task_is_looked_up_first(changes, why, tmp_path, nothing_is_done):
    with pytest.raises(DownstreamError, match=why):
        run(benching.lm(), plan("sequential", **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_downstream_task_needs_its_package_first(tmp_path, nothing_is_done, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(MissingExtraError, match="lm-eval"):
        run(benching.lm(), plan("sequential", downstream=("hellaswag",)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_contradictions_may_follow_each_other(tmp_path):
    cases = [CASES[0], Case("changed mind", Edit(CASES[0].edit.prompt, "Danish"))]
    run(benching.lm(), plan("sequential", cases=cases, measures=Measures()), tmp_path)
    assert len(records(tmp_path)) == 4


@pytest.mark.parametrize("crew", [None, object()], ids=["one process", "a crew"])
def test_consistency_without_its_package(crew, tmp_path, monkeypatch, nothing_is_done):
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(MissingExtraError, match=r"easyedit-lm\[bench\]"):
        run(benching.lm(), plan(), tmp_path / "out", crew)
    assert not (tmp_path / "out").exists()


# -- folders that cannot be used --------------------------------------------------------------


CHANGED = [Case(CASES[0].id, Edit("Berlin is", "Paris")), *CASES[1:]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, ["seed: 0 → 1"]),
        ({"cases": CHANGED}, ["data_sha256: "]),
        ({"cases": CASES[:2]}, ["n: 3 → 2", "case_ids: "]),
        ({"settings": {"lr": 0.5, "num_steps": 4}}, ["lr: 0.01 → 0.5", "num_steps: 3 → 4"]),
        ({"names": ("FT", "ROME")}, ["methods.ROME: null → "]),
        ({"protocol": "sequential"}, ['protocol: "single" → "sequential"']),
        ({"measures": Measures(4, 6, 2, MEASURES.heldout)}, ["measures.continuations: 1 → 2"]),
        ({"measures": Measures(4, 6, 1, "Other text.")}, ["measures.heldout_sha256"]),
        ({"data": "other facts"}, ['data: "facts" → "other facts"']),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_settings_are_named(begun, changes, said, nothing_is_done):
    before = contents(begun)
    with pytest.raises(RunMismatchError) as told:
        run(benching.lm(), plan(**changes), begun)
    assert all(word in str(told.value) for word in (*said, "another --out", str(begun)))
    assert contents(begun) == before
    with RunDirectory(begun, plan().describe(benching.lm())):
        pass  # and the folder was let go


@pytest.mark.parametrize(
    ("model", "said"),
    [({"seed": 1}, "fingerprint"), ({"dtype": torch.bfloat16}, 'dtype: "float32" → "bfloat16"')],
    ids=["weights", "precision"],
)
def test_another_model_is_named(begun, model, said):
    with pytest.raises(RunMismatchError, match=said):
        run(LM(tiny.model("llama", **model), tiny.tokenizer()), plan(), begun)


def test_two_processes_in_one_folder(begun, nothing_is_done):
    held = RunDirectory(begun, plan().describe(benching.lm()))
    with pytest.raises(RunBusyError, match="Another process works in"):
        run(benching.lm(), plan(), begun)
    held.close()
    run(benching.lm(), plan(), begun)


def test_the_lock_goes_with_its_process(begun):
    """Really another process, really killed: its lock does not outlive it."""
    script = (
        "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); "
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, begun / "run.lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(RunBusyError):
            run(benching.lm(), plan(), begun)
        process.kill()
    run(benching.lm(), plan(), begun)


def test_a_folder_with_other_files(tmp_path, nothing_is_done):
    (tmp_path / "thesis.txt").write_text("kept")
    with pytest.raises(BenchError, match=r"other files \(thesis.txt\) and no run"):
        run(benching.lm(), plan(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_out_is_a_file(tmp_path, nothing_is_done):
    (tmp_path / "thesis.txt").write_text("kept")
    for out in (tmp_path / "thesis.txt", tmp_path / "thesis.txt" / "run"):
        with pytest.raises(BenchError, match=r"thesis.txt.* cannot be used for a run"):
            run(benching.lm(), plan(), out)
    assert (tmp_path / "thesis.txt").read_text() == "kept"


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_a_damaged_description(begun, text, nothing_is_done):
    (begun / "run.json").write_text(text)
    with pytest.raises(BenchError, match=r"run.json cannot be read"):
        run(benching.lm(), plan(), begun)
