"""``easyedit serve`` from the command line: names, wrong words, and a ledger that changes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path

import pytest

import serving_cases
import tiny
from easyeditor import LM, save_patch
from easyeditor.cli import serve as serve_cli
from easyeditor.serving import calls
from easyeditor.serving.names import ServedModels
from outer import PROMPT
from scripting import DONE, refused
from synthetic import patch, some_patch


@pytest.fixture(scope="module")
def patch_file(folder, tmp_path_factory) -> Path:
    """A patch of the tiny model on disk."""
    target = LM(tiny.model("llama"), tiny.tokenizer())
    target.model.config._name_or_path = str(folder)
    return save_patch(
        some_patch(target, 0), tmp_path_factory.mktemp("patch") / "eiffel.safetensors"
    )


@pytest.fixture
def served(monkeypatch):
    """What the command would serve, instead of serving it."""
    calls: list[tuple[ServedModels, dict]] = []

    def record(models, opened, **options):
        calls.append((models, {**options, "address": opened.getsockname()[:2]}))

    monkeypatch.setattr("easyeditor.serving.server.run_server", record)
    return calls


def test_a_patch_is_served_under_its_name(easyedit, folder, patch_file, served):
    words = ("serve", "--model", folder, "--patch", patch_file, "--patch", f"b={patch_file}")
    told = easyedit(*words[:-2], "--port", 0)
    assert told.code == DONE, told.err
    ((models, options),) = served
    assert models.names() == ["tiny-llama", "tiny-llama+eiffel"]
    assert (options["host"], options["address"][0]) == ("127.0.0.1", "127.0.0.1")
    assert f"Serving at http://127.0.0.1:{options['address'][1]}/v1" in told.out
    assert "tiny-llama+eiffel" in told.out


def test_wrong_words(easyedit, folder, patch_file, served, monkeypatch, tmp_path):
    start = ("serve", "--model", folder, "--port", 0)
    two = ("--patch", patch_file, "--patch", f"eiffel={patch_file}")
    assert "Two patches are called 'eiffel'" in refused(easyedit(*start, *two))
    assert "No patch file" in refused(easyedit(*start, "--patch", "nowhere.safetensors"))
    assert "There is no ledger" in refused(easyedit(*start, "--ledger", tmp_path))
    busy = ("serve", "--model", folder, "--host", "203.0.113.7", "--port", 1)
    assert "Name another --port" in refused(easyedit(*busy))
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    message = refused(easyedit(*start))
    assert "(MissingExtraError)" in message
    assert 'pip install "easyedit-lm[serve]"' in message
    assert served == []


def test_other_machines_are_served_with_a_warning(easyedit, folder, served, monkeypatch):
    words = ("serve", "--model", folder, "--port", 0, "--host", "0.0.0.0")
    told = easyedit(*words)
    assert (told.code, serve_cli.API_KEY in told.err) == (DONE, True)
    monkeypatch.setenv(serve_cli.API_KEY, "secret")
    told = easyedit(*words)
    assert (told.code, serve_cli.API_KEY in told.err) == (DONE, False)
    assert served[1][1]["api_key"] == "secret"


def test_what_the_ledger_has_now_is_served(easyedit, folder, served, tmp_path):
    from easyeditor.ledger.live import create_for
    from easyeditor.lm.loading import load

    lm = load(str(folder))
    book = create_for(tmp_path / "book", lm, str(folder))
    told = easyedit("serve", "--ledger", book.folder, "--port", 0)
    assert told.code == DONE, told.err
    models = served[0][0]
    before = models.get("tiny-llama+ledger")
    assert before.entries == ()
    numbers = [_written(book, some_patch(lm, layer)) for layer in (0, 1)]
    after = models.get("tiny-llama+ledger")
    assert after.entries == tuple(numbers)
    assert models.get("tiny-llama+ledger") is after
    book.undo([numbers[0]])
    assert models.get("tiny-llama+ledger").entries == (numbers[1],)
    book.patches.file(book.entry(numbers[1]).patch).unlink()
    assert models.get("tiny-llama+ledger").entries == (numbers[1],)  # it was read before
    loading = ("serve", "--ledger", book.folder, "--port", 0, "--dtype", "bfloat16")
    assert "Leave --dtype out" in refused(easyedit(*loading))
    message = refused(easyedit("serve", "--ledger", book.folder, "--port", 0))
    assert "is missing" in message


def _written(book, patch) -> int:
    """The number of a new active entry with this patch."""
    from easyeditor.ledger.database import update
    from easyeditor.ledger.ledger import set_state

    number = book.propose([], "FT", {})
    with book.locked():
        stored = book.patches.add(lambda place: save_patch(patch, place))
        with book.writing() as connection:
            stored.insert(connection, patch.kind)
            update(connection, number, {"patch": stored.digest})
            set_state(connection, number, "active", "ada", "added", "")
    return number


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [False, True])  # as a shell starts what runs in the background
def test_ctrl_c_ends_it_and_nothing_is_left(ignored, folder, patch_file, tmp_path):
    words = ["serve", "--model", folder, "--patch", patch_file, "--port", "0"]
    environment = {**os.environ, "COLUMNS": "200", "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "easyeditor", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
        preexec_fn=partial(
            signal.signal, signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL
        ),
    )
    with process:
        try:
            code, rest, errors = interrupted(process)
        finally:
            process.kill()
    assert "shutting down" in rest or "[DONE]" in rest
    assert (code, "Traceback" in errors) == (130, False)
    assert list(tmp_path.iterdir()) == []


def interrupted(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, rest of an answer that was written, and stderr of a server that gets Ctrl-C."""
    assert process.stdout is not None
    assert process.stderr is not None
    address = process.stdout.readline().split()[-1]
    body = {"model": "tiny-llama+eiffel", "prompt": PROMPT, "max_tokens": 100, "stream": True}
    request = urllib.request.Request(
        f"{address}/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert reply.readline().startswith(b"data: ")
        process.send_signal(signal.SIGINT)
        rest = reply.read().decode()
    code = process.wait(30)
    return code, rest, process.stderr.read()


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ("vllm", ("--max-lora-rank 1\n", "/v1/load_lora_adapter", "/v1/unload_lora_adapter")),
        ("sglang", ("--lora-target-modules down_proj", "/load_lora_adapter", "tiny-llama:eiffel")),
        ("llama.cpp", ("--format gguf-lora", '"lora": [{"id": 0, "scale": 1.0}]')),
    ],
)
def test_calls_of_other_servers_are_printed(easyedit, patch_file, served, server, words):
    told = easyedit("serve", "--print", server, "--patch", patch_file)
    assert told.code == DONE, told.err
    for word in words:
        assert word in told.out
    for line in told.out.replace("\\\n", " ").splitlines():
        if line.startswith("curl"):
            body = shlex.split(line.replace("$PWD", "/here"))[-1]
            assert json.loads(body)
    assert served == []


@pytest.mark.parametrize("server", list(calls.OtherServer))
def test_printed_calls_run_nothing_that_a_patch_says(server, tmp_path):
    """A shell reads the script with programs that only write down their words."""
    evil = "x'; touch hit; $(touch hit) `touch hit` $PWD \"\n touch hit #\x9b"
    adapter = calls.Adapter(evil, Path(evil), evil, 1, ("down_proj", evil), evil)
    programs = "".join(
        f"{name}() {{ printf '%s\\0' \"$@\" >> words; }}\n"
        for name in ("easyedit", "curl", "python", "llama-server")
    )
    script = tmp_path / "script.sh"
    script.write_text(programs + calls.script(server, adapter), encoding="utf-8")
    subprocess.run(["bash", script], cwd=tmp_path, check=True, timeout=20)
    assert {file.name for file in tmp_path.iterdir()} == {"script.sh", "words"}
    words = (tmp_path / "words").read_text(encoding="utf-8").split("\0")
    bodies = [json.loads(words[i + 1]) for i, word in enumerate(words) if word == "-d"]
    assert evil in words
    assert [body["prompt"] for body in bodies if "prompt" in body] == [evil]
    paths = [body["lora_path"] for body in bodies if "lora_path" in body]
    assert paths == ([] if server == "llama.cpp" else [f"{tmp_path}/adapter"])


def test_no_other_server_carries_what_is_in_no_weight(easyedit, tmp_path, patch_file):
    lm = serving_cases.model()
    for name in ("modules", "route"):
        file = save_patch(serving_cases.patches(lm)[name], tmp_path / f"{name}.safetensors")
        message = refused(easyedit("serve", "--print", "vllm", "--patch", file))
        assert "is in no weight" in message
        assert "easyedit serve --patch does" in message
    assert "takes one --patch FILE" in refused(easyedit("serve", "--print", "vllm"))
    file = save_patch(patch(lm, "rank 600", 0), tmp_path / "large.safetensors")
    assert "rank 600" in refused(easyedit("serve", "--print", "vllm", "--patch", file))
