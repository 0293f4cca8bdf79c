"""Mistakes at the command line: code 2, one message, nothing on stdout, no waiting."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import outer
import tiny
from easyeditor import save_patch
from outer import PROMPT, TARGET
from scripting import (
    BAD_INPUT,
    DONE,
    ONE,
    ROME,
    WEAK,
    document,
    editing,
    refused,
)

BAD = {
    "unknown method": (("--method", "roem", *ONE), "Did you mean 'ROME'"),
    "unknown folder": (("--model", "./nowhere/at/all", *ONE), "No folder './nowhere/at/all'"),
    "unknown model": (("--model", "no-such/model", *ONE), "'no-such/model' could not be loaded"),
    "unknown gguf": (("--model", "nothing.gguf", *ONE), "No GGUF file"),
    "misspelt embedded model": (("--model", "smollm-135m", *ONE), "smollm2-135m"),
    "unknown hyper-parameter": (("--set", "num_stps=3", *ONE), "Did you mean 'num_steps'"),
    "hyper-parameter of another type": (("--set", "lr=fast", *ONE), "lr='fast'"),
    "set without a value": (("--set", "lr", *ONE), "NAME=VALUE"),
    "set without a name": (("--set", "=3", *ONE), "NAME=VALUE"),
    "set that is no yaml": (("--set", "layers=[1", *ONE), "not YAML"),
    "set self": (("--set", "self=1", *ONE), "self"),
    "set name": (("--set", "name=x", "--model", "gpt2-xl", *ONE), "unknown field 'name'"),
    "set model_name": (("--set", "model_name=x", *ONE), "model_name"),
    "set alg_name": (("--set", "alg_name=ROME", *ONE), "alg_name"),
    "layer outside": (("--set", "layers=[9]", *ONE), "3 layers"),
    "unknown settings file": (("--hparams", "nothing.yaml", *ONE), "nothing.yaml"),
    "unknown file of edits": (("--edits", "nothing.json"), "No file of edits"),
    "file of edits and prompt": (("--edits", "nothing.json", *ONE), "not both"),
    "no prompt": (("--target", "x"), "--prompt missing"),
    "no target": (("--prompt", "x"), "--target missing"),
    "neither": ((), "--prompt and --target missing"),
    "empty prompt": (("--prompt", " ", "--target", "x"), "prompt is empty"),
    "empty target": (("--prompt", "x", "--target", ""), "is empty"),
    "subject elsewhere": ((*ONE, "--subject", "Berlin"), "'Berlin' does not occur"),
    "empty rephrase": ((*ONE, "--rephrase", ""), "empty prompt"),
    "locality without arrow": ((*ONE, "--locality", "She plays"), "'prompt => answer'"),
    "portability without answer": ((*ONE, "--portability", "a =>"), "'prompt => answer'"),
    "unknown precision": ((*ONE, "--dtype", "float99"), "float99"),
    "precision that is none": ((*ONE, "--dtype", "nn"), "nn"),
    "unknown device": ((*ONE, "--device", "abacus"), "abacus"),
    "no memory": ((*ONE, "--device", "meta"), "is not available"),
    "unknown option": ((*ONE, "--promt", "x"), "--prompt"),
    "save under a file": ((*ONE, "--save", f"{__file__}/p.safetensors"), Path(__file__).name),
}


@pytest.mark.parametrize(("words", "why"), BAD.values(), ids=BAD)
def test_bad_edit(easyedit, folder, words, why):
    told = refused(easyedit(*editing(folder, settings=WEAK), *words))
    assert why in told


@pytest.mark.parametrize(("words", "why"), BAD.values(), ids=BAD)
def test_bad_edit_as_json(easyedit, folder, words, why):
    told = easyedit(*editing(folder, "--json", settings=WEAK), *words)
    assert told.code == BAD_INPUT
    error = document(told)["error"]
    assert why in error["message"]
    assert error["type"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("nonsense",), "No such command"),
        (("show", "nothing.safetensors"), "No patch file"),
        (("show", __file__), "cannot be read as an EasyEdit patch"),
        (("show",), "Missing argument 'patch'"),
        (("export", "nothing.safetensors", "--out", "x"), "No patch file"),
        (("export", __file__), "--out"),
        (("export", __file__, "--out", "x", "--format", "onnx"), "lora"),
        (("export", __file__, "--out", "x", "--rank", "0"), "--rank"),
        (("apply", "nothing.safetensors", "--out", "x"), "No patch file"),
        (("apply", __file__), "--out"),
        (("generate",), "Missing argument 'prompt'"),
        (("generate", ""), "prompt is empty"),
        (("generate", "--max-new-tokens", "0", "a"), "--max-new-tokens"),
        (("generate", "--patch", "nothing.safetensors", "a"), "No patch file"),
        (("generate", "--model", "./nowhere", "a"), "No folder"),
        (("hparams", "show", "roem"), "Did you mean 'ROME'"),
        (("hparams", "shw"), "No such command"),
        (("hparams", "write", "--out", __file__), Path(__file__).name),
        (("models", "nonsense"), "No such command"),
        (("demo", "--method", "roem"), "Did you mean 'ROME'"),
    ],
    ids=range(20),
)
def test_bad_commands(easyedit, words, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert why in refused(easyedit(*words))
    assert list(tmp_path.iterdir()) == []


def test_a_broken_file_of_edits_is_named(easyedit, folder, tmp_path):
    file = tmp_path / "edits.jsonl"
    file.write_text(json.dumps({"prompt": PROMPT, "target_new": TARGET}) + "\n{}\n")
    assert "edits.jsonl, line 2" in refused(easyedit(*editing(folder, "--edits", file)))


def test_contradicting_edits(easyedit, folder, tmp_path):
    file = tmp_path / "edits.json"
    file.write_text(json.dumps([{"prompt": PROMPT, "target_new": t} for t in ("a", "b")]))
    assert "contradict" in refused(easyedit(*editing(folder, "--edits", file)))


@pytest.mark.parametrize("method", ["rome", "memit"])
def test_a_missing_subject(easyedit, folder, method):
    told = easyedit(*editing(folder, *ONE[:4], method=method, settings=ROME))
    assert "names no subject" in refused(told)


def test_a_model_that_is_broken(easyedit, folder, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    assert "could not be loaded" in refused(easyedit(*editing(broken, *ONE)))


def test_a_model_with_a_weight_that_is_not_a_number(easyedit, tmp_path):
    model = tiny.model("llama")
    model.model.layers[0].self_attn.o_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    told = easyedit(*editing(tmp_path, *ONE, "--json"))
    assert told.code == BAD_INPUT
    assert document(told)["error"]["type"] == "DivergedError"


LONG_NAME = "x" * 300
SAVE = (*ONE, "--save")
MORE = {
    "bench alone": (("bench",), "Name what to compare"),
    "bench without a folder": (("bench", "--methods", "ft"), "name the run's folder"),
    "bench without methods": (("bench", "--out", "x"), "name at least one"),
    "bench of commas": (("bench", "--methods", ",", "--out", "x"), "name at least one"),
    "bench twice": (("bench", "--methods", "ft,ft", "--out", "x"), "takes part twice"),
    "bench protocol": (
        ("bench", "--methods", "ft", "--out", "x", "--protocol", "batc"),
        "Did you mean 'batch'",
    ),
    "bench data": (
        ("bench", "--methods", "ft", "--out", "x", "--data", "worldfact"),
        "Did you mean 'worldfacts'",
    ),
    "bench out is a file": (("bench", "--methods", "ft", "--out", __file__), "not a folder"),
    "bench entrant": (("bench", "--entrant", "FT", "--out", "x"), "LABEL=METHOD"),
    "bench entrant quotes": (
        ("bench", "--entrant", 'A=ft "', "--out", "x"),
        "No closing quotation",
    ),
    "report of nothing": (("bench", "report", "nowhere"), "no run folder"),
    "judge without an address": (
        ("bench", "judge", ".", "--base-url", "x", "--judge-model", "y"),
        "not an HTTP URL",
    ),
    "save nowhere": (("edit", *SAVE, ""), "does not end in the name"),
    "save with a NUL": (("edit", *SAVE, "a\0b"), "null byte"),
    "save under a long name": (("edit", *SAVE, LONG_NAME), "too long"),
    "save where nothing can be": (("edit", *SAVE, "/proc/x"), "/proc/x cannot be written"),
    "save to a device": (("edit", *SAVE, "/dev/null"), "not a regular file"),
    "save to a folder": (("edit", *SAVE, "."), "does not end in the name"),
    "save to both": (("edit", *SAVE, "-", "--json"), "both write to standard output"),
    "misspelt preset as model": (("edit", *ONE, "--model", "gpt2xl"), "Did you mean 'gpt2-xl'"),
    "misspelt embedded model": (
        ("generate", "x", "-M", "smollm-135m"),
        "Did you mean 'smollm2-135m'",
    ),
    "no model": (("generate", "x", "-M", ""), "names no model"),
    "model with a NUL": (("generate", "x", "-M", "a\0"), "names no model"),
    "model of a page": (("generate", "x", "-M", "x" * 2000), "2000 characters"),
    "model is a file": (("generate", "x", "-M", __file__), "is a file"),
    "model without a config": (
        ("generate", "x", "-M", str(Path(__file__).parent / "zoo")),
        "config.json",
    ),
    "hparams is a folder": (("edit", *ONE, "--hparams", "."), "No hyper-parameter file"),
    "edits is a folder": (("edit", "--edits", "."), "No file of edits"),
    "edits is a device": (("edit", "--edits", "/dev/null"), "No file of edits"),
    "edits of another kind": (("edit", "--edits", __file__), ".json, .jsonl"),
    "no such data": (("data", "describe", "nothing"), "neither a file nor a name"),
    "data nowhere": (("data", "convert", "worldfacts", "/proc/x.json"), "/proc/x.json cannot be"),
    "data of no kind": (("data", "convert", "worldfacts", "x.xml"), ".json, .jsonl or .csv"),
    "patch twice": (("apply", __file__, __file__, "--out", "x"), "named twice"),
    "patch twice, spelt twice": (
        (
            "generate",
            "x",
            "--patch",
            __file__,
            "--patch",
            f"{Path(__file__).parent}/./{Path(__file__).name}",
        ),
        "named twice",
    ),
    "patch is a folder": (("show", "."), "No patch file"),
    "apply to nowhere": (("apply", __file__, "--out", "/proc/x"), "/proc/x cannot be written"),
    "export into a file": (("export", __file__, "--out", __file__), "not a folder"),
    "train what does not learn": (("train", "-m", "rome", "--data", "x.json"), "needs no training"),
    "train from nothing": (("train", "--data", "nothing.json"), "No file of edits"),
    "moments of none": (("moments", "-m", "ft"), "uses no second moments"),
    "moments of gates": (("moments", "-m", "gatedrome"), "GatedROME uses no second moments"),
    "moments of letters": (("moments", "--layers", "a"), "such as 3,4,5"),
    "moments with edits": (("moments", "--edits", "x.csv"), "only --convergence"),
    "a misspelt preset": (("hparams", "show", "rome", "gpt2xl"), "Did you mean 'gpt2-xl'"),
    "settings for no training": (("hparams", "show", "ft", "--training"), "needs no training"),
    "settings nowhere": (("hparams", "write", "--out", "/proc/h"), "/proc/h"),
    "edit before the training": (("edit", *ONE, "--method", "mend"), "--set archive=FILE"),
    "bench before the training": (
        ("bench", "--methods", "ft,serac", "--out", "x"),
        "--set archive=FILE",
    ),
    "moments of no file": (("moments", "--dataset", "none.txt"), "No text file 'none.txt'"),
    "a choice": (("trace", PROMPT, "--kind", "mpl"), "'--kind': 'mpl' is not one of 'state'"),
    "a precision": (("edit", *ONE, "--dtype", "int8"), "'bfloat16' or 'float16'."),
    "nothing to fetch": (("models", "fetch", "smollm2"), "Did you mean 'smollm2-135m'"),
    "a misspelt command": (("edti",), "Did you mean 'edit'"),
    "markup": (
        ("edit", "--prompt", "[/bold] is", "--target", "x", "--subject", "no"),
        "[/bold] is",
    ),
    "an escape": (("generate", "x", "-M", "\x1b[31m/a/b"), "\\x1b[31m/a/b"),
}


@pytest.mark.parametrize(("words", "why"), MORE.values(), ids=MORE)
def test_more_bad_commands(easyedit, words, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = easyedit(*words)
    assert told.code == BAD_INPUT
    shown = " ".join(f"{told.err} {told.out}".replace("│", " ").split())
    assert why in shown
    assert "\x1b" not in shown
    assert list(tmp_path.iterdir()) == []


def test_the_line_of_a_missing_subject(easyedit, tmp_path):
    file = tmp_path / "edits.jsonl"
    first = {"prompt": PROMPT, "target_new": TARGET, "subject": "Anna Lind"}
    file.write_text("\n".join(map(json.dumps, [first, {"prompt": "a", "target_new": "b"}])))
    assert "edits.jsonl, line 2: the edit names no subject" in refused(
        easyedit("edit", "-m", "rome", "--edits", file)
    )


def test_no_memory_is_no_bug(easyedit, folder, monkeypatch):
    from easyeditor.lm import loading

    def fail(*_args, **_options):
        raise MemoryError("cannot allocate 400 GB")

    monkeypatch.setattr(loading, "load", fail)
    told = refused(easyedit("generate", "x", "--model", folder))
    assert "not enough memory (cannot allocate 400 GB)" in told


@pytest.mark.parametrize("path", [(), ("edit",), ("bench", "report"), ("hparams",)], ids=" ".join)
def test_short_help(easyedit, path):
    told = easyedit(*path, "-h")
    assert told.code == DONE
    assert told.out == easyedit(*path, "--help").out


def test_completion_is_offered(easyedit):
    assert "--install-completion" in easyedit("--help").out


# -- speed ------------------------------------------------------------------------------------


STATIC = (
    [
        *(["methods"], ["models"], ["hparams", "ls"], ["hparams", "show", "rome", "gpt2-xl"]),
        *(["data", "ls"], ["data", "describe", "worldfacts"]),
    ],
    [[*words, "--json"] for words in (["methods"], ["models"], ["hparams", "ls"])],
)
QUICK = [
    ["nonsense"],
    ["edit", "--nonsense"],
    ["edit", "--method", "roem"],
    ["edit", "--prompt", "x"],
    ["edit", *ONE, "--locality", "no arrow"],
    ["edit", "--prompt", "x", "--target", "y", "--subject", "z"],
    ["edit", "--edits", "nothing.json"],
    ["edit", *ONE, "--set", "no-value"],
    ["edit", *ONE, "--model", "smollm-135m"],
    ["edit", *ONE, "--save", "/proc/x"],
    ["generate", " "],
    ["show", "nothing.safetensors"],
    ["hparams", "show", "roem"],
    ["bench"],
    ["bench", "--data", "nothing"],
    ["bench", "report", "nothing"],
    ["train", "--data", "nothing"],
    ["train", "--method", "rome"],
    ["apply", "nothing"],
    ["export", "nothing"],
    ["ledger", "ls", "nothing"],
    ["ui", "--runs", "nothing"],
]


def test_help_at_sixty_columns_cuts_no_name(easyedit, monkeypatch):
    from easyeditor.cli.main import COMMANDS

    monkeypatch.setenv("COLUMNS", "60")
    for words in ((), *((name,) for name in COMMANDS), ("ledger", "add")):
        text = easyedit(*words, "--help").out
        assert not re.search(r"--[\w-]*…", text), words
        assert "--help" in text
        table = text.partition("Examples:")[0]
        assert not re.search(r"\w\.\.\.$", table, re.M), words


@pytest.mark.parametrize("columns", ["60", "100"])
@pytest.mark.parametrize("words", [(), ("ledger",), ("data",), ("hparams",)])
def test_a_group_without_a_command_shows_its_help(easyedit, monkeypatch, words, columns):
    monkeypatch.setenv("COLUMNS", columns)
    told = easyedit(*words)
    assert told.code == BAD_INPUT
    assert "Usage: easyedit" in told.out
    assert "Commands" in told.out


def test_a_broken_settings_file_takes_one_line(easyedit, tmp_path):
    file = tmp_path / "rome.yaml"
    file.write_text("layers: [1\nlr: 3\n")
    told = easyedit("edit", *ONE, "--hparams", file)
    assert "rome.yaml is not YAML: line 2, column 3: expected" in refused(told)
    assert told.err.count("\n") == 1


def test_paragraphs_fold_and_commands_stay_whole():
    from easyeditor.cli.terminal import folded

    prose = "Exit codes: 0 done; 1 an edit\nwas rolled back."
    command = "  easyedit edit \\\n    --prompt x"
    assert folded(f"{command}\n\n{prose}", 20).splitlines() == [
        *command.splitlines(),
        "",
        *("Exit codes: 0 done;", "1 an edit was rolled", "back."),
    ]


def test_what_needs_no_model_is_answered_without_torch(tmp_path):
    """All in one process: none of them may import torch, so none can hide behind another."""
    patch = tmp_path / "p.safetensors"
    save_patch(outer.editor("ROME").edit(PROMPT, TARGET, subject="Anna Lind").patch, patch)
    fine = [*STATIC[0], *STATIC[1], ["show", str(patch)]]
    script = (
        "import sys\n"
        "from easyeditor.cli.app import app\n"
        "from easyeditor.cli.main import main\n"
        f"for words in {[*fine, *QUICK]!r}:\n"
        "    app.registered_commands.clear()\n"
        "    app.registered_groups.clear()\n"
        "    sys.argv = ['easyedit', *words]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as left:\n"
        "        heavy = sorted({'torch', 'transformers'} & set(sys.modules))\n"
        "        print('CODE', left.code or 0, heavy)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(outer.ROOT / "src")},
    )
    codes = [line for line in done.stdout.splitlines() if line.startswith("CODE")]
    assert codes == ["CODE 0 []"] * len(fine) + ["CODE 2 []"] * len(QUICK)


@pytest.mark.parametrize(("given", "asked"), [("1", "1"), ("0", None)])
def test_offline_asks_no_hub_either(monkeypatch, given, asked):
    """Five retries of a hub that cannot be reached take half a minute."""
    from easyeditor.cli.main import main

    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    monkeypatch.setattr(os, "environ", {**environment, "EASYEDITOR_OFFLINE": given})
    monkeypatch.setattr("sys.argv", ["easyedit", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert os.environ.get("HF_HUB_OFFLINE") == asked
