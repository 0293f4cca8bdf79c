"""Benchmark runs that cannot be started or go on: what is said, and that nothing is lost."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import subprocess
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace

import pytest
import torch

import benching
import outer
import tiny
from benching import CASES, MEASURES, numbers, plan, records, tables
from easyeditor import LM, Case, Edit
from easyeditor.bench.folder import Journal, RunFolder
from easyeditor.bench.runner import run
from easyeditor.bench.work import Worker
from easyeditor.errors import (
    BenchError,
    ContradictingEditsError,
    DivergedError,
    EditError,
    HyperParamsError,
    MissingExtraError,
    RunBusyError,
    RunMismatchError,
    SubjectRequiredError,
)
from easyeditor.evaluate.observe import Measures
from easyeditor.evaluate.report import flatten
from easyeditor.methods.ft import FT
from easyeditor.patches.weight import Dense


@pytest.fixture(autouse=True, scope="module")
def two_together():
    """Two cases of the single protocol make a unit, so that three cases make two."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("easyeditor.bench.settings.TOGETHER", 2)
        yield


def contents(folder):
    """Every file with its bytes, but the lock."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "run.lock"
    }


@pytest.fixture
def nothing_is_done(monkeypatch):
    """No model is asked for anything while this holds."""
    monkeypatch.setattr(Worker, "do", lambda *_: pytest.fail("worked"))


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
            for label in ("", ".", "..", "a/b", "a\\b", "a\0b")
        ),
    ],
    ids=range(15),
)
def test_a_plan_that_cannot_be_carried_out(changes, why):
    with pytest.raises(BenchError, match=why):
        plan(**changes)


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


def test_contradictions_may_follow_each_other(tmp_path):
    cases = [CASES[0], Case("changed mind", Edit(CASES[0].edit.prompt, "Danish"))]
    run(benching.lm(), plan("sequential", cases=cases, measures=Measures()), tmp_path)
    assert len(records(tmp_path)) == 4


@pytest.mark.parametrize("crew", [None, object()], ids=["one process", "a crew"])
def test_consistency_without_its_package(crew, tmp_path, monkeypatch, nothing_is_done):
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(MissingExtraError, match=r"easyeditor\[bench\]"):
        run(benching.lm(), plan(), tmp_path / "out", crew)
    assert not (tmp_path / "out").exists()


# -- folders that cannot be used --------------------------------------------------------------


@pytest.fixture
def begun(tmp_path):
    """A finished run of ``plan()``."""
    return run(benching.lm(), plan(), tmp_path / "run")


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
    with RunFolder(begun, plan().describe(benching.lm())):
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
    held = RunFolder(begun, plan().describe(benching.lm()))
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


# -- a full disk ------------------------------------------------------------------------------


SPACE = "No space left on device.* What was there is kept; make room"


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("protocol", ["single", "sequential"])
def test_a_disk_that_fills_up_at_any_write(protocol, monkeypatch, tmp_path):
    """Each write fails once; every start gets one further."""
    whole = run(benching.lm(), plan(protocol), tmp_path / "whole")
    lm, out, real, writes = benching.lm(), tmp_path / "out", os.fsync, []

    def fsync(file):
        writes.append(file)
        if len(writes) > 1:
            full()
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    appends = {"single": 3, "sequential": 5}[protocol]
    for starts in range(1, appends + 2):
        writes.clear()
        with nullcontext() if starts > appends else pytest.raises(BenchError, match=SPACE):
            run(lm, plan(protocol), out)
        assert all(file.read_bytes()[-1:] in {b"", b"\n"} for file in out.rglob("*.jsonl"))
    assert numbers(out) == numbers(whole)


def test_a_disk_too_full_for_the_description(monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(BenchError, match=r"run.json cannot be written.*No space left"):
            run(benching.lm(), plan(), tmp_path / "out")
    assert contents(tmp_path) == {}
    run(benching.lm(), plan(), tmp_path / "out")


@pytest.fixture
def limited():
    """Let no file of this process grow beyond a size: the kernel's own refusal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [1, 100, 10_000])
def test_records_that_do_not_fit(begun, room, limited):
    whole = (begun / "FT" / "records.jsonl").read_bytes()
    first, rest = whole.split(b"\n", 1)
    journal = Journal(begun / "FT" / "two.jsonl")
    journal.append([json.loads(first)])
    limited(len(first) + 1 + room)
    with pytest.raises(BenchError, match=r"two.jsonl cannot be written: .*File too large"):
        journal.append([json.loads(line) for line in rest.splitlines()] * 5)
    assert journal.path.read_bytes() == first + b"\n"
    assert len(journal.lines) == 1


def test_a_change_that_does_not_fit(tmp_path, limited):
    """The change of a sequence is the largest thing that is written."""
    wanted = plan("sequential", measures=Measures())
    whole = run(benching.lm(), wanted, tmp_path / "whole")
    size = (whole / "FT" / "total-000003.safetensors").stat().st_size
    limited(size // 2)
    with pytest.raises(BenchError, match=r"total-000001.safetensors.*make room"):
        run(benching.lm(), wanted, tmp_path / "out")
    limited(10**9)
    assert [file.name for file in (tmp_path / "out" / "FT").glob("*")] == []
    run(benching.lm(), wanted, tmp_path / "out")
    assert numbers(tmp_path / "out") == numbers(whole)


# -- files that were damaged ------------------------------------------------------------------


def damage(file, number, text="{"):
    written = file.read_text().splitlines(keepends=True)
    written[number - 1] = f"{text}\n"
    file.write_text("".join(written))


def without(file, number):
    written = file.read_text().splitlines(keepends=True)
    file.write_text("".join(written[: number - 1] + written[number:]))


@pytest.mark.parametrize("text", ["", "{", '{"stage": "post"', "3", "[]", "\x00\x00"])
def test_a_damaged_line_is_named(begun, text, nothing_is_done):
    file = begun / "FT" / "records.jsonl"
    damage(file, 2, text)
    before = contents(begun)
    with pytest.raises(BenchError, match=r"records.jsonl, line 2 is damaged. Delete this line"):
        run(benching.lm(), plan(), begun)
    assert contents(begun) == before


@pytest.mark.parametrize("name", ["before.jsonl", "FT/records.jsonl"])
def test_a_deleted_line_is_computed_again_once(begun, name, monkeypatch):
    expected = tables(begun)
    damage(begun / name, 1)
    without(begun / name, 1)
    run(benching.lm(), plan(), begun)
    assert tables(begun) == expected
    with monkeypatch.context() as patched:
        patched.setattr(Worker, "do", lambda *_: pytest.fail("computed a second time"))
        run(benching.lm(), plan(), begun)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("finished", [True, False])
def test_a_sequence_does_not_go_on_from_what_is_missing(number, finished, tmp_path):
    wanted = plan("sequential")
    run(benching.lm(), wanted, tmp_path)
    expected = numbers(tmp_path)
    file = tmp_path / "FT" / "records.jsonl"
    if not finished:  # its last measurement is still to come
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    without(file, number)
    before = contents(tmp_path)
    with pytest.raises(BenchError, match=r"delete the folder FT in .* this sequence again"):
        run(benching.lm(), wanted, tmp_path)
    assert contents(tmp_path) == before
    for file in (tmp_path / "FT").iterdir():
        file.unlink()
    run(benching.lm(), wanted, tmp_path)
    assert numbers(tmp_path) == expected


@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_the_change_of_a_sequence_is_missing(damage, tmp_path):
    wanted = plan("sequential")
    run(benching.lm(), wanted, tmp_path)
    file = tmp_path / "FT" / "records.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    change = tmp_path / "FT" / "total-000003.safetensors"
    change.unlink() if damage == "missing" else os.truncate(change, 100)
    with pytest.raises(BenchError, match=r"total-000003.safetensors.*delete the folder FT"):
        run(benching.lm(), wanted, tmp_path)
    assert len(records(tmp_path)) == 3


def test_a_finished_sequence_needs_no_change(tmp_path, monkeypatch):
    run(benching.lm(), plan("sequential"), tmp_path)
    (tmp_path / "FT" / "total-000003.safetensors").unlink()
    monkeypatch.setattr(Worker, "do", lambda *_: pytest.fail("worked"))
    run(benching.lm(), plan("sequential"), tmp_path)


# -- edits that fail --------------------------------------------------------------------------


def diverging(monkeypatch, *prompts, error=DivergedError):
    """Edits of these prompts fail."""
    real = FT.edit

    def edit(self, lm, edits):
        if any(edit.prompt in prompts for edit in edits):
            raise error("FT's loss became NaN.")
        return real(self, lm, edits)

    monkeypatch.setattr(FT, "edit", edit)


@pytest.mark.parametrize("protocol", ["single", "batch", "sequential"])
@pytest.mark.parametrize("which", [[0], [1], [2], [0, 1, 2]], ids=str)
def test_an_edit_that_diverges_is_a_result(protocol, which, monkeypatch, tmp_path):
    diverging(monkeypatch, *(CASES[i].edit.prompt for i in which))
    lm, wanted = benching.lm(), plan(protocol)
    run(lm, wanted, tmp_path)
    found = [r for r in records(tmp_path) if r["stage"] == "post"]
    for i, record in enumerate(found):
        assert record.get("error") == ("FT's loss became NaN." if i in which else None)
        if i in which:
            assert record["change"] == {}
            assert record["hparams"]["num_steps"] == 3
            if protocol != "sequential":  # the unedited model says what it said before
                pre, post = record["pre"], record["post"]
                assert post["rewrite_prob"]["target_new"] == pytest.approx(
                    pre["rewrite_prob"]["target_new"], rel=1e-5
                )
                assert set(post["locality"].items()) >= {("neighborhood_acc", 1.0)}
    total = tmp_path / "FT" / "total-000003.safetensors"
    assert total.exists() is (protocol == "sequential" and len(which) < 3)
    tables(tmp_path)


@pytest.mark.parametrize("which", [[0], [1], [0, 1], [0, 1, 2]], ids=str)
def test_a_sequence_goes_on_from_an_edit_that_diverged(which, monkeypatch, tmp_path):
    diverging(monkeypatch, *(CASES[i].edit.prompt for i in which))
    lm, wanted = benching.lm(), plan("sequential")
    whole = run(lm, wanted, tmp_path / "whole")
    out, real = tmp_path / "out", Worker.do
    while not (out / "FT").exists() or len(records(out)) < 6:  # two tasks, then death

        def two(self, task, left=iter("ab")):  # noqa: B008
            if next(left, None) is None:
                raise KeyboardInterrupt
            return real(self, task)

        with monkeypatch.context() as patched:
            patched.setattr(Worker, "do", two)
            with suppress(KeyboardInterrupt):
                run(lm, wanted, out)
    assert numbers(out) == numbers(whole)


def wild(monkeypatch, *prompts):
    """Edits of these prompts leave weights so large that what the model says is not a number."""
    real = FT.edit

    def edit(self, lm, edits):
        made = real(self, lm, edits)
        if all(edit.prompt not in prompts for edit in edits):
            return made
        entries = {
            path: (Dense(part.delta.sign() * 3e38),) for path, (part,) in made.entries.items()
        }
        return replace(made, entries=entries)

    monkeypatch.setattr(FT, "edit", edit)


@pytest.mark.parametrize("together", [1, 2, 8])
def test_a_wrecked_model_does_not_reach_the_others(together, monkeypatch, tmp_path):
    """The cases of the single protocol share forward passes, and nothing else."""
    monkeypatch.setattr("easyeditor.bench.settings.TOGETHER", together)
    run(benching.lm(), plan(), tmp_path / "calm")
    wild(monkeypatch, CASES[1].edit.prompt)
    run(benching.lm(), plan(), tmp_path / "wild")
    calm, found = records(tmp_path / "calm"), records(tmp_path / "wild")
    assert math.isnan(found[1]["post"]["rewrite_prob"]["target_new"])
    for i in (0, 2):
        assert found[i]["texts"] == calm[i]["texts"]
        assert flatten(found[i]["post"]) == pytest.approx(flatten(calm[i]["post"]), rel=1e-4)


@pytest.mark.parametrize("protocol", ["single", "sequential"])
def test_a_wrecked_model_is_a_result(protocol, monkeypatch, tmp_path):
    wild(monkeypatch, *(case.edit.prompt for case in CASES))
    run(benching.lm(), plan(protocol), tmp_path)
    found = [r for r in records(tmp_path) if "perplexity" in r["post"]]
    assert len(found) == 3
    for record in found:
        assert math.isnan(record["post"]["perplexity"])
        assert record["post"]["fluency"] == 0
        assert record["post"]["locality"]["neighborhood_success"] == 0
    assert "FT" in tables(tmp_path)["table.md"].decode()


@pytest.mark.parametrize("error", [EditError, MemoryError, KeyboardInterrupt])
def test_other_failures_end_the_run_and_lose_nothing(error, monkeypatch, tmp_path):
    whole = run(benching.lm(), plan(), tmp_path / "whole")
    lm = benching.lm()
    before = outer.bits(lm.model)
    with monkeypatch.context() as patched:
        diverging(patched, CASES[2].edit.prompt, error=error)
        with pytest.raises(error):
            run(lm, plan(), tmp_path / "out")
    assert outer.changed(lm.model, before) == []
    assert len(records(tmp_path / "out")) == 2
    run(lm, plan(), tmp_path / "out")
    assert numbers(tmp_path / "out") == numbers(whole)
