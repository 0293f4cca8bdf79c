"""Helpers of the tests that use EasyEdit from outside: editors on tiny models, bits, the script."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import support
import tiny
from cases import plain_values
from easyeditor import BaseEditor
from easyeditor.hyperparams import HyperParams
from easyeditor.methods import METHODS

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "easyeditor"

PROMPT, SUBJECT, TARGET = "The mother tongue of Anna Lind is", "Anna Lind", "French"
FACTS = (
    (PROMPT, SUBJECT, TARGET),
    ("The Eiffel Tower is located in the city of", "The Eiffel Tower", "Rome"),
    ("Berlin is the capital of", "Berlin", "Italy"),
)
PROMPTS, SUBJECTS, TARGETS = (list(column) for column in zip(*FACTS, strict=True))

EDITING = ("edit", "--method", "FT", "--prompt", PROMPT, "--target", TARGET, "--subject", SUBJECT)


def settings(method: str = "FT", **changes: Any) -> HyperParams:
    """Cheap hyper-parameters for a tiny model, from the table of cases."""
    return METHODS.get(method).hyperparams_class(**plain_values(method, **changes))


def editor(method: str = "FT", family: str = "llama", **changes: Any) -> BaseEditor:
    """An editor of a fresh tiny model; equal arguments give equal models."""
    return BaseEditor.from_pretrained(
        tiny.model(family), tiny.tokenizer(), settings(method, **changes)
    )


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every weight and buffer."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, torch.Tensor]) -> list[str]:
    """Names of the weights that have not the bits they had; a NaN equals itself."""
    now = model.state_dict()
    assert now.keys() == before.keys()
    return [
        name
        for name, old in before.items()
        if now[name].dtype != old.dtype or not torch.equal(_bytes(now[name]), _bytes(old))
    ]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(torch.uint8)


def logits(model: nn.Module, prompt: str = PROMPT) -> torch.Tensor:
    """Logits of one prompt, ``(length, vocabulary)``."""
    return support.logits(model, prompt)[0]


def said(model: nn.Module, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """The answer's tokens and the argmax before each: one prompt, one pass, nothing padded."""
    tokenizer = tiny.tokenizer()
    if model.config.is_encoder_decoder:
        labels = tokenizer(answer, return_tensors="pt")["input_ids"]
        asked = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out = model(input_ids=asked, labels=labels).logits[0]
        return labels[0].tolist(), out.argmax(-1).tolist()
    ids = tokenizer(f"{prompt} {answer}")["input_ids"]
    start = first_token(prompt, answer)
    best = logits(model, f"{prompt} {answer}")[start - 1 : -1].argmax(-1)
    return ids[start:], best.tolist()


def first_token(prompt: str, answer: str) -> int:
    """Index of the first token that reaches beyond the prompt; a space of its own counts."""
    offsets = tiny.tokenizer()(f"{prompt} {answer}", return_offsets_mapping=True)["offset_mapping"]
    return next(i for i, (_, end) in enumerate(offsets) if end > len(prompt))


def share(these: Iterable[int], those: Iterable[int]) -> float:
    """Share of places at which two lists agree."""
    pairs = list(zip(these, those, strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


@dataclass(frozen=True)
class Said:
    """What the script left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


class Script:
    """Calls ``easyedit`` through its real entry point, in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *words: object) -> Said:
        """Run ``easyedit WORDS``; anything but a clean exit goes up as it is."""
        from easyeditor.cli.app import app
        from easyeditor.cli.main import main

        app.registered_commands.clear()  # main() registers; a process calls it once
        app.registered_groups.clear()
        self._monkeypatch.setattr(sys, "argv", ["easyedit", *map(str, words)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        told = self._capsys.readouterr()
        return Said(int(left.value.code or 0), told.out, told.err)
