"""``easyedit steer``: from files of texts to a patch that is shown, used and exported."""

from __future__ import annotations

import pytest

from scripting import BAD_INPUT, DONE, document, refused
from test_steering import NEGATIVE, POSITIVE


@pytest.fixture
def files(tmp_path):
    """``--positive`` and ``--negative`` of four pairs."""
    for name, texts in (("positive", POSITIVE), ("negative", NEGATIVE)):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts) + "\n")
    return ("--positive", tmp_path / "positive.txt", "--negative", tmp_path / "negative.txt")


def test_a_vector_is_made_saved_shown_used_and_exported(easyedit, folder, files, tmp_path):
    pytest.importorskip("gguf")
    file = tmp_path / "p.safetensors"
    words = ("steer", "--model", folder, *files, "--layer", "1", "--strength", "3")
    result = easyedit(*words, "--save", file, "--ask", "Berlin is", "--json")
    assert result.code == DONE, result.err
    known = document(result)
    assert [row["name"] for row in known["rows"]] == [
        *("unsteered", "prompt only"),
        *("random vector", "steered"),
    ]
    assert known["settings"]["method"] == "caa"
    assert known["sites"] == {"1": "model.layers.1"}
    assert known["held_out"] == [1, 1]
    assert known["instruction"].startswith("The river is in Paris\n")
    shown = document(easyedit("show", file, "--json"))
    assert (shown["method"], shown["edits"]) == ("CAA", [])
    assert shown["hyperparams"]["strength"] == 3.0
    assert [part["module"] for part in shown["parts"]] == ["model.layers.1"]
    used = easyedit("generate", "Berlin is", "--patch", file, "--model", folder, "--json")
    assert used.code == DONE, used.err
    wrote = easyedit("export", file, "--format", "control-vector", "--out", tmp_path / "out")
    assert wrote.code == DONE, wrote.err
    assert "--control-vector" in wrote.out
    assert (tmp_path / "out" / "control-vector.gguf").is_file()
    for words in (
        ("apply", file, "--out", tmp_path / "x"),
        ("export", file, "--out", tmp_path / "x"),
    ):
        assert "changes no weight: it runs modules beside" in refused(easyedit(*words))


def test_texts_that_are_no_pairs_are_not_scored_as_pairs(easyedit, folder, tmp_path):
    (tmp_path / "a.txt").write_text("The river is long\nRome is big\n")
    (tmp_path / "b.txt").write_text("Berlin is small\nShe plays well\n")
    files = ("--positive", tmp_path / "a.txt", "--negative", tmp_path / "b.txt")
    result = easyedit("steer", "--model", folder, *files, "--layer", "1")
    assert result.code == DONE, result.err
    assert "4 held-out texts" in " ".join(result.out.split())  # the line folds at the path


@pytest.mark.slow
def test_for_people_with_a_sweep_and_a_picture(easyedit, folder, files, tmp_path):
    pytest.importorskip("matplotlib")
    when, unless = tmp_path / "when.txt", tmp_path / "unless.txt"
    when.write_text("Berlin is the capital of\nRome is\n")
    unless.write_text("She plays\nThe river\n")
    picture = tmp_path / "curve.png"
    result = easyedit(
        *("steer", "--model", folder, *files, "--layers", "1,2", "--sweep", "1,4"),
        *("--picture", picture, "--when", when, "--unless", unless, "--positions", "answer"),
    )
    assert result.code == DONE, result.err
    for words in (
        "random vector",
        "1 held-out pair",
        "held-out prompts",
        "perplexity",
        str(picture),
    ):
        assert words in " ".join(result.out.split()) or words in result.out.replace("\n", "")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "give --positive and --negative, or --pairs"),
        (("--pairs", "none.jsonl"), "No file of edits 'none.jsonl'"),
        (("--positive", "{empty}", "--negative", "{one}"), "is empty; it holds one text per line"),
        (("--positive", "{two}", "--negative", "{one}", "--method", "caa"), "as many of each"),
        (("--positive", "{one}", "--negative", "{other}", "--layer", "many"), "no list of numbers"),
        (
            ("--positive", "{one}", "--negative", "{other}", "--layer", "99"),
            "the model has 3 layers",
        ),
        (("--positive", "{one}", "--negative", "{other}", "--module", "head"), "Invalid value"),
        (("--positive", "{one}", "--negative", "{other}", "--picture", "a.png"), "give --sweep"),
        (("--positive", "{one}", "--negative", "{other}", "--method", "prompt"), "--prompts and"),
        (("--positive", "{one}", "--negative", "{other}", "--when", "{one}"), "both --when and"),
        (("--positive", "{one}", "--negative", "{other}", "--sweep", "1,inf"), "must be finite"),
        (("--positive", "{one}", "--negative", "{other}", "--save", "-"), "name a file"),
    ],
)
def test_mistakes(easyedit, folder, tmp_path, words, why):
    texts = {"empty": "", "one": "Rome is big", "other": "Rome is home", "two": "a b\nc d"}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    files = {name: str(tmp_path / f"{name}.txt") for name in texts}
    result = easyedit("steer", "--model", folder, *(word.format(**files) for word in words))
    assert why in refused(result)
    assert result.code == BAD_INPUT
