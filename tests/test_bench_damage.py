"""Benchmark runs on a full disk or from damaged files: what is said, and that nothing is lost."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext

import pytest

import benching
from benching import contents, numbers, plan, records, tables
from easyeditor.bench.run_dir import EventLog
from easyeditor.bench.runner import run
from easyeditor.bench.worker import Worker
from easyeditor.errors import BenchError
from easyeditor.evaluate.query import Measures
from support import full

begun, nothing_is_done = benching.begun, benching.nothing_is_done
two_together = benching.two_together

# -- a full disk ------------------------------------------------------------------------------


SPACE = "No space left on device.* What was there is kept; make room"


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


@pytest.mark.parametrize("room", [1, 100, 10_000])
def test_records_that_do_not_fit(begun, room, limited):
    whole = (begun / "FT" / "records.jsonl").read_bytes()
    first, rest = whole.split(b"\n", 1)
    event_log = EventLog(begun / "FT" / "two.jsonl")
    event_log.append([json.loads(first)])
    limited(len(first) + 1 + room)
    with pytest.raises(BenchError, match=r"two.jsonl cannot be written: .*File too large"):
        event_log.append([json.loads(line) for line in rest.splitlines()] * 5)
    assert event_log.path.read_bytes() == first + b"\n"
    assert len(event_log.records) == 1


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
        patched.setattr(Worker, "run_task", lambda *_: pytest.fail("computed a second time"))
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
    monkeypatch.setattr(Worker, "run_task", lambda *_: pytest.fail("worked"))
    run(benching.lm(), plan("sequential"), tmp_path)
