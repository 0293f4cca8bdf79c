"""GGUF files need two packages; who lacks one is told how to get it before anything is read."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import tiny
from easyeditor import load
from easyeditor.errors import MissingExtraError, ModelLoadError
from easyeditor.lm import embedded, gguf_cache


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
@pytest.mark.parametrize("name", ["model.gguf", "smollm2-135m"])
def test_a_missing_package_is_named(
    package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(wanted: str) -> object:
        return None if wanted == package else found(wanted)

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setenv("EASYEDITOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(embedded.OFFLINE, raising=False)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    where = name if name == "smollm2-135m" else str(tmp_path / name)
    with pytest.raises(MissingExtraError, match=f"needs the package {package}.*easyedit-lm\\[gguf"):
        load(where)
    assert not (tmp_path / "cache").exists()


def test_two_files_in_one_folder_are_unpacked_once_each_and_named_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def convert(file: Path, folder: Path, dtype: str, name: str) -> Path:
        calls.append(f"{name} {dtype}")
        tiny.model("llama", getattr(torch, dtype), seed=len(calls)).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
        return folder

    monkeypatch.setattr(gguf_cache, "convert", convert)
    monkeypatch.setenv("EASYEDITOR_CACHE", str(tmp_path / "cache"))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF" + name.encode())
    first, again, second = (load(str(tmp_path / n)) for n in ("a.gguf", "a.gguf", "b.gguf"))
    half = load(str(tmp_path / "a.gguf"), dtype="bfloat16")
    assert calls == ["a.gguf float32", "b.gguf float32", "a.gguf bfloat16"]
    assert (first.name, second.name, half.name) == ("a.gguf", "b.gguf", "a.gguf")
    assert half.model.dtype == torch.bfloat16
    assert "unpacking a.gguf once, to float32" in caplog.text
    weights = [lm.model.lm_head.weight for lm in (first, again, second)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    with pytest.raises(ModelLoadError, match=r"several GGUF files \(a.gguf, b.gguf\); name one"):
        load(str(tmp_path))
    (tmp_path / "b.gguf").unlink()
    assert load(str(tmp_path)).name == "a.gguf"  # the folder's only one


def test_the_extra_brings_all_that_is_asked_for() -> None:
    """A fresh `make demo` installs this extra and nothing else."""
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    line = next(line for line in project.splitlines() if line.startswith("gguf = "))
    assert all(f'"{package}>=' in line for package in ("gguf", "accelerate"))
