"""One thread, a place for second moments that is not the user's cache, the script."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import outer
import quick
import tiny

torch.set_num_threads(1)

LONG = (
    "test_matrix",
    "test_quality",
    "test_readme",
    "test_bench_cluster",
    "test_trainer_launched",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first: two workers take half the list each, and share what is left."""
    long = [item for item in items if item.path.stem in LONG]
    rest = [item for item in items if item.path.stem not in LONG]
    half = len(rest) // 2
    items[:] = [*long[0::2], *rest[:half], *long[1::2], *rest[half:]]


def told_by_tokenizer() -> dict[str, object]:
    """What a test could change of the tokenizer that all share."""
    shared = tiny.tokenizer()
    told = {name: getattr(shared, name) for name in ("chat_template", "name_or_path", "eos_token")}
    return {**told, "length": len(shared), "padding_side": shared.padding_side}


AS_MADE = told_by_tokenizer()


@pytest.fixture(autouse=True)
def shared_tokenizer() -> Iterator[None]:
    """A test that changes the tokenizer of all tests fails, and not another one after it."""
    yield
    assert told_by_tokenizer() == AS_MADE, "tiny.tokenizer() is changed; copy.deepcopy it first"


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


@pytest.fixture(scope="session")
def make_method(
    tmp_path_factory: pytest.TempPathFactory, corpus: str, stats_dir: str
) -> quick.Maker:
    """Makes a method by its name, with the quick settings of ``cases.py``."""
    return quick.Maker(tmp_path_factory.mktemp("archives"), corpus, stats_dir)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk."""
    place = tmp_path_factory.mktemp("model") / "tiny-llama"
    tiny.model("llama").save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return place


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    """Let no file of this process grow beyond a size: the kernel's own refusal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[outer.Script]:
    """Call the script with the user's cache; logging and the environment are put back."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    loggers = [logging.getLogger(name) for name in (None, "easyeditor")]
    levels = [logger.level for logger in loggers]
    yield outer.Script(monkeypatch, capsys)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def easyedit(script: outer.Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> outer.Script:
    """Call the script with an empty cache."""
    monkeypatch.setenv("EASYEDITOR_CACHE", str(tmp_path / "cache"))
    return script
