"""The page on exports: every command in it is run, on a tiny model and on the real one."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from scripting import DONE, TAKES, sets
from support import shared_lm

CACHE = os.environ.get("EASYEDITOR_CACHE")
DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "export.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    lines = "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.S)).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines]


def test_the_page_shows_every_format_and_leads_to_pages_that_are_there():
    from easyeditor.cli.exports import Format

    shown = {words[words.index("--format") + 1] for words in commands() if words[0] == "export"}
    assert shown == {format.value for format in Format} - {"control-vector"}
    assert "--format control-vector" in (DOCS / "steering.md").read_text(encoding="utf-8")
    assert "docs/export.md" in (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert all((DOCS / page).is_file() for page in re.findall(r"\]\((\w+\.md)\)", PAGE))


def test_the_commands_run_on_a_tiny_model(easyedit, folder, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    from test_gguf_model import write_source

    monkeypatch.chdir(tmp_path)
    source = write_source(shared_lm("llama"), tmp_path / "tiny.gguf", "F16")
    for words in commands():
        if words[0] == "edit":
            words[words.index("rome")] = "ft"
            words += ["--model", str(folder), *sets(TAKES)]
        elif "gguf" in words:
            words += ["--model", str(source), "--no-check"]
        elif "merged" in words:
            words += ["--model", str(folder)]  # a patch file names no local folder
        answer = easyedit(*words)
        if words[0] != "edit":  # which wrecks a tiny model's text
            assert answer.code == DONE, (words, answer.out, answer.err)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(compile(block, "export.md", "exec"), {"MODEL": str(folder)})
    written = {place.name for place in tmp_path.iterdir() if place.is_dir()}
    assert written >= {"adapter", "adapter-gguf", "edited-gguf", "edited", "python-edited"}


@pytest.mark.slow
@pytest.mark.real
def test_the_commands_run_on_the_real_model(easyedit, tmp_path, monkeypatch):
    from easyeditor.errors import ModelLoadError
    from easyeditor.lm import embedded

    monkeypatch.chdir(tmp_path)
    if CACHE is None:  # the user's own, where the model is
        monkeypatch.delenv("EASYEDITOR_CACHE")
    else:
        monkeypatch.setenv("EASYEDITOR_CACHE", CACHE)
    try:
        embedded.gguf_file()
    except ModelLoadError as error:
        pytest.skip(str(error))
    for words in commands():
        answer = easyedit(*words)
        assert answer.code == DONE, (words, answer.out, answer.err)
        if "Q8_0" in answer.out:
            assert "1 of 1 new answer comes from the stored weights" in answer.out
