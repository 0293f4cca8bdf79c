"""Neurons beside an MLP: what they add and where; the methods that train them; undo."""

from __future__ import annotations

import pytest
import torch

from easyeditor import CaliNetHyperParams, Edit, TPatcherHyperParams
from easyeditor.errors import ContradictingEditsError, HyperParamsError
from easyeditor.lm.forward.context import ForwardContext
from easyeditor.lm.inference import score
from easyeditor.methods.calinet import CaliNet
from easyeditor.methods.extra_neurons import ExtraNeurons
from easyeditor.methods.t_patcher import TPatcher, _start
from easyeditor.patches.module import adapters_at
from easyeditor.patches.stack import applied, applied_patches
from support import EDITS, Snapshot, lm

SITE = "model.layers.1.mlp"
QUICK = {"layers": [1], "n_iter": 8, "edit_lr": 0.2, "memory_factor": 1.0, "memory_prompts": 20}


def carried(model: torch.nn.Module) -> list[ExtraNeurons]:
    """The neurons that act beside the MLP."""
    return list(adapters_at(applied_patches(model))[SITE])


def neurons(key: list[float], bias: float, value: list[float], activation: str) -> ExtraNeurons:
    inputs = torch.zeros(0, len(key))
    tensors = torch.tensor([key]), torch.tensor([bias]), torch.tensor([value]), inputs
    return ExtraNeurons(*tensors, activation=activation)


def test_a_neuron_adds_its_value_where_its_key_fits() -> None:
    one = neurons([1.0, 0.0], -1.0, [1.0, 2.0, 3.0], "relu")
    x = torch.tensor([[[3.0, 9.0], [1.0, 0.0], [5.0, 0.0]]])
    y = torch.tensor([[[0.1, 0.2, 0.3]] * 3])
    context = ForwardContext(torch.tensor([[1, 1, 0]]), torch.tensor([1]))
    result = one(x, y, context)
    assert torch.equal(result[0, 0], y[0, 0] + torch.tensor([2.0, 4.0, 6.0]))
    assert torch.equal(result[0, 1:], y[0, 1:])  # silent, and padding
    assert one(-x, y, context) is y
    assert not torch.equal(neurons([1.0, 0.0], 0, [1.0, 1, 1], "gelu")(-x, y, context), y)


def test_neurons_of_several_edits_add_up() -> None:
    first = neurons([1.0, 0.0], 0, [1.0, 0.0], "relu")
    second = neurons([0.0, 1.0], 0, [0.0, 1.0], "relu")
    x, y = torch.tensor([[[2.0, 3.0]]]), torch.zeros(1, 1, 2)
    context = ForwardContext(torch.ones(1, 1), torch.zeros(1, dtype=torch.long))
    both = ExtraNeurons.merge([first, second])
    assert both(x, y, context).tolist() == [[[2, 3]]]
    other = ExtraNeurons.merge([first, neurons([0.0, 1.0], 0, [0.0, 1.0], "silu")])
    assert other(x, y, context)[0, 0, 0] == 2


@pytest.mark.parametrize(
    "changes",
    [{"activation": "tanh"}, {"biases": torch.zeros(2)}, {"inputs": torch.zeros(1, 3)}],
)
def test_tensors_that_are_no_neurons_are_refused(changes: dict[str, object]) -> None:
    tensors = {
        "keys": torch.zeros(1, 2),
        "biases": torch.zeros(1),
        "values": torch.zeros(1, 2),
        "inputs": torch.zeros(0, 2),
    }
    with pytest.raises(ValueError, match=r"activation|shapes"):
        ExtraNeurons(**{**tensors, **changes})


def test_keys_start_at_one_on_the_query_and_under_zero_on_text() -> None:
    draw = torch.Generator().manual_seed(0)
    memory, query = torch.randn(400, 16, generator=draw), torch.randn(1, 16, generator=draw)
    no_answer = torch.zeros(1, 400, dtype=torch.bool)
    keys, biases = _start(query, memory, no_answer, 1e-3)
    assert float((query @ keys.T + biases)[0, 0]) == pytest.approx(1, abs=1e-4)
    outside = memory @ keys.T + biases
    assert float((outside < 0).float().mean()) > 0.9
    published, zero = _start(query, memory, no_answer, None)
    assert float(query @ published.T) == pytest.approx(1)
    assert zero.tolist() == [0.0]


def test_there_is_a_neuron_for_each_wrong_token_and_undone_they_are_gone() -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    method = TPatcher(TPatcherHyperParams(**QUICK))
    state = method.initial_state(target)
    first = method.edit(target, EDITS[:1], state).patch
    pair = [(EDITS[0].prompt, EDITS[0].target)]
    (plain,) = score(target, pair)
    (one,) = first.adapters[SITE]
    wrong = sum(a != b for a, b in zip(plain.argmax, plain.target, strict=True))
    assert len(one.keys) == wrong == len(one.inputs)
    with applied(target.model, first):
        (edited,) = score(target, pair)
        second = method.edit(target, EDITS[1:2], state).patch
    assert edited.mean_logprob > plain.mean_logprob + 1
    alone = method.edit(target, EDITS[1:2], state).patch  # without the first edit's inputs
    (two,) = second.adapters[SITE]
    assert not torch.equal(alone.adapters[SITE][0].keys, two.keys)
    first.apply(target.model)
    second.apply(target.model)
    first.revert(target.model)
    assert [a.keys.tolist() for a in carried(target.model)] == [two.keys.tolist()]
    second.revert(target.model)
    assert before.differences(target.model) == []


def test_one_network_learns_all_facts_from_the_unedited_model() -> None:
    target = lm("gpt2")
    before = Snapshot(target.model)
    settings = {"layers": [1], "n_neurons": 8, "n_iter": 12, "edit_lr": 0.1}
    lengths = {"context_template_length_params": ((2, 1),)}
    method = CaliNet(CaliNetHyperParams(**settings, **lengths))
    pairs = [(edit.prompt, edit.target) for edit in EDITS]
    plain = score(target, pairs)
    patch = method.edit(target, EDITS).patch
    with applied(target.model, patch):
        edited = score(target, pairs)
    assert all(b.mean_logprob > a.mean_logprob + 0.3 for a, b in zip(plain, edited, strict=True))
    (adapter,) = patch.adapters["transformer.h.1.mlp"]
    assert adapter.keys.shape[0] == 8
    assert adapter.inputs.shape[0] == 0
    assert before.differences(target.model) == []


def test_what_cannot_be_learnt_is_refused_before_the_model_is_run() -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    twice = [EDITS[0], Edit(EDITS[0].prompt, "somewhere else")]
    with pytest.raises(ContradictingEditsError):
        CaliNet(CaliNetHyperParams(layers=[1])).edit(target, twice)
    with pytest.raises(HyperParamsError, match="activation"):
        TPatcherHyperParams(activation="tanh")
    assert before.differences(target.model) == []
