"""The page on ledgers: every command in it is run, on a tiny model and on the real one."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

import easyeditor
import tiny
from scripting import DONE, TAKES, sets

CACHE = os.environ.get("EASYEDITOR_CACHE")
PAGE = (Path(__file__).parent.parent / "docs" / "ledger.md").read_text(encoding="utf-8")
README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines]


def test_the_page_shows_every_command():
    shown = [words[1] for words in commands() if words[0] == "ledger"]
    assert shown == [
        "init", "add", "ls", "show", "check", "undo", "redo", "export", "verify",
    ]  # fmt: skip
    assert "docs/ledger.md" in README


def test_the_commands_run_on_a_tiny_model(easyedit, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in commands():
        words = [str(folder) if word == "smollm2-135m" else word for word in words]
        if words[:2] == ["ledger", "init"]:
            words += ["--max-perplexity-ratio", "1e9", "--max-kl", "1e9"]
        elif words[:2] == ["ledger", "add"]:
            words += ["--method", "ft", *sets(TAKES)]
        elif words[0] in {"generate", "apply"}:
            words += ["--model", str(folder)]  # a patch file names no local folder
        told = easyedit(*words)
        assert told.code == DONE, (words, told.out, told.err)
        assert told.out
    assert (tmp_path / "served" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.real
def test_the_commands_run_on_the_real_model(easyedit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if CACHE is None:  # the user's own, where the model is
        monkeypatch.delenv("EASYEDITOR_CACHE")
    else:
        monkeypatch.setenv("EASYEDITOR_CACHE", CACHE)
    for words in commands():
        told = easyedit(*words)
        assert told.code == DONE, (words, told.out, told.err)
        if words[0] == "generate":
            assert "Rome" in told.out


@pytest.mark.parametrize("model", ["tiny", pytest.param("real", marks=pytest.mark.slow)])
def test_the_python_example_runs(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", PAGE, re.S).group(1)
    if model == "tiny":
        settings = easyeditor.FTHyperParams(
            layers=[1], num_steps=60, lr=0.02, objective_optimization="target_new"
        )
        monkeypatch.setattr(easyeditor.FTHyperParams, "preset", lambda _name: settings)
        lm = easyeditor.LM(tiny.model("llama"), tiny.tokenizer())
        monkeypatch.setattr("easyeditor.editors.base.load", lambda _spec: lm)
        allowed = 'reason="ticket 4712", allow=["health", "untaken"]'
        code = code.replace('reason="ticket 4712"', allowed)
    names: dict = {}
    exec(compile(code, "ledger.md", "exec"), names)
    assert names["states"] == ["undone"]
    assert names["editor"].applied == []
