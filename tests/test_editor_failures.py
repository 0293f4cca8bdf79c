"""Edits that cannot be made: what is said, and that the model is as it was."""

from __future__ import annotations

import pytest

import outer
import tiny
from easyeditor import BaseEditor
from easyeditor.editors import metric_recorder as sheet
from easyeditor.errors import (
    ContradictingEditsError,
    DivergedError,
    EasyEditError,
    EditError,
    EmptyTargetError,
    HyperParamsError,
    MetaDeviceError,
    SubjectNotFoundError,
    SubjectRequiredError,
    UnknownMethodError,
)
from outer import PROMPT, PROMPTS, SUBJECTS, TARGET, TARGETS
from three_edits import METHODS


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("error", [DivergedError, KeyboardInterrupt, MemoryError])
def test_a_failure_in_the_middle_takes_everything_back(keep, error, monkeypatch):
    editor = outer.editor()
    earlier = editor.edit("You can see the", "piano").patch
    before, calls = outer.bits(editor.model), []
    real = editor.method.edit

    def third_fails(lm, edits, state):
        calls.append(edits)
        if len(calls) == 3:
            raise error("stop")
        return real(lm, edits, state)

    monkeypatch.setattr(editor.method, "edit", third_fails)
    with pytest.raises(error):
        editor.edit(PROMPTS, TARGETS, keep_original_weight=keep)
    assert len(calls) == 3
    assert outer.changed(editor.model, before) == []
    assert editor.applied == [earlier]
    editor.undo(earlier)
    assert outer.changed(editor.model, outer.bits(tiny.model("llama"))) == []


@pytest.mark.parametrize(
    ("when", "number"),
    [("each", 1), ("each", 2), ("each", 4), ("end", 1), ("end", 2), ("both", 4), ("both", 5)],
)
def test_a_failure_while_measuring_takes_everything_back(when, number, monkeypatch):
    editor = outer.editor()
    before, calls = outer.bits(editor.model), []
    real = sheet.observe

    def fails(lm, cases, measures, *_):
        calls.append(cases)
        if len(calls) == number:
            raise MemoryError("no room")
        return real(lm, cases, measures)

    monkeypatch.setattr(sheet, "observe", fails)
    with pytest.raises(MemoryError):
        editor.edit(PROMPTS, TARGETS, evaluate_when=when)
    assert len(calls) == number
    assert outer.changed(editor.model, before) == []
    assert editor.applied == []


@pytest.mark.parametrize("call", ["edit", "batch_edit"])
@pytest.mark.parametrize("keep", [True, False])
def test_contradicting_edits(call, keep):
    editor = outer.editor()
    before = outer.bits(editor.model)
    with pytest.raises(ContradictingEditsError, match=r"'French'.*'Italian'"):
        getattr(editor, call)(
            [PROMPT, PROMPTS[1], f"{PROMPT} "],
            ["French", "Rome", "Italian"],
            keep_original_weight=keep,
        )
    assert outer.changed(editor.model, before) == []


def test_the_same_edit_twice_is_no_contradiction():
    assert len(outer.editor().edit([PROMPT, PROMPT], [TARGET, f" {TARGET}"]).metrics) == 2


WRONG = [
    ({"prompts": []}, EditError, "nothing to edit"),
    ({"prompts": None}, EditError, "prompts"),
    ({"prompts": 5}, EditError, "prompts"),
    ({"prompts": [5]}, EditError, "prompt must be text, not int"),
    ({"prompts": [[PROMPT]]}, EditError, "prompt must be text, not list"),
    ({"prompts": " "}, EditError, "prompt is empty"),
    ({"prompts": PROMPTS}, EditError, "target_new holds 1 entries for 3"),
    ({"target_new": TARGETS}, EditError, "target_new holds 3 entries for 1"),
    ({"target_new": None}, EditError, "target"),
    ({"target_new": 7}, EditError, "target"),
    ({"target_new": ""}, EmptyTargetError, "is empty"),
    ({"target_new": [" \n"]}, EmptyTargetError, "is empty"),
    (
        {"prompts": PROMPTS, "target_new": TARGETS, "ground_truth": ["a", "b"]},
        EditError,
        "ground_truth holds 2",
    ),
    ({"ground_truth": 5}, EditError, "ground_truth"),
    ({"ground_truth": [5]}, EditError, "ground_truth must be text"),
    ({"subject": ["Anna", "Lind"]}, EditError, "subject holds 2"),
    ({"subject": "Anne Lind"}, SubjectNotFoundError, "Did you mean 'Anna Lind'"),
    ({"subject": "  "}, SubjectNotFoundError, "does not occur"),
    ({"subject": 5}, EditError, "subject"),
    ({"rephrase_prompts": ["a", "b"]}, EditError, "rephrase_prompts holds 2"),
    ({"rephrase_prompts": 5}, EditError, "rephrase_prompts"),
    ({"rephrase_prompts": [5]}, EditError, "rephrase"),
    ({"rephrase_prompts": [[5]]}, EditError, "must be text, not int"),
    ({"rephrase_prompts": [[""]]}, EditError, "rephrase probe has an empty prompt"),
    ({"locality_inputs": ["a"]}, EditError, "locality_inputs must map"),
    ({"locality_inputs": {"n": "a"}}, EditError, r"locality_inputs\['n'\]"),
    ({"locality_inputs": {"n": {"prompt": "a"}}}, EditError, "'prompt' and 'ground_truth'"),
    (
        {"locality_inputs": {"n": {"prompt": ["a", "b"], "ground_truth": ["c", "d"]}}},
        EditError,
        r"locality_inputs\['n'\]\['prompt'\] holds 2",
    ),
    (
        {"locality_inputs": {"n": {"prompt": [["a", "b"]], "ground_truth": [["c"]]}}},
        EditError,
        "2 prompts but 1 answers",
    ),
    (
        {"locality_inputs": {"n": {"prompt": "a", "ground_truth": None}}},
        EditError,
        "1 prompts but 0 answers",
    ),
    (
        {"locality_inputs": {"n": {"prompt": 5, "ground_truth": 6}}},
        EditError,
        "locality_inputs",
    ),
    (
        {"portability_inputs": {"n": {"prompt": ["a"], "ground_truth": [""]}}},
        EditError,
        "no answer",
    ),
    (
        {"portability_inputs": {"n": {"prompt": ["a"], "ground_truth": [6]}}},
        EditError,
        "portability",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "error", "why"),
    WRONG,
    ids=[f"{next(iter(arguments))}-{i}" for i, (arguments, *_) in enumerate(WRONG)],
)
def test_arguments_that_make_no_edit(arguments, error, why):
    editor = outer.editor()
    before = outer.bits(editor.model)
    with pytest.raises(error, match=why):
        editor.edit(**{"prompts": PROMPT, "target_new": TARGET, **arguments})
    assert outer.changed(editor.model, before) == []


@pytest.mark.parametrize("method", ["ROME", "MEMIT"])
def test_a_missing_subject_is_found_before_any_work(method, monkeypatch):
    editor = outer.editor(method)
    monkeypatch.setattr(editor.method, "edit", lambda *_: pytest.fail("worked"))
    monkeypatch.setattr(sheet, "observe", lambda *_: pytest.fail("measured"))
    with pytest.raises(SubjectRequiredError, match=r"Berlin.*names no subject"):
        editor.edit(PROMPTS, TARGETS, subject=[*SUBJECTS[:2], None])


def bad_nan():
    """A llama with one NaN below the edited layer."""
    model = tiny.model("llama")
    model.model.layers[0].self_attn.o_proj.weight.data[0, 0] = float("nan")
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("contexts", [True, False])
def test_a_loss_that_is_not_a_number(method, contexts):
    changes = {}
    if not contexts and method != "FT":
        changes = {"context_template_length_params": []}
    model = bad_nan()
    before = outer.bits(model)
    editor = BaseEditor.from_pretrained(
        model, tiny.tokenizer(), outer.settings(method, layers=[1], **changes)
    )
    with pytest.raises(DivergedError, match="unchanged"):
        editor.edit(PROMPTS, TARGETS, subject=SUBJECTS)
    assert outer.changed(model, before) == []
    assert editor.applied == []


@pytest.mark.parametrize("keep", [True, False])
def test_steps_that_leave_the_finite_numbers(keep):
    editor = outer.editor(lr=1e37, num_steps=60)
    before = outer.bits(editor.model)
    with pytest.raises(DivergedError, match="unchanged"):
        editor.edit(PROMPTS, TARGETS, keep_original_weight=keep)
    assert outer.changed(editor.model, before) == []


def test_a_model_that_is_not_in_memory():
    with pytest.raises(MetaDeviceError, match="nothing to edit"):
        BaseEditor.from_pretrained(
            tiny.model("llama").to("meta"), tiny.tokenizer(), outer.settings()
        )


def test_a_layer_outside_the_model():
    editor = outer.editor(layers=[3])
    before = outer.bits(editor.model)
    with pytest.raises(HyperParamsError, match="3 layers"):
        editor.edit(PROMPT, TARGET)
    assert outer.changed(editor.model, before) == []


@pytest.mark.parametrize("wrong", ["./hparams/ROME/gpt2-xl", {"alg_name": "FT"}, None])
def test_hyper_parameters_of_another_kind(wrong):
    with pytest.raises((EasyEditError, TypeError), match=r"(?i)hyper-?param"):
        BaseEditor.from_pretrained(tiny.model("llama"), tiny.tokenizer(), wrong)


def test_unknown_methods_are_named():
    from easyeditor.methods import METHODS as registry

    with pytest.raises(UnknownMethodError, match=r"'ROEM'.*Did you mean 'ROME'.*MEMIT"):
        registry.get("ROEM")
