"""One thread, and a place for second moments that is not the user's cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def stats_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where this session's second moments are kept."""
    return str(tmp_path_factory.mktemp("moments"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small text file to collect second moments from."""
    file: Path = tmp_path_factory.mktemp("corpus") / "text.txt"
    file.write_text(tiny.TEXT.replace(". ", ".\n"), encoding="utf-8")
    return str(file)
