"""``BaseEditor`` on tiny models: classic calls, what comes back, undo, failures, numbers."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import outer
import tiny
from easyeditor import BaseEditor, Case, Edit, EditResult, Probe
from easyeditor.editors import sheet
from easyeditor.errors import (
    ContradictingEditsError,
    DivergedError,
    EasyEditError,
    EditError,
    EmptyTargetError,
    HyperParamsError,
    MetaDeviceError,
    PatchStateError,
    SubjectNotFoundError,
    SubjectRequiredError,
    UnknownMethodError,
    UnsupportedModelError,
)
from easyeditor.evaluate.report import flatten
from outer import PROMPT, PROMPTS, SUBJECT, SUBJECTS, TARGET, TARGETS

METHODS = ["FT", "ROME", "MEMIT"]
LOCALITY = {
    "neighborhood": {
        "prompt": ["She plays the", "Rome is the capital of", "You can see the"],
        "ground_truth": ["piano well", "Italy", "river from here"],
    },
    "near": {
        "prompt": [["It rained, so I", "Anna Lind is"], ["Therefore we", "I stayed"], "Germany is"],
        "ground_truth": [["stayed inside", "Danish"], ["went home", "inside"], "Paris"],
    },
}
PORTABILITY = {
    "one_hop": {
        "prompt": ["Anna Lind speaks", "The river of its city is the", "Berlin is"],
        "ground_truth": ["French to her", "river", "the capital of Italy"],
    }
}
REPHRASES = [
    ["The mother tongue spoken by Anna Lind is", "Anna Lind speaks"],
    "The tower stands in",
    ["Berlin is"],
]


def all_three(method="FT", keep=False, **more):
    """An editor and the result of three edits with every kind of probe."""
    editor = outer.editor(method)
    return editor, editor.edit(
        prompts=PROMPTS,
        ground_truth=["Danish", "Paris", "Germany"],
        target_new=TARGETS,
        subject=SUBJECTS,
        rephrase_prompts=REPHRASES,
        locality_inputs=LOCALITY,
        portability_inputs=PORTABILITY,
        keep_original_weight=keep,
        **more,
    )


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
    assert [edit.target for edit in patch.about.edits] == TARGETS
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

    def counted(lm, edits):
        asked.append([edit.target for edit in edits])
        return real(lm, edits)

    monkeypatch.setattr(editor.method, "edit", counted)
    result = editor.batch_edit(PROMPTS, TARGETS, subject=SUBJECTS, keep_original_weight=keep)
    assert asked == [TARGETS[i : i + size] for i in range(0, 3, size)]
    assert [edit.target for edit in result.patch.about.edits] == TARGETS
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


# -- failing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("error", [DivergedError, KeyboardInterrupt, MemoryError])
def test_a_failure_in_the_middle_takes_everything_back(keep, error, monkeypatch):
    editor = outer.editor()
    earlier = editor.edit("You can see the", "piano").patch
    before, calls = outer.bits(editor.model), []
    real = editor.method.edit

    def third_fails(lm, edits):
        calls.append(edits)
        if len(calls) == 3:
            raise error("stop")
        return real(lm, edits)

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

    def fails(lm, cases, measures):
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
    ({"ground_truth": ["a", "b"]}, EditError, "ground_truth holds 2"),
    ({"ground_truth": 5}, EditError, "ground_truth"),
    ({"ground_truth": [5]}, EditError, "ground_truth must be text"),
    ({"subject": ["Anna", "Lind"]}, EditError, "subject holds 2"),
    ({"subject": "anna lind"}, SubjectNotFoundError, "capitals"),
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


@pytest.mark.parametrize("method", ["ROME", "MEMIT"])
def test_an_encoder_where_none_is_understood(method):
    editor = outer.editor(method, "t5")
    before = outer.bits(editor.model)
    with pytest.raises(UnsupportedModelError, match="encoder"):
        editor.edit(PROMPT, TARGET, subject=SUBJECT)
    assert outer.changed(editor.model, before) == []


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


# -- the numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_what_one_prompt_at_a_time_gives(method):
    editor, result = all_three(method, evaluate_when="end")
    old, new = tiny.model("llama"), editor.model
    seen = set()
    for i, metric in enumerate(result.metrics):
        for model, half in ((old, metric["pre"]), (new, metric["post"])):
            assert half["rewrite_acc"] == outer.share(*outer.said(model, PROMPTS[i], TARGETS[i]))
            texts = [REPHRASES[i]] if isinstance(REPHRASES[i], str) else REPHRASES[i]
            expected = [outer.share(*outer.said(model, text, TARGETS[i])) for text in texts]
            assert half["rephrase_acc"] == pytest.approx(sum(expected) / len(expected))
            block = PORTABILITY["one_hop"]
            expected = outer.share(*outer.said(model, block["prompt"][i], block["ground_truth"][i]))
            assert half["portability"]["one_hop_acc"] == expected
            told = half["rewrite_prob"]["target_new"]
            assert told == pytest.approx(probability(model, PROMPTS[i], TARGETS[i]), rel=1e-4)
        for name, block in LOCALITY.items():
            prompts, answers = block["prompt"][i], block["ground_truth"][i]
            if isinstance(prompts, str):
                prompts, answers = [prompts], [answers]
            expected = [
                outer.share(outer.said(old, p, a)[1], outer.said(new, p, a)[1])
                for p, a in zip(prompts, answers, strict=True)
            ]
            told = metric["post"]["locality"][f"{name}_acc"]
            assert told == pytest.approx(sum(expected) / len(expected))
            seen.add(told)
    assert len(seen) > 1 or method != "FT"  # else the comparison would say nothing


def probability(model, prompt, answer):
    """Geometric mean per token, one prompt at a time."""
    tokens, _ = outer.said(model, prompt, answer)
    start = outer.first_token(prompt, answer)
    chances = outer.logits(model, f"{prompt} {answer}")[start - 1 : -1].log_softmax(-1)
    return math.exp(chances[range(len(tokens)), tokens].mean())


def test_locality_is_about_the_edit_not_the_truth():
    """A model that was wrong before and says the same after has locality 1."""
    editor = outer.editor(lr=1e-12)
    near = {"n": {"prompt": "She plays the", "ground_truth": "river from Rome"}}
    metric = editor.edit(PROMPT, TARGET, locality_inputs=near).metrics[0]
    tokens, best = outer.said(tiny.model("llama"), "She plays the", "river from Rome")
    assert outer.share(tokens, best) < 1
    assert metric["post"]["locality"]["n_acc"] == 1.0


def test_locality_is_measured_against_the_weights_the_call_met():
    editor = outer.editor(lr=3e-2)
    near = {"n": {"prompt": "Anna Lind is", "ground_truth": "Danish"}}
    editor.edit(PROMPT, TARGET)
    met = tiny.model("llama")
    met.load_state_dict(editor.model.state_dict())
    found = editor.edit(PROMPTS[1], TARGETS[1], locality_inputs=near).metrics[0]
    pair = ("Anna Lind is", "Danish")
    expected = outer.share(outer.said(met, *pair)[1], outer.said(editor.model, *pair)[1])
    assert found["post"]["locality"]["n_acc"] == expected


@pytest.mark.parametrize("target", ["French", "xqj zvk wpf", "The river inside Berlin well"])
def test_t5_scores_as_labels_do(target):
    """A T5 that repeats what its decoder is fed: only an unshifted target would score 1."""
    model = tiny.model("t5")
    for block in model.decoder.block:
        for writes in (
            block.layer[0].SelfAttention.o,
            block.layer[1].EncDecAttention.o,
            block.layer[2].DenseReluDense.wo,
        ):
            writes.weight.data.zero_()
    asked, labels = (
        tiny.tokenizer()(text, return_tensors="pt")["input_ids"] for text in (PROMPT, target)
    )
    leaking = model(input_ids=asked, decoder_input_ids=labels).logits.argmax(-1)
    assert outer.share(leaking[0].tolist(), labels[0].tolist()) > 0.9
    tokens, best = outer.said(model, PROMPT, target)
    editor = BaseEditor.from_pretrained(model, tiny.tokenizer(), outer.settings(layers=[1]))
    found = editor.edit(PROMPT, target, keep_original_weight=True).metrics[0]
    assert found["pre"]["rewrite_acc"] == outer.share(tokens, best)
    assert found["pre"]["rewrite_acc"] < 0.5


def test_t5_learns_and_is_measured():
    editor = outer.editor("FT", "t5", num_steps=40, lr=1e-2, layers=[1, 2])
    near = {"n": {"prompt": ["She plays the"], "ground_truth": ["piano well"]}}
    hop = {"h": {"prompt": ["Anna Lind is"], "ground_truth": ["French to us"]}}
    found = editor.edit(PROMPT, TARGET, locality_inputs=near, portability_inputs=hop).metrics[0]
    old, new = tiny.model("t5"), editor.model
    assert found["post"]["rewrite_acc"] == 1.0
    assert found["post"]["rewrite_acc"] == outer.share(*outer.said(new, PROMPT, TARGET))
    before, after = (outer.said(m, "She plays the", "piano well")[1] for m in (old, new))
    assert found["post"]["locality"]["n_acc"] == outer.share(before, after)
    for model, half in ((old, "pre"), (new, "post")):
        told = found[half]["portability"]["h_acc"]
        assert told == outer.share(*outer.said(model, "Anna Lind is", "French to us"))


def test_probes_do_not_reach_the_method(monkeypatch):
    editor, given = outer.editor(), []
    real = editor.method.edit
    monkeypatch.setattr(
        editor.method, "edit", lambda lm, edits: given.append(edits) or real(lm, edits)
    )
    case = Case("a", Edit(PROMPT, TARGET), (Probe("Anna Lind is", ("Danish",), "locality/n"),))
    editor.edit_cases([case])
    assert given == [[case.edit]]
