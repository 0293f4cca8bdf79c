"""GatedROME: where its gate opens, several edits of one subject, what undoing leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zoo
from easyeditor import (
    LM,
    Edit,
    GatedROMEHyperParams,
    load_patch,
    save_patch,
)
from easyeditor.errors import (
    ContradictingEditsError,
    DivergedError,
    HyperParamsError,
    PatchFormatError,
    PatchMismatchError,
    SubjectRequiredError,
)
from easyeditor.lm.forward.context import ForwardContext
from easyeditor.lm.inference import score
from easyeditor.lm.next_token import next_token
from easyeditor.methods.gated_rome.codebook import SubjectCodebook
from easyeditor.methods.gated_rome.gated_rome import GatedROME
from easyeditor.methods.gated_rome.subjects import (
    keys_and_thresholds,
    one_per_subject,
    subject_number,
)
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.patch import Patch, merge
from easyeditor.patches.stack import applied
from support import EDITS, Snapshot, lm
from zoo import world

PATH = "transformer.h.1.mlp.c_proj"
SETTINGS: dict[str, Any] = {
    "layers": [1],
    "v_num_grad_steps": 200,
    "v_lr": 0.2,
    "v_weight_decay": 1e-3,
    "v_stop_nll": 0.02,
    "kl_factor": 0,
    "clamp_norm_factor": 10,
    "context_template_length_params": [[5, 2], [10, 2]],
}


def method(**changes: Any) -> GatedROME:
    return GatedROME(GatedROMEHyperParams(**SETTINGS | changes))


def codebook(
    keys: list[list[float]],
    values: list[float],
    subjects: list[int] | None = None,
    prompts: list[int] | None = None,
    owners: list[int] | None = None,
    thresholds: list[float] | None = None,
) -> SubjectCodebook:
    n = len(values)
    return SubjectCodebook(
        torch.tensor(keys),
        torch.tensor(thresholds or [0.9] * n),
        torch.arange(n),
        torch.tensor(values)[:, None],
        torch.tensor(subjects or list(range(n))),
        torch.tensor(prompts or list(range(n))),
        torch.arange(n) if owners is None else torch.tensor(owners),
    )


def added(book: SubjectCodebook, x: list[list[float]], end: int) -> list[float]:
    inputs = torch.tensor([x])
    context = ForwardContext(torch.ones(1, len(x)), torch.tensor([end]))
    result: torch.Tensor = book(inputs, torch.zeros(1, len(x), 1), context)
    return result[0, :, 0].tolist()


@pytest.fixture(scope="module")
def small() -> LM:
    return zoo.load("gpt2")


def other_facts() -> list[Edit]:
    """Two editable facts of one subject, each with another answer."""
    of_subject: dict[str, list[Edit]] = {}
    for case in world.cases("eval"):
        assert case.edit.subject is not None
        of_subject.setdefault(case.edit.subject, []).append(case.edit)
    return next(edits for edits in of_subject.values() if len(edits) > 1)[:2]


def right(target: LM, edits: list[Edit]) -> list[bool]:
    replies = score(target, [(edit.prompt, edit.target) for edit in edits])
    return [reply.accuracy == 1 for reply in replies]


def test_a_vector_is_added_where_a_prompt_token_is_near_to_a_key() -> None:
    book = codebook([[1.0, 0.0], [0.0, 1.0]], [5.0, 7.0])
    x = [[3.0, 0.1], [1.0, 1.0], [0.0, 2.0], [9.0, 0.0]]
    assert added(book, x, end=2) == [5, 0, 7, 0]  # the last token is the answer's


def test_edits_of_one_subject_add_up_and_of_one_prompt_the_later_counts() -> None:
    keys = [[1.0, 0.0]] * 3
    x = [[1.0, 0.0]]
    apart = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    assert added(codebook(apart, [1.0, 2.0, 4.0], subjects=[8, 8, 9]), x, 0) == [3]
    assert added(codebook(keys, [1.0, 2.0, 4.0], subjects=[8, 8, 9]), x, 0) == [4]  # the newest
    assert added(codebook(keys, [1.0, 2.0, 4.0], [8, 8, 8], [1, 2, 1]), x, 0) == [6]
    # One of another subject's name, and one whose expansion is the earlier prompt.
    assert added(codebook(keys, [1.0, 2.0, 4.0], [8, 8, 9], [1, 2, 1]), x, 0) == [4]
    assert added(codebook(keys, [1.0, 2.0, 4.0], [8] * 3, [1, 2, 3, 2], [0, 1, 2, 2]), x, 0) == [5]


def test_a_key_that_is_not_near_enough_does_not_stand_before_one_that_is() -> None:
    keys, x = [[1.0, 0.0], [0.8, 0.6]], [[1.0, 0.1]]
    assert added(codebook(keys, [1.0, 2.0], thresholds=[0.9, 0.8]), x, 0) == [1]
    assert added(codebook(keys, [1.0, 2.0], thresholds=[0.999, 0.8]), x, 0) == [2]


def test_the_parts_of_a_codebook_merge_to_the_whole() -> None:
    book = codebook([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], [1.0, 2.0, 3.0])
    again = SubjectCodebook.merge([book.part([0]), book.part([1, 2])])
    for name, tensor in book.state_dict().items():
        assert torch.equal(again.get_buffer(name), tensor)
    assert again.in_force() == book.in_force() == [0, 1, 2]


def test_a_key_far_from_the_mean_is_one_more() -> None:
    none = torch.zeros(0, 2)
    near = torch.tensor([[1.0, 0.1], [1.0, -0.1]])
    keys, thresholds = keys_and_thresholds(near, none, none, 0.8)
    assert torch.allclose(keys, torch.tensor([[1.0, 0.0]]))
    assert thresholds.tolist() == pytest.approx([0.8])
    alias = torch.tensor([[0.0, 2.0]])
    both, _ = keys_and_thresholds(near, alias, none, 0.8)
    assert torch.allclose(both, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    _, raised = keys_and_thresholds(near, alias, torch.tensor([[0.0, 5.0]]), 0.8)
    assert raised.tolist() == pytest.approx([0.8, 0.999])


def test_edits_of_one_subject_are_searched_one_after_the_other() -> None:
    subjects = ["Berlin", "Paris", "berlin", "Berlin"]
    edits = [Edit(f"{s} is {i}", "x", s) for i, s in enumerate(subjects)]
    assert one_per_subject([subject_number(edit) for edit in edits]) == [[0, 1], [2], [3]]
    quotes = ["Val d'Isère", "Val d\u2019Ise\u0300re"]
    assert len({subject_number(Edit(f"{s} is", "x", s)) for s in quotes}) == 1


def test_an_edit_holds_in_other_words_and_other_subjects_keep_their_bits(small: LM) -> None:
    edited = world.cases("eval")[0]
    others = [p.prompt for p in edited.probes if p.kind == "locality/neighborhood"]
    asked = [p for p in edited.probes if p.kind == "rephrase"]
    before = next_token(small, others)
    with applied(small.model, method().edit(small, [edited.edit]).patch):
        after = next_token(small, others)
        assert right(small, [edited.edit]) == [True]
        replies = score(small, [(p.prompt, p.answers[0]) for p in asked])
        assert [reply.accuracy for reply in replies] == [1] * len(asked)
    assert all(torch.equal(a.logprobs, b.logprobs) for a, b in zip(before, after, strict=True))


def test_two_facts_of_one_subject_hold_together_and_each_comes_off_alone(small: LM) -> None:
    edits = other_facts()
    before = Snapshot(small.model)
    first = method().edit(small, edits[:1]).patch
    with applied(small.model, first):
        first_alone = next_token(small, [e.prompt for e in edits])
    patches: list[Patch] = []
    for edit in edits:
        patches.append(method().edit(small, [edit]).patch)
        patches[-1].apply(small.model)
    assert right(small, edits) == [True, True]
    patches[1].revert(small.model)
    again = next_token(small, [e.prompt for e in edits])
    assert all(torch.equal(a.logprobs, b.logprobs) for a, b in zip(first_alone, again, strict=True))
    patches[0].revert(small.model)
    assert before.differences(small.model) == []

    with applied(small.model, method().edit(small, edits).patch):  # in one call
        assert right(small, edits) == [True, True]


def test_an_earlier_edit_taken_off_leaves_the_others_their_bits(small: LM) -> None:
    edits = [case.edit for case in world.cases("eval") if case.edit.subject][:6]
    edits = [e for i, e in enumerate(edits) if e.subject not in {o.subject for o in edits[:i]}]
    patches = []
    for edit in edits:
        patches.append(method().edit(small, [edit]).patch)
        patches[-1].apply(small.model)
    patches[0].revert(small.model)
    rest = next_token(small, [e.prompt for e in edits])
    for patch in patches[1:]:
        patch.revert(small.model)
    for edit in edits[1:]:  # never made at all
        method().edit(small, [edit]).patch.apply(small.model)
    never = next_token(small, [e.prompt for e in edits])
    while small.model.easyedit_stack.patches:
        small.model.easyedit_stack.patches[-1].revert(small.model)
    assert len(edits) > 2
    assert all(torch.equal(a.logprobs, b.logprobs) for a, b in zip(rest, never, strict=True))


def test_a_prompt_edited_again_gives_the_later_answer_and_undone_the_earlier(small: LM) -> None:
    (first, _) = other_facts()
    answer = next(
        case.edit.target
        for case in world.cases("eval")
        if case.edit.prompt.text.split()[:2] != first.prompt.text.split()[:2]
        and case.edit.target != first.target
    )
    second = Edit(first.prompt, answer, first.subject)
    patch = method().edit(small, [first]).patch
    with applied(small.model, patch):
        later = method().edit(small, [second]).patch
        with applied(small.model, later):
            assert right(small, [first, second]) == [False, True]
        assert right(small, [first, second]) == [True, False]


def test_a_patch_is_the_same_read_from_its_file(small: LM, tmp_path: Any) -> None:
    edit = world.cases("eval")[0].edit
    patch = method().edit(small, [edit]).patch
    loaded = load_patch(save_patch(patch, tmp_path / "one.safetensors"))
    answers = []
    for one in (patch, loaded):
        with applied(small.model, one):
            answers.append(next_token(small, [edit.prompt])[0].logprobs)
    assert torch.equal(*answers)


@pytest.mark.parametrize(
    "changed",
    [
        {"keys": torch.zeros(2)},
        {"keys": torch.zeros(2, 3)},
        {"entries": torch.zeros(3, dtype=torch.long)},
        {"entries": torch.tensor([0, 5])},
        {"entries": torch.tensor([0.0, 1.0])},
        {"subjects": torch.zeros(1, dtype=torch.long)},
        {"subjects": torch.tensor([0.5, 1.0])},
        {"thresholds": torch.tensor([0.5, 1.5])},
        {"thresholds": torch.full((2, 2), 0.5)},
        {"owners": torch.tensor([0, 0])},
    ],
)
def test_tensors_that_make_no_codebook_are_refused(changed: dict[str, torch.Tensor]) -> None:
    good = codebook([[1.0, 0.0], [0.0, 1.0]], [1.0, 2.0]).state_dict()
    with pytest.raises(ValueError, match=r"\w"):
        SubjectCodebook(**(good | changed))


def test_a_codebook_of_another_model_is_refused(small: LM) -> None:
    patch: Any = method().edit(small, [world.cases("eval")[0].edit]).patch
    ((path, (book,)),) = patch.adapters.items()
    narrow = book.state_dict() | {"keys": book.keys[:, :1] / book.keys[:, :1].abs()}
    other = ModulePatch({path: (SubjectCodebook(**narrow).eval(),)}, patch.info)
    with pytest.raises(PatchMismatchError, match="inputs of 1 numbers"):
        other.apply(small.model)
    with pytest.raises(PatchMismatchError, match="different models"):
        SubjectCodebook.merge([book, SubjectCodebook(**narrow)])


def test_names_that_end_in_one_token_are_one_subject_in_one_call(small: LM) -> None:
    edit = other_facts()[0]
    assert edit.subject is not None
    last = edit.subject.split()[-1]
    again = Edit(f"{edit.prompt.text} and", edit.target, last)
    (book,) = method().edit(small, [edit, again]).patch.adapters[PATH]
    assert last != edit.subject
    assert len(set(book.subjects.tolist())) == 1


def test_prompts_that_are_kept_and_held_do_not_meet(small: LM) -> None:
    first, second = other_facts()
    keeping = Edit(second.prompt, second.target, second.subject, keep=(first.prompt,))
    with applied(small.model, method().edit(small, [first]).patch):
        later = method().edit(small, [keeping]).patch
        with applied(small.model, later):
            assert right(small, [first, second]) == [True, True]


def test_an_expansion_that_restates_an_earlier_edit_takes_its_place(small: LM) -> None:
    first, second = other_facts()
    restated = Edit(first.prompt, second.target, first.subject)
    both = Edit(second.prompt, second.target, second.subject, expansions=(restated,))
    earlier: Any = method().edit(small, [first]).patch
    with applied(small.model, earlier):
        later: Any = method().edit(small, [both]).patch
        with applied(small.model, later):
            assert right(small, [first, second]) == [False, True]
    books = [patch.adapters[PATH][0] for patch in (earlier, later)]
    assert SubjectCodebook.merge(books).in_force() == [1]


def test_what_an_edit_gets_does_not_depend_on_its_batch(small: LM) -> None:
    plain, other = (world.cases("eval")[i].edit for i in (0, 20))
    reworded = Edit(f"Note: {other.prompt.text}", other.target, other.subject)
    expanded = Edit(other.prompt, other.target, other.subject, expansions=(reworded,))
    (alone,) = method().edit(small, [plain]).patch.adapters[PATH]
    (together,) = method().edit(small, [plain, expanded]).patch.adapters[PATH]
    assert torch.allclose(together.keys[: len(alone.keys)], alone.keys, atol=1e-5)
    assert torch.allclose(together.values[0], alone.values[0], atol=2e-2)


def test_a_sequence_is_stored_as_one_codebook(small: LM, tmp_path: Any) -> None:
    patches = []
    for case in world.cases("eval")[:3]:
        patches.append(method().edit(small, [case.edit]).patch)
        patches[-1].apply(small.model)
    asked = [case.edit.prompt for case in world.cases("eval")[:3]]
    expected = next_token(small, asked)
    for patch in reversed(patches):
        patch.revert(small.model)
    whole = merge(patches, compact=True)
    assert [len(some) for some in whole.adapters.values()] == [1]
    with applied(small.model, load_patch(save_patch(whole, tmp_path / "whole.safetensors"))):
        now = next_token(small, asked)
    assert all(torch.equal(a.logprobs, b.logprobs) for a, b in zip(expected, now, strict=True))


def test_a_subject_that_opens_a_text_does_not_open_the_gate_for_others() -> None:
    target = lm("gpt2")
    edit = Edit("She is", "Paris", "She")
    row = target.text.row(edit.prompt, subject="She")
    assert row.subject_last == 0  # one token: its key is read at the next one
    patch = method().edit(target, [edit]).patch
    others = ["The is", "A is", "An is", "I is"]
    before = next_token(target, [*others, "She is"])
    with applied(target.model, patch):
        after = next_token(target, [*others, "She is"])
    same = [torch.equal(a.logprobs, b.logprobs) for a, b in zip(before, after, strict=True)]
    assert same == [True] * len(others) + [False]


def test_what_cannot_be_edited_is_refused_and_the_model_unharmed() -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    with pytest.raises(HyperParamsError, match="subject_last"):
        method(fact_token="decoder_first").edit(lm("t5"), EDITS[:1])
    tried: list[tuple[type[Exception], list[Edit]]] = [
        (SubjectRequiredError, [Edit("Berlin is the capital of", "Paris")]),
        (
            ContradictingEditsError,
            [Edit("Berlin is", "a", "Berlin"), Edit("Berlin is", "b", "Berlin")],
        ),
    ]
    for kind, edits in tried:
        with pytest.raises(kind):
            method().edit(target, edits)
    with torch.no_grad():
        target.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(DivergedError):
        method().edit(target, EDITS[:1])
    target.model.model.norm.weight.data.fill_(1.0)
    assert before.differences(target.model) == []


def test_a_file_with_other_tensors_is_refused(small: LM, tmp_path: Any) -> None:
    patch: Any = method().edit(small, [world.cases("eval")[0].edit]).patch
    ((adapter,),) = patch.adapters.values()
    adapter.register_buffer("entries", adapter.entries + 7)
    with pytest.raises(PatchFormatError):
        load_patch(save_patch(patch, tmp_path / "wrong.safetensors"))


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "mamba", "bloom", "t5"])
def test_experts_states_and_encoders_are_edited(family: str) -> None:
    target = lm(family)
    before = Snapshot(target.model)
    quick = {"v_lr": 2.0, "v_weight_decay": 0, "clamp_norm_factor": 1000, "threshold": 0.99}
    asked = [(edit.prompt, edit.target) for edit in EDITS]
    plain = score(target, asked)
    with applied(target.model, method(**quick).edit(target, EDITS).patch):
        edited = score(target, asked)
    better = [sum(a.logprobs) > sum(b.logprobs) for a, b in zip(edited, plain, strict=True)]
    assert better == [True] * len(EDITS)
    assert before.differences(target.model) == []


def test_a_file_that_names_second_moments_is_read():
    """Gates need none; files of the other methods that search values name them."""
    named = {"mom2_dataset": "wikipedia", "mom2_n_samples": 100, "stats_dir": "data/stats"}
    settings = GatedROMEHyperParams(layers=[1], **named)
    assert settings == GatedROMEHyperParams(layers=[1])
    assert not named.keys() & type(settings).model_fields.keys()
