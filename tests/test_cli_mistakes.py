"""Mistakes at the command line: code 2, one message, nothing on stdout, no waiting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import outer
import tiny
from outer import PROMPT, TARGET
from scripting import (
    BAD_INPUT,
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


# -- speed ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["edit", "--nonsense"],
        ["edit", "--method", "roem"],
        ["edit", "--prompt", "x"],
        ["edit", *ONE, "--locality", "no arrow"],
        ["edit", "--prompt", "x", "--target", "y", "--subject", "z"],
        ["edit", "--edits", "nothing.json"],
        ["edit", *ONE, "--set", "no-value"],
        ["generate", " "],
        ["show", "nothing.safetensors"],
        ["hparams", "show", "roem"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_is_answered_without_torch(words):
    script = (
        "import sys\n"
        f"sys.argv = ['easyedit', *{words!r}]\n"
        "from easyeditor.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as left:\n"
        "    heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "    print(left.code, sorted(heavy))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(outer.ROOT / "src")},
    )
    assert done.stdout.strip() == "2 []"
