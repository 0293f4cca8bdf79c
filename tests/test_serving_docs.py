"""The page on serving: its commands and its client are run against a server."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import serving_cases
from easyeditor.serving.names import ServedModels
from scripting import DONE, TAKES, sets

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
ANY = ("--max-perplexity-ratio", "1e9", "--max-kl", "1e9")


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words[1:] for line in lines if (words := shlex.split(line))[0] == "easyedit"]


@pytest.mark.slow
def test_the_commands_and_the_client_run(easyedit, folder, tmp_path, monkeypatch):
    """All but the server itself, whose models are served by a thread instead."""
    monkeypatch.chdir(tmp_path)
    served: list[ServedModels] = []
    monkeypatch.setattr(
        "easyeditor.serving.server.run_server", lambda models, _opened, **_: served.append(models)
    )
    shown = {words[words.index("serve") + 1] for words in commands() if "serve" in words}
    assert shown == {"--ledger", "--print"}
    assert "docs/serving.md" in (ROOT / "README.md").read_text(encoding="utf-8")
    for words in commands():
        words = [str(folder) if word == "smollm2-135m" else word for word in words]
        words = ["0" if word == "8000" else word for word in words]
        if words[:2] == ["ledger", "init"]:
            words += ANY
        elif words[:2] == ["ledger", "add"]:
            words += ["--method", "ft", *sets(TAKES)]
        told = easyedit(*words)
        assert told.code == DONE, (words, told.out, told.err)
        assert told.out
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    with serving_cases.running(served[0]) as address:
        code = code.replace("http://127.0.0.1:8000", address).replace("smollm2-135m", "tiny-llama")
        names: dict = {}
        exec(compile(code, "serving.md", "exec"), names)
        assert names["ask"]("tiny-llama") != names["ask"]("tiny-llama+ledger")
        names["client"].close()
