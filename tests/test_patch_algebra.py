"""The algebra of patches, on synthetic ones: exact to the bit whatever comes and goes.

No edit is made here: a patch is a few random numbers, of every kind of part, on every structural
class of model and in two precisions.
"""

from __future__ import annotations

import copy
import gc
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from easyeditor import LM, load_patch, save_patch
from easyeditor.errors import PatchMismatchError, PatchStateError
from easyeditor.lm.originals import originals_of
from easyeditor.patches.adapter import AddVector
from easyeditor.patches.batched import applied_per_row
from easyeditor.patches.copies import edited_copy
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.parts import Dense, LowRank, part_of, stored_transposed
from easyeditor.patches.patch import merge
from easyeditor.patches.stack import applied, collapse, is_patched, stack_of, without_patches
from easyeditor.patches.weight import WeightPatch
from easyeditor.patches.weight_sum import FEW
from support import Snapshot, lm, logits, same_bits, shared_lm
from synthetic import KINDS, differing, info, patch, weights
from tiers import STRUCTURAL

DTYPES = [torch.float32, torch.bfloat16]


# -- one patch --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", STRUCTURAL)
def test_a_patch_is_one_rounded_sum_and_is_undone_exactly(
    family: str, kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    target = lm(family, dtype)
    before, clean = Snapshot(target.model), weights(target)
    one = patch(target, kind, 1)
    one.apply(target.model)
    after = weights(target)
    for path, own in one.entries.items():
        owner, _, name = path.rpartition(".")
        turned = stored_transposed(target.model.get_submodule(owner), name)
        expected = clean[path].float()
        for part in own:
            change = part.dense()
            expected = expected + (change.T if turned else change)
        assert same_bits(after[path], expected.to(dtype))
    assert differing(clean, after) == sorted(one.entries, key=list(clean).index)
    one.revert(target.model)
    assert before.differences(target.model) == []
    assert not is_patched(target.model)

    again = load_patch(save_patch(one, tmp_path / "patch.safetensors"))
    again.apply(target.model)
    assert differing(after, weights(target)) == []
    again.revert(target.model)
    assert before.differences(target.model) == []


# -- several ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("count", [4, FEW, FEW + 1, 3 * FEW])
def test_any_order_of_undoing_gives_what_the_rest_alone_gives(
    family: str, dtype: torch.dtype, count: int
) -> None:
    target, fresh = lm(family, dtype), lm(family, dtype)
    clean = Snapshot(target.model)
    kinds = random.Random(count)
    patches = [patch(target, kinds.choice(KINDS), seed) for seed in range(count)]
    for one in patches:
        one.apply(target.model)
    left = list(patches)
    order = list(patches)
    random.Random(1).shuffle(order)
    for i, one in enumerate(order):
        one.revert(target.model)
        left.remove(one)
        if i % 3 == 0:
            for each in left:
                each.apply(fresh.model)
            assert differing(weights(target), weights(fresh)) == []
            for each in left:
                each.revert(fresh.model)
    assert clean.differences(target.model) == []
    assert differing(weights(fresh), weights(target)) == []


@pytest.mark.parametrize("count", [3, FEW + 4])
def test_a_merged_sequence_has_the_bits_of_the_sequence(count: int, tmp_path: Path) -> None:
    one, two, three = (lm("llama") for _ in range(3))
    patches = [patch(one, KINDS[i % 4], i) for i in range(count)]
    for each in patches:
        each.apply(one.model)
    whole = merge(patches)
    whole.apply(two.model)
    load_patch(save_patch(whole, tmp_path / "all.safetensors")).apply(three.model)
    assert differing(weights(one), weights(two)) == []
    assert differing(weights(one), weights(three)) == []
    former = weights(one)
    collapse(one.model, patches, whole)
    assert stack_of(one.model).patches == (whole,)
    assert differing(weights(one), former) == []
    whole.revert(one.model)
    assert differing(weights(one), weights(shared_lm("llama"))) == []


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e9])
def test_numbers_of_every_size_are_undone_exactly(size: float) -> None:
    target = lm("llama")
    clean = Snapshot(target.model)
    path = target.projection(0).path
    patches = []
    for seed in range(2 * FEW):
        plain = patch(target, "low", seed, (0,)).entries[path][0]
        scale = size if seed % 2 else 1.0
        patches.append(WeightPatch({path: (LowRank(plain.u * scale, plain.v),)}, info(target)))
    for one in patches:
        one.apply(target.model)
    fresh = lm("llama")
    for one in patches[:FEW] + patches[-2:]:
        one.revert(target.model)
    for one in patches[FEW:-2]:
        one.apply(fresh.model)
    assert differing(weights(target), weights(fresh)) == []
    for one in patches[FEW:-2]:
        one.revert(target.model)
    assert clean.differences(target.model) == []


def test_the_exact_sum_is_closer_than_a_chain_of_additions() -> None:
    target = lm("llama")
    path = target.projection(0).path
    original = target.model.get_parameter(path).detach().clone()
    patches = [patch(target, "dense", seed, (0,)) for seed in range(60)]
    chain, exact = original.clone(), original.double()
    for one in patches:
        one.apply(target.model)
        chain += one.dense(path).T
        exact += one.dense(path).double().T
    error = (target.model.get_parameter(path).detach().double() - exact).abs().max()
    assert error <= (chain.double() - exact).abs().max()
    assert torch.equal(target.model.get_parameter(path).detach(), exact.float())


# -- for a while ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 2, FEW + 2])
def test_what_is_applied_for_a_while_leaves_nothing(count: int) -> None:
    target = lm("gpt2")
    patches = [patch(target, "low", seed) for seed in range(count)]
    for one in patches:
        one.apply(target.model)
    before, clean = Snapshot(target.model), weights(shared_lm("gpt2"))
    with applied(target.model, patch(target, "dense", 50)):
        assert len(stack_of(target.model).patches) == count + 1
        with applied(target.model, patch(target, "low", 51)):
            assert before.differences(target.model) != []
        with without_patches(target.model):
            assert differing(weights(target), clean) == []
            assert not is_patched(target.model)
    assert before.differences(target.model) == []
    assert stack_of(target.model).patches == tuple(patches)
    with pytest.raises(ZeroDivisionError), applied(target.model, patch(target, "low", 52)):
        raise ZeroDivisionError
    assert before.differences(target.model) == []


def test_the_stack_may_be_changed_inside() -> None:
    target, fresh = lm("llama"), lm("llama")
    first, short, lasting = (patch(target, "low", seed) for seed in range(3))
    first.apply(target.model)
    with applied(target.model, short):
        lasting.apply(target.model)
    assert stack_of(target.model).patches == (first, lasting)
    with without_patches(target.model):
        short.apply(target.model)
    assert stack_of(target.model).patches == (first, lasting, short)
    for one in (first, lasting, short):
        one.apply(fresh.model)
    assert differing(weights(target), weights(fresh)) == []


@pytest.mark.parametrize("count", [0, 2])
def test_a_patch_may_be_undone_inside_its_own_block(count: int) -> None:
    target = lm("llama")
    others = [patch(target, "low", seed) for seed in range(count)]
    for one in others:
        one.apply(target.model)
    before, short = weights(target), patch(target, "dense", 9)
    with applied(target.model, short):
        short.revert(target.model)
        assert differing(before, weights(target)) == []
    assert stack_of(target.model).patches == tuple(others)
    assert differing(before, weights(target)) == []


def test_what_a_change_replaced_is_not_stored_once_it_is_done() -> None:
    target = lm("llama")
    one, two = patch(target, "low", 0), patch(target, "dense", 1)
    for step in (one.apply, two.apply, one.revert, one.apply, two.revert, one.revert):
        step(target.model)
        assert originals_of(target.model).journal.weights == {}
    with applied(target.model, one):
        pass
    assert originals_of(target.model).journal.weights == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_parts_in_half_precision_are_float32_before_they_are_added(dtype: torch.dtype) -> None:
    one, other = lm("llama"), lm("llama")
    path = one.projection(0).path
    halves = [
        {name: getattr(part, name).to(dtype) for name in part.fields}
        for kind in ("low", "dense")
        for part in patch(one, kind, 2, (0,)).entries[path]
    ]
    parts = tuple(part_of(fields) for fields in halves)
    assert all(getattr(part, name).dtype == torch.float32 for part in parts for name in part.fields)
    WeightPatch({path: parts}, info(one)).apply(one.model)
    wide = (LowRank(**{k: t.float() for k, t in halves[0].items()}),)
    wide += (Dense(**{k: t.float() for k, t in halves[1].items()}),)
    WeightPatch({path: wide}, info(other)).apply(other.model)
    assert differing(weights(one), weights(other)) == []


# -- copies, files, refusals ------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, FEW + 2])
def test_a_copy_can_undo(count: int) -> None:
    import copy

    target = lm("llama")
    clean = weights(target)
    patches = [patch(target, "low", seed) for seed in range(count)]
    for one in patches:
        one.apply(target.model)
    carried = weights(target)
    more = patch(target, "dense", 90)
    for twin in (copy.deepcopy(target.model), edited_copy(target.model, more)):
        for one in [*stack_of(twin).patches]:
            one.revert(twin)
        assert differing(clean, dict(twin.named_parameters())) == []
        assert differing(carried, weights(target)) == []
    patches[0].revert(target.model)


def test_extras_are_saved_and_merged(tmp_path: Path) -> None:
    target = shared_lm("llama")
    path = target.projection(0).path

    def with_key(seed: int, *names: str) -> WeightPatch:
        plain = patch(target, "low", seed, (0,))
        extras = {name: torch.full((1, 4), float(seed)) for name in names}
        return WeightPatch({path: plain.entries[path]}, plain.info, extras)

    both = merge([with_key(1, "keys", "other"), with_key(2, "keys")])
    assert both.extras["keys"][:, 0].tolist() == [1.0, 2.0]
    assert set(both.extras) == {"keys"}
    again = load_patch(save_patch(both, tmp_path / "both.safetensors"))
    assert torch.equal(again.extras["keys"], both.extras["keys"])
    assert again.entries.keys() == both.entries.keys()


def test_one_file_is_applied_once(tmp_path: Path) -> None:
    target = lm("llama")
    one, other = patch(target, "low", 0), patch(target, "low", 1)
    file = save_patch(one, tmp_path / "one.safetensors")
    first = load_patch(file)
    first.apply(target.model)
    other.apply(target.model)
    before = Snapshot(target.model)
    for same in (load_patch(file), one):
        with pytest.raises(PatchStateError, match="same file"):
            same.apply(target.model)
    assert before.differences(target.model) == []


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("model.layers.0.mlp.down_proj.weight", Dense(torch.ones(3, 3))),
        ("model.layers.0.mlp.down_proj.weight", Dense(torch.ones(3))),
        ("model.norm.weight", Dense(torch.ones(3))),
        ("model.layers.9.mlp.down_proj.weight", Dense(torch.ones(3, 3))),
    ],
)
def test_what_does_not_fit_is_refused(path: str, part: Any) -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    with pytest.raises(PatchMismatchError, match="the model has"):
        WeightPatch({path: (part,)}, info(target)).apply(target.model)
    assert before.differences(target.model) == []
    assert not is_patched(target.model)


def test_a_patch_is_short_to_print() -> None:
    target = shared_lm("llama")
    one = patch(target, "low", 0)
    assert repr(one) == "<WeightPatch of synthetic: 1 edit>"
    assert len(repr(one.info)) < 300


def test_patches_that_are_undone_are_let_go() -> None:
    """Also by the sums of other weights, which they had never changed."""
    target = lm("llama")
    others = [patch(target, "low", seed, (0,)) for seed in range(2 * FEW)]
    for each in others:
        each.apply(target.model)
    last = patch(target, "low", 0, (1,))
    last.apply(target.model)
    for each in others:
        each.revert(target.model)
    (edited,) = originals_of(target.model).edited.values()
    assert list(edited.change.patches) == [last]
    names = {id(each) for each in others}
    del others, each
    gc.collect()
    alive = [item for item in gc.get_objects() if type(item) is WeightPatch]
    assert not names & {id(item) for item in alive}


@pytest.mark.parametrize("kind", ["weights", "adapter", "weights per row", "adapter per row"])
def test_a_deep_copy_of_an_edited_model_can_undo(kind: str) -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    down = target.projection(1)
    change: Any = patch(target, "low", 0, (1,))
    if kind.startswith("adapter"):
        vector = AddVector(torch.ones(down.d_out))
        change = ModulePatch({down.path.removesuffix(".weight"): (vector,)}, info(target))
    plain = logits(target.model)
    if kind.endswith("per row"):
        with applied_per_row(target, [change, None]):
            twin = copy.deepcopy(target.model)
            index = torch.tensor([0, 1])
            batch = target.pad([(5, 6, 7)] * 2)
            expected = target.call(batch, patch_of_row=index.tolist()).logits
            copied = LM(twin, target.tokenizer)
            assert same_bits(copied.call(batch, patch_of_row=index.tolist()).logits, expected)
        assert before.differences(target.model) == []
        again = target.call(batch, patch_of_row=index.tolist()).logits
        assert same_bits(again[0], again[1])
        assert same_bits(copied.call(batch, patch_of_row=index.tolist()).logits, expected)
        assert not same_bits(expected[0], expected[1])
        return
    change.apply(target.model)
    edited = logits(target.model)
    twin = copy.deepcopy(target.model)
    assert same_bits(logits(twin), edited)
    change.revert(twin)
    assert same_bits(logits(twin), plain)
    assert same_bits(logits(target.model), edited)
    change.revert(target.model)
    assert before.differences(target.model) == []
