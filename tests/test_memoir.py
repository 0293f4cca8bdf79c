"""MEMOIR: masks, the sum of increments, the router's overlap, what undoing an edit takes off."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from easyeditor import MEMOIRHyperParams
from easyeditor.errors import DivergedError
from easyeditor.lm.forward.context import ForwardContext
from easyeditor.lm.inference import score
from easyeditor.methods.memoir import (
    MEMOIR,
    ResidualMemories,
    ResidualMemory,
    prompt_mean,
    weight_of,
)
from easyeditor.patches.stack import applied
from support import EDITS, Snapshot, lm

PATH = "model.layers.1.mlp.down_proj"
QUICK: dict[str, Any] = {
    "layers": [1],
    "n_iter": 20,
    "edit_lr": 3.0,
    "context_template_length_params": ((2, 1),),
}


def memory(selected: list[int], rows: list[int], value: float) -> ResidualMemory:
    values = torch.full((len(rows), 2), value)
    return ResidualMemory(
        torch.tensor(selected), torch.tensor(rows), values, torch.zeros(4), threshold=0.5
    )


def test_the_nearest_mask_answers_with_the_sum_of_all_increments() -> None:
    both = ResidualMemories([memory([0, 1], [2, 3], 1.0), memory([1, 2], [3, 0], 10.0)])
    assert both.weight.tolist() == [[10, 10], [0, 0], [1, 1], [11, 11]]
    x = torch.tensor([[[9.0, 8.0, 1.0, 2.0]], [[0.0, 8.0, 9.0, 1.0]], [[0.0, 1.0, 1.0, 9.0]]])
    y = torch.zeros(3, 1, 2)
    context = ForwardContext(torch.ones(3, 1), torch.zeros(3, dtype=torch.long))
    assert both.route(x, context).tolist() == [0, 1, 1]  # of the third's two inputs one is there
    assert both(x, y, context)[:, 0, 0].tolist() == [1 * 1 + 2 * 11, 1 * 11, 9 * 11]
    both.threshold = 0.9
    assert both.route(x, context).tolist() == [0, 1, -1]


def test_the_first_token_of_a_longer_prompt_is_not_read() -> None:
    assert prompt_mean(torch.tensor([[9.0], [1.0], [3.0]])).tolist() == [2.0]
    assert prompt_mean(torch.tensor([[9.0]])).tolist() == [9.0]


def test_an_edit_makes_its_answer_more_probable_and_undone_takes_its_increment_off() -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    method = MEMOIR(MEMOIRHyperParams(**QUICK))
    state = method.initial_state(target)
    pair = [(EDITS[0].prompt, EDITS[0].target)]
    (plain,) = score(target, pair)
    first = method.edit(target, EDITS[:1], state).patch
    with applied(target.model, first):
        (edited,) = score(target, pair)
        second = method.edit(target, EDITS[1:2], state).patch
    assert edited.mean_logprob > plain.mean_logprob + 1
    (one,), (two,) = first.adapters[PATH], second.adapters[PATH]
    assert torch.equal(weight_of([one, two]), weight_of([one]) + weight_of([two]))
    assert torch.equal(weight_of([two])[two.rows.long()], two.values)
    alone = method.edit(target, EDITS[1:2], state).patch
    assert not torch.equal(alone.adapters[PATH][0].values, two.values)  # it was trained on the sum
    assert before.differences(target.model) == []


def test_the_state_holds_the_permutation_and_the_background() -> None:
    target = lm("llama")
    state = MEMOIR(MEMOIRHyperParams(**QUICK)).initial_state(target)
    assert sorted(state.permutation.tolist()) == list(range(64))
    assert state.background.shape == (64,)
    other = MEMOIR(MEMOIRHyperParams(**QUICK, seed=1)).initial_state(target)
    assert not torch.equal(other.permutation, state.permutation)


def test_a_loss_that_is_no_number_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    loss = torch.full((2,), float("nan"), requires_grad=True)
    monkeypatch.setattr("easyeditor.methods.memoir.target_nll", lambda *_given: loss)
    with pytest.raises(DivergedError, match="Lower edit_lr"):
        MEMOIR(MEMOIRHyperParams(**QUICK)).edit(target, EDITS[:1])
    assert before.differences(target.model) == []


def test_a_memory_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="outside of the layer's 4"):
        memory([0, 4], [0, 1], 1.0)
    with pytest.raises(ValueError, match="2 inputs, 1 rows"):
        memory([0, 1], [0], 1.0)
