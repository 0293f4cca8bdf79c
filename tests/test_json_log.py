"""Append-only JSONL: torn lines are cut, damaged ones named, a full disk changes nothing."""

from __future__ import annotations

import errno
import os

import pytest

from easyeditor.errors import BenchError
from easyeditor.json_log import JsonLog, read_log, scan_log


def log(file, **options):
    return JsonLog(file, BenchError, "Delete it.", **options)


def test_records_come_back_in_order(tmp_path):
    file = tmp_path / "deep" / "x.jsonl"
    first = log(file)
    first.append([{"a": 1}, {"b": "ü\u2028"}])
    first.append([{"c": None}])
    assert first.records == log(file).records == read_log(file, BenchError)
    assert file.read_text(encoding="utf-8") == '{"a": 1}\n{"b": "ü\u2028"}\n{"c": null}\n'
    first.drop_last(2)
    assert first.records == log(file).records == [{"a": 1}]
    first.drop_last(0)
    assert first.records == [{"a": 1}]


@pytest.mark.parametrize("torn", ["{", '{"a": 2}', "\x00", "é"])
def test_a_torn_line_is_cut_when_the_log_is_opened(tmp_path, torn):
    file = tmp_path / "x.jsonl"
    file.write_text('{"a": 1}\n' + torn, encoding="utf-8")
    assert read_log(file, BenchError) == [{"a": 1}]
    assert scan_log(file, BenchError).torn
    assert file.read_text(encoding="utf-8").endswith(torn)  # reading changes nothing
    opened = log(file)
    opened.append([{"a": 3}])
    assert file.read_text(encoding="utf-8") == '{"a": 1}\n{"a": 3}\n'


@pytest.mark.parametrize("line", ["", "{", "3", "[]", "\x00\x00", "null", "[" * 100_000])
def test_a_damaged_line_is_named(tmp_path, line):
    file = tmp_path / "x.jsonl"
    file.write_text(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n', encoding="utf-8")
    with pytest.raises(BenchError, match=r"x.jsonl, line 2 is damaged. Delete it."):
        log(file)
    shared = log(file, shared=True)
    assert (shared.records, shared.damaged) == ([{"a": 1}, {"a": 2}], 1)


def test_a_shared_log_cuts_nothing(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text('{"a": 1}\n{"a": ', encoding="utf-8")
    shared = log(file, shared=True)
    assert (shared.damaged, shared.torn) == (0, True)
    shared.append([{"a": "ü"}])
    assert file.read_text(encoding="utf-8") == '{"a": 1}\n{"a": \n{"a": "\\u00fc"}\n'


@pytest.mark.parametrize("shared", [False, True])
def test_a_full_disk(tmp_path, monkeypatch, shared):
    opened = log(tmp_path / "x.jsonl", shared=shared)
    opened.append([{"a": 1}])

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            opened.append([{"a": 2}])
    assert opened.records == [{"a": 1}]
    if not shared:
        assert opened.path.read_bytes() == b'{"a": 1}\n'


def test_what_cannot_be_read(tmp_path):
    for opening in (log, lambda file: read_log(file, BenchError)):
        with pytest.raises(BenchError, match="cannot be read"):
            opening(tmp_path)
    assert log(tmp_path / "none.jsonl").records == []
