"""MEND's networks as after some training, and an archive of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from easyeditor import LM, Case, MENDTrainingHparams
from easyeditor.lm.tokens import Row
from easyeditor.methods.mend.learner import MENDLearner
from learning_cases import CASES
from support import lm
from tiers import STRUCTURAL

BFLOAT16 = ("llama", "gpt2", "t5")
both = [(name, torch.float32) for name in tiny.CONFIGS] + [(n, torch.bfloat16) for n in BFLOAT16]
every = pytest.mark.parametrize(
    ("family", "dtype"),
    [
        pytest.param(
            *pair,
            id=f"{pair[0]}-{str(pair[1])[6:]}",
            marks=() if pair[0] in STRUCTURAL else pytest.mark.slow,
        )
        for pair in both
    ],
)


def stirred(target: LM, **changes: Any) -> MENDLearner:
    """A learner as after some training: statistics of the cases, weights no longer the first."""
    learner = MENDLearner(target, MENDTrainingHparams(**{"edit_lr": 2e-3, **changes}))
    learner.network.train()
    learner.loss(CASES)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in learner.network.named_parameters():
            if name != "rates":
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    learner.network.eval()
    return learner


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a stirred learner beside the tiny gpt2."""
    return stirred(lm("gpt2")).save(tmp_path_factory.mktemp("archive"))


def rows_of(target: LM, cases: Sequence[Case] = CASES) -> list[Row]:
    """Prompt and target of every case, as tokens."""
    return [target.text.row(case.edit.prompt, case.edit.target) for case in cases]
