"""The trainer: the examples of its cases, and its loop on a learner that could not be simpler."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import easyeditor.methods.training as by_name
import outer
from easyeditor import Case, Edit, EditTrainer, Probe
from easyeditor.errors import DivergedError, UnknownMethodError
from easyeditor.methods.learning import TrainingHyperParams, examples
from easyeditor.registry import Registry
from support import lm
from training_child import CASES

# -- examples ---------------------------------------------------------------------------------


def test_every_probe_is_seen_once_per_round():
    def asked(kind, *prompts):
        return tuple(Probe(p, ("x",), kind) for p in prompts)

    probes = asked("rephrase", "r0", "r1") + asked("locality/a", "n0", "n1", "n2", "n3", "n4")
    case = Case("c", Edit("p", "t"), (*asked("portability/x", "q"), *probes))
    made = examples([case])
    assert [[p.prompt for p in one.probes] for one in made] == [
        ["r0", "n0"],
        ["r1", "n1"],
        ["r0", "n2"],
        ["r1", "n3"],
        ["r0", "n4"],
    ]
    assert len({one.id for one in made}) == 5
    assert [[p.prompt for p in one.probes] for one in examples([case], once=True)] == [["r0", "n0"]]
    assert examples([case])[0].edit is case.edit


# -- the loop, on a learner that could not be simpler -----------------------------------------


class Toy:
    """Learns one number: the mean length of the prompts."""

    class Hparams(TrainingHyperParams):
        alg_name: str = "TOY"

    training_class: ClassVar[type[TrainingHyperParams]] = Hparams
    seen: ClassVar[list[list[str]]] = []
    poison: ClassVar[int | None] = None
    script: ClassVar[Iterator[float]] = iter(())

    def __init__(self, config: TrainingHyperParams) -> None:
        self.module = nn.Linear(1, 1, bias=False)
        self.own = nn.Parameter(torch.zeros(1))
        self.module.register_parameter("own", self.own)
        with torch.no_grad():
            self.module.weight.zero_()

    @classmethod
    def learner(cls, _lm: Any, config: TrainingHyperParams) -> Toy:
        return cls(config)

    def prepare(self, cases: Any) -> None:
        pass

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.module.weight], "lr": 0.5}, {"params": [self.own], "lr": 0.25}]

    def loss(self, cases: Any) -> dict[str, torch.Tensor]:
        Toy.seen.append([case.id for case in cases])
        wanted = torch.tensor([[float(len(case.edit.prompt.text))] for case in cases])
        gap = self.module.weight - wanted + self.own
        scale = float("nan") if len(Toy.seen) == Toy.poison else 1.0
        return {"loss": scale * gap.square().mean(), "gap": gap.detach().mean()}

    @torch.no_grad()
    def validate(self, cases: Any) -> dict[str, float]:
        return {"edit_loss": next(Toy.script, 1.0), "rewrite": self.module.weight.item()}

    def untrained(self) -> None:
        return None

    def save(self, folder: Path) -> Path:
        file = folder / "toy.json"
        file.write_text(json.dumps([self.module.weight.item(), self.own.item()]))
        return file


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """Train it; returns the two numbers and the result."""
    known = Registry("method", UnknownMethodError, {"TOY": f"{__name__}:Toy"})
    monkeypatch.setattr(by_name, "METHODS", known)
    monkeypatch.setattr(Toy, "seen", [])
    monkeypatch.setattr(Toy, "poison", None)

    def run(**changes):
        usual = {"results_dir": str(tmp_path), "opt": "SGD", "grad_clip": None, "max_iters": 1}
        settings = Toy.Hparams(**{**usual, **changes})
        result = EditTrainer(settings, CASES, CASES, lm=lm("gpt2")).run()
        return json.loads(result.path.read_text()), result

    return run


def test_groups_have_their_own_step_sizes(toy):
    (weight, own), _ = toy(batch_size=8)
    mean = sum(len(case.edit.prompt.text) for case in CASES) / len(CASES)
    assert weight == pytest.approx(0.5 * 2 * mean, rel=1e-5)
    assert own == pytest.approx(0.25 * 2 * mean, rel=1e-5)


def test_accumulated_batches_are_one_large_batch(toy):
    one, _ = toy(batch_size=8)
    parts, _ = toy(batch_size=2, accumulate_bs=4, max_iters=4)
    assert len(Toy.seen) == 5
    assert sorted(name for batch in Toy.seen[1:] for name in batch) == sorted(Toy.seen[0])
    assert parts == pytest.approx(one, rel=1e-5)


def test_gradients_are_clipped(toy):
    (weight, own), _ = toy(batch_size=8, grad_clip=1.0)
    assert weight == pytest.approx(0.5 / 2**0.5, rel=1e-4)
    assert own == pytest.approx(0.25 / 2**0.5, rel=1e-4)


def test_every_round_shows_every_case_in_another_order(toy):
    toy(batch_size=4, max_iters=4)
    first, second = (Toy.seen[i] + Toy.seen[i + 1] for i in (0, 2))
    assert sorted(first) == sorted(second) == sorted(case.id for case in CASES)
    assert first != second != [case.id for case in CASES]


def test_it_stops_when_held_out_cases_gain_nothing(toy):
    _, result = toy(max_iters=100, val_interval=5, early_stop_patience=15, batch_size=4)
    assert result.steps == 20  # the first validation is the best; three more bring nothing


def test_the_best_state_is_kept_also_when_later_ones_are_worse(toy, monkeypatch):
    monkeypatch.setattr(Toy, "script", iter([3.0, 2.0, 5.0, 2.5]))
    (weight, _), result = toy(max_iters=4, val_interval=1, batch_size=4)
    evaluate_cases = [record for record in result.history if "eval_edit_loss" in record]
    assert [record["eval_edit_loss"] for record in evaluate_cases] == [3.0, 2.0, 5.0, 2.5]
    assert weight == evaluate_cases[1]["eval_rewrite"]
    assert weight != evaluate_cases[3]["eval_rewrite"]


def test_the_step_size_may_decay(toy):
    toy(lr_schedule="linear", max_iters=4, log_interval=1)
    _, result = toy(lr_schedule="cosine", max_iters=4, log_interval=1)
    rates = [record["learning_rate"] for record in result.history if "learning_rate" in record]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.6 * rates[0]


@pytest.mark.parametrize("opt", ["Adam", "AdamW", "SGD"])
def test_optimisers(toy, opt):
    (weight, _), _ = toy(opt=opt)
    assert weight != 0


def test_a_loss_that_is_no_number_ends_it_and_the_checkpoint_stands(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(Toy, "poison", 6)
    with pytest.raises(DivergedError, match=r"nan at step 5.*Lower lr"):
        toy(max_iters=10, val_interval=2)
    assert [*tmp_path.rglob("checkpoint-4/trainer_state.json")]
    assert not [*tmp_path.rglob("toy.json")]


def test_the_trainer_names_no_method():
    for file in (outer.SOURCE / "train").glob("*.py"):
        assert "mend" not in file.read_text(encoding="utf-8").lower()
