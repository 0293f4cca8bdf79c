"""``easyedit data``: what it prints, what it leaves, and mistakes."""

import json
import logging

import pytest

import outer
from dataset_cases import HERE, KINDS
from easyeditor import EditsDataset, open_dataset
from easyeditor.data import DATASETS, fetch
from easyeditor.data.open import describe


@pytest.fixture
def easyedit(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.setenv("EASYEDITOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EASYEDITOR_OFFLINE", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    loggers = [logging.getLogger(name) for name in (None, "easyeditor")]
    levels = [logger.level for logger in loggers]
    yield outer.Script(monkeypatch, capsys)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def test_ls(easyedit):
    told = easyedit("data", "ls")
    assert (told.code, told.err) == (0, "")
    assert all(name in told.out for name in [*DATASETS, *fetch.names(), "shipped"])
    document = json.loads(easyedit("data", "ls", "--json").out)
    assert [row["name"] for row in document["datasets"]] == fetch.names()
    assert [row["kind"] for row in document["kinds"]] == list(DATASETS)


@pytest.mark.parametrize("name", KINDS)
def test_describe_on_the_command_line(easyedit, name):
    file = HERE / f"{name}.json"
    told = easyedit("data", "describe", file)
    assert (told.code, told.err) == (0, "")
    assert f"{file}: {KINDS[name].title}" in told.out
    cases = list(open_dataset(file))
    assert all(case.edit.prompt.text in told.out for case in cases[:2])
    assert {probe.kind for case in cases for probe in case.probes} <= set(told.out.split())
    document = json.loads(easyedit("data", "describe", file, "--json").out)
    assert document == describe(open_dataset(file))
    assert document["cases"] == len(cases)


def test_convert_on_the_command_line(easyedit, tmp_path):
    out = tmp_path / "out.csv"
    told = easyedit("data", "convert", HERE / "zsre.json", out)
    assert (told.code, told.err) == (0, "")
    assert told.out == f"2 cases of {HERE / 'zsre.json'} (zsre) are in {out}.\n"
    told = easyedit("data", "convert", HERE / "zsre.json", out)
    assert (told.code, told.out) == (2, "")
    assert "--force" in told.err
    told = easyedit("data", "convert", HERE / "zsre.json", out, "--force", "--size", 1, "--json")
    assert json.loads(told.out) == {"path": str(out), "kind": "zsre", "cases": 1}
    assert len(EditsDataset(out)) == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["describe", "zsre"], "EASYEDITOR_OFFLINE is set"),
        (["describe", "nothing"], "neither a file nor a name"),
        (["describe", "nothing.json"], "No file of edits 'nothing.json'"),
        (["describe", HERE / "zsre.json", "--size", "0"], "'--size'"),
        (["convert", HERE / "mquake.json", "out.csv"], "CSV cannot"),
        (["convert", HERE / "mquake.json", "out"], ".json, .jsonl or .csv"),
    ],
)
def test_mistakes_on_the_command_line(easyedit, monkeypatch, tmp_path, words, why):
    monkeypatch.chdir(tmp_path)
    told = easyedit("data", *words)
    assert (told.code, told.out) == (2, "")
    assert why in " ".join(told.err.split())
    told = easyedit("data", *words, "--json")
    assert told.code == 2
    assert why in json.loads(told.out)["error"]["message"]
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(("out", "."))]


@pytest.mark.parametrize("words", [[], ["ls"], ["describe"], ["convert"]])
def test_help_shows_an_example(easyedit, words):
    told = easyedit("data", *words, "--help")
    assert told.code == 0
    assert f"easyedit data {' '.join(words)}".strip() in " ".join(told.out.split())
