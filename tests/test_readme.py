"""What the README tells a new user to type, typed."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import easyeditor
from easyeditor.methods import METHODS

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
PLACEHOLDER = "owner/name"
MAIN = "from easyeditor.cli.main import main; main()"


def commands():
    block = README.partition("## On the command line")[2].partition("\n\n`--model`")[0]
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if "easyedit " in line]


@pytest.fixture
def typed(tmp_path):
    """The commands as words, and the file they read; a benchmark of one case, no long texts."""
    record = json.loads(re.search(r"```json\n(.*?)```", README, re.S).group(1))
    (tmp_path / "facts.jsonl").write_text(json.dumps(record), encoding="utf-8")
    known = commands()
    assert [words[0] for words in known] == [
        "edit", "edit", "show", "generate", "apply", "export", "layers", "data", "bench", "methods",
        "models", "hparams",
    ]  # fmt: skip
    for words in known:
        if words[0] == "bench":
            words[words.index("50")] = "1"
            words += ["--continuation-tokens", "0", "--heldout", "none"]
    return known


def test_the_commands_run_one_after_the_other(typed, script, tmp_path, monkeypatch):
    """In this process; the benchmark and the second edit are of the slow tier."""
    monkeypatch.chdir(tmp_path)
    for words in typed:
        if words[0] == "bench" or "memit" in words:
            continue
        done = script(*words)
        if PLACEHOLDER in words:  # no hub here: it is read, and the model asked for
            assert (done.code, PLACEHOLDER in done.err) == (2, True), (words, done.err)
            continue
        assert done.code == 0, (words, done.out, done.err)
        assert done.out
    assert (tmp_path / "edited" / "model.safetensors").is_file()
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


@pytest.mark.slow
def test_every_command_runs_in_a_process_of_its_own(typed, tmp_path):
    for words in (words for words in typed if PLACEHOLDER not in words):
        command = [sys.executable, "-c", MAIN, *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        assert done.stdout
    assert (tmp_path / "edited" / "model.safetensors").is_file()
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_the_python_example_runs():
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["metrics"][0]["post"]["rewrite_acc"] == 1
    assert names["editor"].applied == []
    assert isinstance(names["patch"], easyeditor.WeightPatch)


def test_nothing_is_left_to_fill_in():
    assert "@@" not in README


@pytest.mark.parametrize("target", ["demo", "ui", "docs", "test", "lint"])
def test_the_make_targets_exist(target):
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, re.M)


def test_every_method_stands_in_both_tables_of_their_page():
    page = (Path(__file__).parent.parent / "docs" / "methods.md").read_text(encoding="utf-8")
    short, _, rest = page.partition("## All methods")[2].partition("What each changes")
    long = rest.partition("\n## ")[0]
    missing = [
        name
        for name in METHODS
        for table in (short, long)
        if not re.search(rf"^\|[^|]*\b{re.escape(name)}\b[^|]*\|", table, re.M)
    ]
    assert missing == []
    assert f"**{len(list(METHODS))} methods**" in README
