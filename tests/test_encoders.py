"""Networks that a file describes: none larger than the file, and no code on a file's word."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from easyeditor.encoders.network_config import config_of, language_model, reader
from easyeditor.encoders.sentence_encoder import TRUSTED, Sentences
from easyeditor.errors import ModelLoadError


@pytest.fixture
def described() -> tuple[dict[str, Any], dict[str, torch.Size]]:
    model = tiny.model("gpt_neo")
    return config_of(model), {name: tensor.shape for name, tensor in model.state_dict().items()}


def test_a_described_network_is_built_and_filled(described: Any) -> None:
    config, shapes = described
    model = language_model(config, shapes)
    model.load_state_dict(tiny.model("gpt_neo").state_dict())
    assert reader(config, shapes).config.hidden_size == 32


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 12_000_000},
        {"num_layers": 200_000, "attention_types": [[["global"], 200_000]]},
        {"hidden_size": 100_000},
        {"max_position_embeddings": 50_000},
        {"intermediate_size": 10**9},
    ],
)
def test_a_network_larger_than_its_file_is_refused_at_once(
    described: Any, changes: dict[str, Any]
) -> None:
    config, shapes = described
    start = time.process_time()
    with pytest.raises(ValueError, match=r"the file holds|for a file of"):
        language_model({**config, **changes}, shapes)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "changes",
    [{"model_type": "nothing"}, {"num_heads": 0}, {"hidden_size": "wide"}, {"hidden_size": -4}],
)
def test_a_damaged_description_is_a_value_error(described: Any, changes: dict[str, Any]) -> None:
    config, shapes = described
    for build in (language_model, reader):
        with pytest.raises(ValueError, match="cannot be built"):
            build({**config, **changes}, shapes)
    with pytest.raises(ValueError, match="cannot be built"):
        reader({}, shapes)


def encoder_folder(folder: Path) -> Path:
    """An encoder whose only part is a class that lies beside it and leaves a trace when run."""
    folder.mkdir()
    trace = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
    (folder / "own.py").write_text(trace)
    parts = [{"idx": 0, "name": "0", "path": "", "type": "own.Part"}]
    (folder / "modules.json").write_text(json.dumps(parts))
    return folder


def test_an_encoder_that_only_a_file_names_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = encoder_folder(tmp_path / "encoder")
    with pytest.raises(ModelLoadError, match=rf"on the word of a file.*{TRUSTED}="):
        Sentences(str(folder), from_file=True).encode(["a"])
    monkeypatch.setenv(TRUSTED, str(folder))
    for encoder in (Sentences(str(folder), from_file=True), Sentences(str(folder))):
        with pytest.raises(ModelLoadError, match=r"own\.Part, code that comes with it"):
            encoder.encode(["a"])
    assert not (folder / "ran").exists()
