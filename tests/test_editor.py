"""``BaseEditor`` on tiny models: classic calls, what comes back, undo, when to measure."""

from __future__ import annotations

import copy

import pytest
import torch

import outer
import tiny
from easyeditor import BaseEditor, Case, Edit, EditResult
from easyeditor.errors import (
    EditError,
    PatchStateError,
)
from easyeditor.evaluate.aggregate import flatten
from outer import PROMPT, PROMPTS, SUBJECT, SUBJECTS, TARGET, TARGETS
from three_edits import LOCALITY, METHODS, PORTABILITY, REPHRASES, all_three

# -- the classic call -------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [True, False])
def test_the_classic_call(method, keep):
    editor, result = all_three(method, keep)
    metrics, edited_model, patch = result
    assert isinstance(result, EditResult)
    assert (result.metrics, result.edited_model, result.patch) == (metrics, edited_model, patch)
    assert len(metrics) == 3
    for i, metric in enumerate(metrics):
        assert set(metric) == {"case_id", "requested_rewrite", "time", "pre", "post"}
        assert metric["case_id"] == str(i)
        assert metric["time"] > 0
        asked = metric["requested_rewrite"]
        assert (asked["prompt"], asked["subject"]) == (PROMPTS[i], SUBJECTS[i])
        assert (asked["target_new"], asked["ground_truth"]) == (
            TARGETS[i],
            ["Danish", "Paris", "Germany"][i],
        )
        for half in (metric["pre"], metric["post"]):
            assert {"rewrite_acc", "rephrase_acc", "locality", "portability"} <= set(half)
            assert half["portablility"] is half["portability"]
            assert set(half["portability"]) == {"one_hop_acc"}
        assert {"neighborhood_acc", "near_acc"} <= set(metric["post"]["locality"])
        assert not {"neighborhood_acc", "near_acc"} & set(metric["pre"]["locality"])  # it is 1
        with pytest.raises(KeyError):
            metric["post"]["portabilty"]
    assert [edit.target for edit in patch.info.edits] == TARGETS
    assert (edited_model is editor.model) is not keep


def test_texts_instead_of_lists():
    one = outer.editor().edit(
        PROMPT,
        TARGET,
        "Danish",
        "Anna Lind speaks",
        {"near": {"prompt": "She plays the", "ground_truth": "piano"}},
        {"hop": {"prompt": "Anna Lind is", "ground_truth": "French"}},
        True,
        False,
        subject=SUBJECT,
    )
    many = outer.editor().edit(
        [PROMPT],
        [TARGET],
        ["Danish"],
        ["Anna Lind speaks"],
        {"near": {"prompt": ["She plays the"], "ground_truth": ["piano"]}},
        {"hop": {"prompt": ["Anna Lind is"], "ground_truth": ["French"]}},
        keep_original_weight=True,
        subject=[SUBJECT],
    )
    for metric in (*one.metrics, *many.metrics):
        del metric["time"]
    assert one.metrics == many.metrics
    assert set(one.metrics[0]["post"]) >= {"rephrase_acc", "locality", "portability"}


def test_tuples_and_missing_entries():
    result = outer.editor().edit(
        tuple(PROMPTS[:2]),
        tuple(TARGETS[:2]),
        ground_truth=[None, "Paris"],
        rephrase_prompts=[None, "The tower stands in"],
    )
    first, second = (metric["post"] for metric in result.metrics)
    assert ("rephrase_acc" in first, "rephrase_acc" in second) == (False, True)
    assert ("rewrite_success" in first, "rewrite_success" in second) == (False, True)
    assert first["locality"] == first["portability"] == {}


def test_the_arguments_are_not_changed():
    before = copy.deepcopy((PROMPTS, TARGETS, REPHRASES, LOCALITY, PORTABILITY))
    all_three()
    assert before == (PROMPTS, TARGETS, REPHRASES, LOCALITY, PORTABILITY)


def test_model_and_tokenizer_are_the_callers():
    model = tiny.model("llama")
    editor = BaseEditor.from_pretrained(model, tiny.tokenizer(), outer.settings())
    assert editor.model is model
    assert editor.tokenizer is tiny.tokenizer()


def test_from_hparams_loads_the_model(tmp_path):
    tiny.model("llama").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    editor = BaseEditor.from_hparams(outer.settings(model_name=str(tmp_path), device="cpu"))
    assert outer.changed(editor.model, outer.bits(tiny.model("llama"))) == []
    found = editor.edit(PROMPT, TARGET).metrics[0]
    assert found["post"] == outer.editor().edit(PROMPT, TARGET).metrics[0]["post"]


def test_scores_are_logged_unless_told_not_to(caplog):
    with caplog.at_level("INFO", "easyeditor"):
        outer.editor().edit(PROMPT, TARGET, verbose=False)
        assert "rewrite_acc" not in caplog.text
        outer.editor().edit(PROMPT, TARGET, verbose=True)
        assert "rewrite_acc" in caplog.text


# -- what comes back holds every edit ---------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_keeping_the_original(method, family):
    editor = outer.editor(method, family)
    original, before = editor.model, outer.bits(editor.model)
    editor.model.train()
    result = editor.edit(PROMPTS, TARGETS, subject=SUBJECTS, keep_original_weight=True)
    assert editor.model is original
    assert outer.changed(original, before) == []
    assert original.training
    assert all(p.requires_grad for p in original.parameters())
    assert editor.applied == []
    # Each edit was made alone, from the original weights: so made one by one, they add up.
    whole = tiny.model(family)
    for prompt, target, subject in zip(PROMPTS, TARGETS, SUBJECTS, strict=True):
        alone = outer.editor(method, family).edit(
            prompt, target, subject=subject, keep_original_weight=True
        )
        alone.patch.apply(whole)
    edited = result.edited_model.eval()
    assert type(edited) is type(original)
    assert edited is not original
    assert outer.changed(edited, outer.bits(whole)) == []
    assert torch.equal(outer.logits(edited), outer.logits(whole))
    assert not torch.equal(outer.logits(edited), outer.logits(tiny.model(family)))


@pytest.mark.parametrize("method", METHODS)
def test_keeping_the_original_measures_each_edit_alone(method):
    _, result = all_three(method, keep=True)
    for i in range(3):
        alone = outer.editor(method).edit(
            PROMPTS[i], TARGETS[i], subject=SUBJECTS[i], rephrase_prompts=[REPHRASES[i]]
        )
        for name in ("rewrite_acc", "rephrase_acc"):
            assert result.metrics[i]["post"][name] == alone.metrics[0]["post"][name]


@pytest.mark.parametrize("method", METHODS)
def test_editing_the_callers_model(method):
    editor = outer.editor(method)
    model, before = editor.model, outer.bits(editor.model)
    result = editor.edit(PROMPTS, TARGETS, subject=SUBJECTS)
    assert result.edited_model is model
    assert set(outer.changed(model, before)) == set(result.patch.entries)
    assert editor.applied == [result.patch]
    # Edits accumulate: each starts from the weights the former left.
    step = outer.editor(method)
    for prompt, target, subject in zip(PROMPTS, TARGETS, SUBJECTS, strict=True):
        step.edit(prompt, target, subject=subject)
    assert outer.changed(model, outer.bits(step.model)) == []
    assert len(step.applied) == 3


def test_the_copy_shares_memory_but_not_parameters():
    editor = outer.editor()
    edited = editor.edit(PROMPT, TARGET, keep_original_weight=True).edited_model
    (path,) = editor.edit(PROMPT, TARGET, keep_original_weight=True).patch.entries
    mine, its = dict(editor.model.named_parameters()), dict(edited.named_parameters())
    for name in mine:
        shared = mine[name].data_ptr() == its[name].data_ptr()
        assert shared is (name != path)
    before = outer.bits(editor.model)
    edited.half().requires_grad_(False)
    assert outer.changed(editor.model, before) == []
    assert all(parameter.requires_grad for parameter in mine.values())


def test_the_copy_keeps_tied_weights_tied(tmp_path):
    editor = outer.editor("FT", "gpt2")
    edited = editor.edit(PROMPT, TARGET, keep_original_weight=True).edited_model
    assert edited.lm_head.weight is edited.transformer.wte.weight
    edited.save_pretrained(tmp_path)
    again = type(edited).from_pretrained(tmp_path).eval()
    assert torch.equal(outer.logits(again), outer.logits(edited))


def test_keeping_after_editing_builds_on_what_is_there():
    editor = outer.editor()
    first = editor.edit(PROMPTS[0], TARGETS[0])
    now = outer.bits(editor.model)
    second = editor.edit(PROMPTS[1], TARGETS[1], keep_original_weight=True)
    assert outer.changed(editor.model, now) == []
    expected = tiny.model("llama")
    first.patch.apply(expected)
    second.patch.apply(expected)
    assert outer.changed(second.edited_model, outer.bits(expected)) == []
    editor.undo(first.patch)  # the copy does not follow
    assert outer.changed(second.edited_model, outer.bits(expected)) == []


# -- undoing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)])
def test_undo_in_any_order(method, order):
    editor = outer.editor(method)
    before = outer.bits(editor.model)
    patches = [
        editor.edit(prompt, target, subject=subject).patch
        for prompt, target, subject in zip(PROMPTS, TARGETS, SUBJECTS, strict=True)
    ]
    left = list(patches)
    for i in order:
        editor.undo(patches[i])
        left.remove(patches[i])
        expected = tiny.model("llama")
        for patch in left:
            patch.apply(expected)
        assert outer.changed(editor.model, outer.bits(expected)) == []
    assert outer.changed(editor.model, before) == []
    assert editor.applied == []


def test_a_sequence_is_undone_as_one():
    editor = outer.editor()
    before = outer.bits(editor.model)
    editor.undo(editor.edit(PROMPTS, TARGETS).patch)
    assert outer.changed(editor.model, before) == []


def test_undoing_what_is_not_applied():
    editor = outer.editor()
    kept = editor.edit(PROMPT, TARGET, keep_original_weight=True).patch
    with pytest.raises(PatchStateError, match="not applied"):
        editor.undo(kept)
    done = editor.edit(PROMPT, TARGET).patch
    editor.undo(done)
    with pytest.raises(PatchStateError, match="not applied"):
        editor.undo(done)
    other = outer.editor()
    with pytest.raises(PatchStateError):
        other.undo(editor.edit(PROMPT, TARGET).patch)


# -- when and how many ------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False])
def test_evaluate_when(keep):
    each = all_three(keep=keep, evaluate_when="each")[1]
    end = all_three(keep=keep, evaluate_when="end")[1]
    both = all_three(keep=keep, evaluate_when="both")[1]
    assert all("final" not in m for m in (*each.metrics, *end.metrics))
    assert [m["post"] for m in both.metrics] == [m["post"] for m in each.metrics]
    assert [m["final"] for m in both.metrics] == [m["post"] for m in end.metrics]
    assert [m["post"] for m in each.metrics] != [m["post"] for m in end.metrics]
    last = {True: "alone", False: "after all"}[keep]
    first, second = flatten(each.metrics[2]["post"]), flatten(end.metrics[2]["post"])
    same = first == pytest.approx(second, rel=1e-5, abs=1e-7)  # batched with others, or alone
    assert same is (last == "after all")  # the last edit of a sequence is measured with all of them
    for result in (each, end, both):
        for metric, prompt, target in zip(end.metrics, PROMPTS, TARGETS, strict=True):
            tokens, best = outer.said(result.edited_model, prompt, target)
            assert metric["post"]["rewrite_acc"] == outer.share(tokens, best)


def test_evaluate_when_is_checked_first():
    editor = outer.editor()
    before = outer.bits(editor.model)
    with pytest.raises(EditError, match="'each', 'end' or 'both'"):
        editor.edit(PROMPT, TARGET, evaluate_when="never")
    assert outer.changed(editor.model, before) == []


@pytest.mark.parametrize("method", ["FT", "MEMIT"])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_batch_edit(method, keep, size, monkeypatch):
    editor = outer.editor(method, batch_size=size)
    before, asked = outer.bits(editor.model), []
    real = editor.method.edit

    def counted(lm, edits, state):
        asked.append([edit.target for edit in edits])
        return real(lm, edits, state)

    monkeypatch.setattr(editor.method, "edit", counted)
    result = editor.batch_edit(PROMPTS, TARGETS, subject=SUBJECTS, keep_original_weight=keep)
    assert asked == [TARGETS[i : i + size] for i in range(0, 3, size)]
    assert [edit.target for edit in result.patch.info.edits] == TARGETS
    assert (outer.changed(editor.model, before) == []) is keep
    for metric, prompt, target in zip(result.metrics, PROMPTS, TARGETS, strict=True):
        tokens, best = outer.said(result.edited_model, prompt, target)
        assert metric["post"]["rewrite_acc"] == outer.share(tokens, best)
        assert metric["time"] > 0


def test_batch_edit_is_refused_where_edits_go_one_by_one():
    editor = outer.editor("ROME")
    before = outer.bits(editor.model)
    with pytest.raises(EditError, match=r"ROME makes one edit at a time.*edit\(\)"):
        editor.batch_edit(PROMPTS, TARGETS, subject=SUBJECTS)
    assert outer.changed(editor.model, before) == []


def test_two_cases_of_one_name_are_both_measured():
    cases = [
        Case("same", Edit(prompt, target)) for prompt, target in zip(PROMPTS, TARGETS, strict=True)
    ]
    apart = [Case(str(i), case.edit) for i, case in enumerate(cases)]
    expected = outer.editor().edit_cases(apart, evaluate_when="both").metrics
    found = outer.editor().edit_cases(cases, evaluate_when="both").metrics
    for name in ("pre", "post", "final"):
        assert [m[name] for m in found] == [m[name] for m in expected]
