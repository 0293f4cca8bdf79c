"""GGUF files need two packages; who lacks one is told how to get it before anything is read."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from easyeditor import load
from easyeditor.errors import MissingExtraError
from easyeditor.lm import embedded


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
    with pytest.raises(MissingExtraError, match=f"needs the package {package}.*easyeditor\\[gguf"):
        load(where)
    assert not (tmp_path / "cache").exists()


def test_the_extra_brings_all_that_is_asked_for() -> None:
    """A fresh `make demo` installs this extra and nothing else."""
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    line = next(line for line in project.splitlines() if line.startswith("gguf = "))
    assert all(f'"{package}>=' in line for package in ("gguf", "accelerate"))
