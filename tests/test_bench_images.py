"""A benchmark of questions about pictures: the run, going on with it, and the report's page."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image

import benching
import seeing
from scripting import DONE, refused

SETTINGS = (
    *("--set", "layers=[1]", "--set", "num_steps=2", "--set", "lr=0.01"),
    *("--set", "objective_optimization=target_new"),
)
QUICK = ("--answers", 2, "--continuation-tokens", 0, "--heldout", "none")


@pytest.fixture
def vqa(tmp_path):
    """Three records of E-VQA with their pictures beside the file."""
    for i in range(4):
        Image.new("RGB", (20, 12), (i * 60, 40, 0)).save(tmp_path / f"{i}.png")
    records = [
        {
            "src": "The capital of the land is",
            "alt": target,
            "rephrase": "Its capital is",
            "image": f"{i}.png",
            "image_rephrase": f"{i + 1}.png",
            "loc": "She plays the",
            "loc_ans": "piano",
            "m_loc": "0.png" if i else "3.png",
            "m_loc_q": "It is",
            "m_loc_a": "red",
        }
        for i, target in enumerate(("Rome", "Paris", "Berlin"))
    ]
    file = tmp_path / "vqa.json"
    file.write_text(json.dumps(records), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    lm = seeing.lm("llava")
    lm.model.save_pretrained(folder)
    lm.images.processor.save_pretrained(folder)
    return folder


@pytest.fixture
def bench(easyedit, llava, vqa, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    known = ("bench", "--methods", "ft", "--model", llava, "--data", vqa, *SETTINGS, *QUICK)
    return lambda *words: easyedit(*known, "--out", tmp_path / "out", *words)


def test_a_run_on_pictures_goes_on_where_it_was_and_shows_them(bench, tmp_path):
    first = bench()
    assert first.code == DONE, first.err
    records = benching.records(tmp_path / "out")
    assert len(records) == 3
    post = records[0]["post"]
    assert {"rewrite_acc", "rephrase_acc", "image_rephrase_acc"} <= post.keys()
    assert {"text_acc", "image_acc", "same_question_acc"} <= post["locality"].keys()
    page = (tmp_path / "out" / "report" / "images.html").read_text(encoding="utf-8")
    assert page.count("src='data:image/png;base64,") == 3 * 5
    assert "Its capital is" in page
    assert "same_question" in page

    log = tmp_path / "out" / "FT" / "records.jsonl"
    whole = log.read_bytes()
    log.write_bytes(b"".join(whole.splitlines(keepends=True)[:1]) + b'{"broken off')
    (tmp_path / "2.png").rename(tmp_path / "moved.png")
    (tmp_path / "moved.png").rename(tmp_path / "2.png")
    assert bench().code == DONE
    again = benching.records(tmp_path / "out")
    assert [r["post"] for r in again] == [r["post"] for r in records]


def test_broken_pictures_are_named_by_record_before_the_run(bench, vqa, tmp_path):
    records = json.loads(vqa.read_text(encoding="utf-8"))
    records.append({**records[0], "image": "gone.png"})
    records.append({**records[0], "m_loc": "cut.png"})
    vqa.write_text(json.dumps(records), encoding="utf-8")
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    message = refused(bench())
    assert "record 4" in message
    assert "gone.png" in message
    assert "record 5" in message
    assert "m_loc" in message
    assert not (tmp_path / "out").exists()
    assert bench("--limit", 3).code == DONE


def test_a_picture_that_is_gone_is_named_on_the_page(bench, tmp_path):
    assert bench("--limit", 1).code == DONE
    from easyeditor.bench.report import report

    (tmp_path / "1.png").unlink()
    report(tmp_path / "out", pictures=False)
    page = (tmp_path / "out" / "report" / "images.html").read_text(encoding="utf-8")
    assert "1.png: not there)" in page
