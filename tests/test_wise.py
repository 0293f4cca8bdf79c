"""WISE: shards, merging by TIES, the router's threshold, what undoing an edit takes off."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from easyeditor import Edit, WISEHyperParams
from easyeditor.errors import DivergedError
from easyeditor.methods.wise.memory import (
    SideMemories,
    SideMemory,
    activations,
    packed,
    ties,
    unpacked,
)
from easyeditor.methods.wise.wise import WISE
from easyeditor.patches.stack import applied
from support import EDITS, Snapshot, lm

PATH = "model.layers.1.mlp.down_proj"
QUICK: dict[str, Any] = {
    "layers": [1],
    "n_iter": 5,
    "edit_lr": 3.0,
    "context_template_length_params": ((2, 1),),
}


def adapter_of(patch: Any) -> SideMemory:
    (adapter,) = patch.adapters[PATH]
    return adapter


def memory(shard: int, value: float, **changes: Any) -> SideMemory:
    mask = torch.tensor([[True, False], [True, True], [False, False]])
    given = {
        "ratio": 0.5,
        "merged": False,
        "shard_size": 1,
        "merge_size": 2,
        "density": 1.0,
        "d_out": 2,
        **changes,
    }
    return SideMemory(packed(mask), torch.full((3,), value), torch.eye(3), shard, **given)


def test_a_mask_is_packed_into_bits_and_back() -> None:
    mask = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) < 0.3
    assert len(packed(mask)) == 5
    assert torch.equal(unpacked(packed(mask), (7, 5)), mask)


def test_ties_trims_elects_and_averages() -> None:
    one, two = torch.tensor([[4.0, -1.0, 2.0]]), torch.tensor([[2.0, 3.0, 0.0]])
    assert ties([one, two], 1.0).tolist() == [[3.0, 3.0, 2.0]]
    assert ties([one, two], 0.5).tolist() == [[4.0, 3.0, 2.0]]  # two of three, one of two


def test_the_first_token_of_a_longer_prompt_is_not_read() -> None:
    delta = torch.eye(2)
    sizes = activations([torch.tensor([[9.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0]])], delta)
    assert sizes.tolist() == [5.0, 2.0]


def test_edits_fill_shards_and_merged_shards_are_one_memory() -> None:
    target = lm("llama")
    method = WISE(WISEHyperParams(**QUICK, save_freq=2, merge_freq=4))
    state = method.initial_state(target)
    for i in range(5):
        edit = Edit(f"Berlin {'is ' * i}the capital of", "Paris")
        method.edit(target, [edit], state).patch.apply(target.model)
    from easyeditor.patches.stack import applied_patches

    adapters = [adapter_of(patch) for patch in applied_patches(target.model)]
    assert [adapter.shard for adapter in adapters] == [0, 0, 1, 1, 2]
    masks = [adapter.where() for adapter in adapters]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2])
    assert len(SideMemory.merge(adapters).deltas) == 3
    for adapter in adapters:
        adapter.merged = True
    assert len(SideMemories(adapters).deltas) == 2  # two shards merged, and the open one
    assert len(SideMemories(adapters[:3]).deltas) == 2  # one finished shard waits for another


def test_retrieval_takes_the_memory_that_answers_most_over_its_threshold() -> None:
    both = SideMemories([memory(0, 1.0), memory(1, -2.0)])
    assert both.thresholds.tolist() == pytest.approx([0.5**0.5, 2**0.5], rel=1e-4)
    assert torch.equal(both.deltas[1], -2 * both.deltas[0])


def test_undoing_an_edit_takes_off_its_increment_and_its_prompt() -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    method = WISE(WISEHyperParams(**QUICK))
    first = method.edit(target, EDITS[:1]).patch
    first.apply(target.model)
    second = method.edit(target, EDITS[1:2]).patch
    second.apply(target.model)
    whole = SideMemory.merge([adapter_of(first), adapter_of(second)])
    expected = adapter_of(first).delta() + adapter_of(second).delta()
    assert torch.equal(whole.deltas[0], expected)
    first.revert(target.model)
    (hook,) = [
        hook
        for hook in target.model.get_submodule(PATH)._forward_hooks.values()
        if hasattr(hook, "adapters")
    ]
    assert torch.equal(hook.adapters[0].deltas[0], adapter_of(second).delta())
    second.revert(target.model)
    assert before.differences(target.model) == []


def test_margins_are_relative_to_the_layers_output_or_as_given() -> None:
    target = lm("llama")
    alpha, beta, gamma = WISE(WISEHyperParams(**QUICK)).initial_state(target).margins
    assert alpha == pytest.approx(beta / 4)
    assert gamma == pytest.approx(beta / 2)
    twice = WISE(WISEHyperParams(**QUICK, act_share=2.0)).initial_state(target).margins
    assert twice[1] == pytest.approx(2 * beta)
    given = WISEHyperParams(**QUICK, act_margin=[1, 2, 3])
    assert WISE(given).initial_state(target).margins == (1, 2, 3)


def test_the_edited_prompt_is_routed_and_its_answer_more_probable() -> None:
    from easyeditor.lm.inference import score

    target = lm("llama")
    method = WISE(WISEHyperParams(**{**QUICK, "n_iter": 20}))
    pair = [(EDITS[0].prompt, EDITS[0].target)]
    (before,) = score(target, pair)
    with applied(target.model, method.edit(target, EDITS[:1]).patch):
        (after,) = score(target, pair)
    assert after.mean_logprob > before.mean_logprob + 1


def test_a_step_that_is_too_large_is_an_error() -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    with pytest.raises(DivergedError, match="Lower edit_lr"):
        WISE(WISEHyperParams(**{**QUICK, "edit_lr": 1e30})).edit(target, EDITS[:1])
    assert before.differences(target.model) == []


def test_a_memory_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fill the mask"):
        SideMemory(
            packed(torch.ones(3, 2, dtype=torch.bool)),
            torch.zeros(2),
            torch.eye(3),
            **memory(0, 1.0).settings(),
        )
