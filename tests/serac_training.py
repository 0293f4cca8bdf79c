"""Quick trainings of SERAC beside tiny models, and their archives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny
from easyeditor import LM, EditTrainer, SERACTrainingHparams
from easyeditor.train.trainer import TrainingResult
from learning_cases import AGAIN, CASES, NEAR
from support import EDITS, lm

QUICK = {
    "lr": 3e-3,
    "head_lr": 1e-2,
    "batch_size": 3,
    "max_iters": 40,
    "val_interval": 40,
    "log_interval": 10,
    "cedit": 1.0,
}
PROMPTS = [*(e.prompt for e in EDITS), *AGAIN, *(near for near, _ in NEAR)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny network in a folder, for ``cls_name``."""
    place = tmp_path_factory.mktemp("encoder") / "tiny-gpt2"
    tiny.model("gpt2", seed=2).save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return str(place)


def train(target: LM, folder: Path, encoder: str, **changes: Any) -> TrainingResult:
    """A training on the three cases; ``changes`` are settings."""
    settings = SERACTrainingHparams(
        **{**QUICK, "cls_name": encoder, "results_dir": str(folder), **changes}
    )
    return EditTrainer(settings, CASES, CASES, lm=target).run()


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory, encoder: str) -> dict[str, Path]:
    """Trained beside the tiny gpt2 and the tiny t5."""
    place = tmp_path_factory.mktemp("archives")
    return {name: train(lm(name), place / name, encoder).path for name in ("gpt2", "t5")}
