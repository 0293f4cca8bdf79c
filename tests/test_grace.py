"""GRACE: when an entry answers, and what its radius is after entries come and go."""

from __future__ import annotations

import pytest
import torch

from easyeditor import Edit, GraceHyperParams
from easyeditor.errors import ContradictingEditsError
from easyeditor.lm.inference import score
from easyeditor.methods.grace import GAP, GRACE, ValueCodebook, radii
from easyeditor.patches.patch import merge
from easyeditor.patches.stack import applied
from support import EDITS, Snapshot, lm

SETTINGS = GraceHyperParams(layers=[1], n_iter=40, eps=0.2)


def radii_of(keys: list[float], labels: list[int], initial: float = 1.0) -> list[float]:
    points = torch.tensor(keys)[:, None]
    return radii(points, torch.tensor(labels), torch.full((len(keys),), initial)).tolist()


def test_radii_are_the_published_rules() -> None:
    assert radii_of([0.0, 5.0], [1, 2]) == [1, 1]  # deferred: out of reach of each other
    assert radii_of([0.0, 1.5], [1, 1]) == [1.5, 1]  # expanded
    assert radii_of([0.0, 1.5], [1, 2]) == pytest.approx([0.75 - GAP, 0.75])  # split
    assert radii_of([0.0, 2.5], [1, 2]) == [1, 1]
    # A ball that has grown is split by a third entry, and never made larger by it.
    assert radii_of([0.0, 1.5, -1.8], [1, 1, 2]) == pytest.approx([0.9 - GAP, 1, 0.9])
    assert radii_of([0.0, 0.2, -1.0], [1, 2, 3])[0] == pytest.approx(0.1 - GAP)


def test_an_entry_at_the_key_of_another_stands_in_its_place() -> None:
    assert radii_of([0.0, 0.0], [1, 2]) == [-1, 1]
    assert radii_of([0.0, 0.0, 0.0], [1, 2, 1]) == [-1, -1, 1]


def test_without_one_entry_the_radii_are_those_of_the_others() -> None:
    draw = torch.Generator().manual_seed(0)
    keys, labels = torch.randn(30, 2, generator=draw), torch.randint(0, 3, (30,), generator=draw)
    ones = torch.full((1,), 0.8)
    pairs = zip(keys, labels, strict=True)
    books = [ValueCodebook(key[None], key[None], label[None], ones) for key, label in pairs]
    for gone in (0, 7, 29):
        rest = [i for i in range(30) if i != gone]
        expected = radii(keys[rest], labels[rest], torch.full((29,), 0.8))
        assert torch.equal(ValueCodebook.merge([books[i] for i in rest]).radii, expected)


def test_an_edited_prompt_edited_again_gives_the_later_answer_and_undone_the_earlier() -> None:
    target = lm("llama")
    method = GRACE(SETTINGS)
    first = Edit("Berlin is the capital of", "Italy")
    second = Edit("Berlin is the capital of", "Rome")

    def answer() -> list[bool]:
        replies = score(target, [(e.prompt, e.target) for e in (first, second)])
        return [reply.accuracy == 1 for reply in replies]

    method.edit(target, [first]).patch.apply(target.model)
    assert answer() == [True, False]
    patch = method.edit(target, [second]).patch
    patch.apply(target.model)
    assert answer() == [False, True]
    patch.revert(target.model)
    assert answer() == [True, False]


def test_values_of_several_edits_are_those_of_each_alone() -> None:
    target = lm("llama")
    method = GRACE(SETTINGS)
    (together,) = method.edit(target, EDITS).patch.adapters["model.layers.1.mlp.down_proj"]
    for i, edit in enumerate(EDITS):
        (alone,) = method.edit(target, [edit]).patch.adapters["model.layers.1.mlp.down_proj"]
        assert torch.allclose(together.keys[i], alone.keys[0], atol=1e-5)
        assert torch.allclose(together.values[i], alone.values[0], atol=1e-2)
    assert together.labels.unique().numel() == len({edit.target for edit in EDITS})


def test_the_initial_radius_is_a_quantile_of_what_unrelated_prompts_give() -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    small, large = (
        GRACE(GraceHyperParams(layers=[1], eps_quantile=q)).initial_state(target).radius
        for q in (0.05, 0.9)
    )
    assert 0 <= small < large
    assert GRACE(SETTINGS).initial_state(target).radius == 0.2
    assert before.differences(target.model) == []


def test_contradictions_are_refused() -> None:
    target = lm("llama")
    with pytest.raises(ContradictingEditsError):
        GRACE(SETTINGS).edit(target, [Edit("Berlin is", "a"), Edit("Berlin is", "b")])


def test_a_codebook_that_does_not_fit_is_refused() -> None:
    keys = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="2 keys"):
        ValueCodebook(keys, keys, torch.zeros(1), torch.zeros(2))


def test_merged_patches_are_one_codebook() -> None:
    target = lm("llama")
    method = GRACE(SETTINGS)
    patches = [method.edit(target, [edit]).patch for edit in EDITS]
    whole = merge(patches)
    assert len(whole.info.edits) == 3
    with applied(target.model, whole):
        replies = score(target, [(e.prompt, e.target) for e in EDITS])
    assert [reply.accuracy for reply in replies[:2]] == [1, 1]  # answers of one token
