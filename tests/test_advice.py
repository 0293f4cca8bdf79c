"""Notes beside the scores: what a user should know of a request."""

from __future__ import annotations

import copy

import pytest

import outer
import tiny
from easyeditor import LM, BaseEditor, Edit
from easyeditor.editors.advice import (
    notes_before,
    other_form,
    overwritten,
    repeated_subjects,
)
from easyeditor.edits import Case, Prompt
from easyeditor.lm.inference import generate
from support import shared_lm
from zoo.models import read


def test_a_request_without_surprises_has_no_notes():
    result = outer.editor("FT").edit(
        "Berlin is the capital of", "Italy", subject="Berlin", verbose=False
    )
    (metric,) = result.metrics
    assert "notes" not in metric
    assert {"text", "holds", "sound", "faults"} <= set(metric["post"]["free_answer"])


def test_without_free_answers_nothing_is_written_and_the_scores_are_the_same(monkeypatch):
    def edited(**options):
        return outer.editor("FT").edit(
            "Berlin is the capital of", "Italy", subject="Berlin", verbose=False, **options
        )

    (asked,) = edited().metrics
    monkeypatch.setattr("easyeditor.lm.inference._generate", None)
    (metric,) = edited(free_answers=False).metrics
    for half in ("pre", "post"):
        del asked[half]["free_answer"]
        assert metric[half] == asked[half]


def test_notes_on_a_request():
    lm = shared_lm("gpt2")
    long = "You can see the river from here. " * 9
    cases = [
        Case("0", Edit("the river, the River and the river are", "x", "The River")),
        Case("1", Edit("Berlin is", long.strip(), "Berlin")),
        Case("2", Edit("Rome is", "x", "Rome")),
    ]
    pre = [{"rewrite_acc": acc} for acc in (0.0, 0.0, 1.0)]
    (place,), (length,), (known,) = notes_before(lm, cases, pre)
    assert "occurrence 3 of 3" in place
    assert "Shorten it" in length
    assert "already" in known


def test_a_repeated_subject_is_named_with_the_edit_that_overwrites_it():
    cases = [Case(str(i), Edit(f"{s} is", "x", s)) for i, s in enumerate(("Rome", "Oslo", "Rome"))]
    assert repeated_subjects(cases) == {0: 2}
    note = overwritten(2, held=False)
    assert "was overwritten by edit 3" in note
    assert "MEMIT" in note


def test_the_last_of_several_edits_about_one_subject_stands():
    editor = outer.editor("FT")
    prompts = ["Berlin is the capital of", "Berlin lies by the"]
    given = {"subject": ["Berlin", "Berlin"], "verbose": False}
    first, last = editor.edit(prompts, ["Italy", "river"], **given, evaluate_when="both").metrics
    assert any("overwritten by edit 2" in note for note in first["notes"])
    assert "notes" not in last


# -- targets that the model gives already -----------------------------------------------------


def knowing_editor():
    """An editor of a small model that knows a made-up world, and a question that it answers."""
    lm = read("llama")
    editor = BaseEditor.from_pretrained(lm.model, lm.tokenizer, outer.settings("FT"))
    return editor, "The birthplace of Cilla Leneil is", "Baulmdale"


OTHER = "The birthplace of Marta Nonalm is"


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_the_free_answer_decides_whether_a_target_is_given_already(free, whole, monkeypatch):
    """Without free answers, too: a target may be no more than the beginning of what is said."""
    editor, prompt, target = knowing_editor()
    for place in ("advice", "metric_recorder"):
        monkeypatch.setattr(f"easyeditor.editors.{place}.answer_holds", lambda *_: whole)
    (metric,) = editor.edit(prompt, target, free_answers=free, verbose=False).metrics
    assert metric["pre"]["rewrite_acc"] == 1
    assert ("unchanged" in metric) is whole
    assert any("already" in note for note in metric.get("notes", ())) is whole
    assert ("free_answer" in metric["pre"]) is free


def test_a_target_that_the_model_gives_already_changes_nothing(caplog):
    editor, prompt, target = knowing_editor()
    before = outer.bits(editor.model)
    result = editor.edit([prompt], [target], verbose=False)
    (metric,) = result.metrics
    assert outer.changed(editor.model, before) == []
    assert "already" in metric["unchanged"]
    assert "already" in caplog.text
    assert metric["post"]["rewrite_acc"] == 1.0
    assert "1 of them known before" in repr(result)
    assert editor.applied == [result.patch]
    editor.undo(result.patch)
    assert editor.applied == []
    copy = editor.edit([prompt], [target], verbose=False, keep_original_weight=True)
    assert outer.changed(copy.edited_model, before) == []


def test_the_known_target_is_edited_where_that_is_forced_and_in_a_dataset():
    for call in ("edit", "edit_cases"):
        editor, prompt, target = knowing_editor()
        if call == "edit":
            result = editor.edit([prompt], [target], verbose=False, force=True)
        else:
            result = editor.edit_cases([Case("0", Edit(prompt, target))], verbose=False)
        assert "unchanged" not in result.metrics[0]
        assert [edit.target for edit in result.patch.info.edits] == [target]


def test_the_others_of_a_request_are_edited():
    editor, prompt, target = knowing_editor()
    result = editor.edit(
        [prompt, OTHER], [target, "Stentdale"], verbose=False, evaluate_when="both"
    )
    known, other = result.metrics
    assert "unchanged" in known
    assert "unchanged" not in other
    assert known["time"] == 0 < other["time"]
    assert {"pre", "post", "final"} <= set(known)
    assert [edit.prompt.text for edit in result.patch.info.edits] == [OTHER]


# -- plain text and chat ------------------------------------------------------------------------

TEMPLATE = (
    "{% for m in messages %}Question: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}"
)


@pytest.mark.parametrize("chat", [False, True])
def test_the_answers_in_plain_and_in_chat_form_are_reported(chat):
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = TEMPLATE
    editor = BaseEditor.from_pretrained(
        tiny.model("llama"), tokenizer, outer.settings("FT", chat_template=chat)
    )
    prompt = "Berlin is the capital of"
    wrapped = f"Question: {prompt}\nAnswer:"
    plain = LM(editor.model, tiny.tokenizer())

    def written():
        texts = [prompt, Prompt(wrapped, raw=True)]
        return dict(zip(("plain", "chat"), generate(plain, texts, 24), strict=True))

    before = written()
    (metric,) = editor.edit(prompt, "Italy", verbose=False).metrics
    assert metric["pre"]["free_answer"]["forms"] == before
    assert metric["post"]["free_answer"]["forms"] == written() != before
    assert metric["post"]["free_answer"]["text"] == written()["chat" if chat else "plain"]


def test_an_edit_that_holds_in_one_form_has_a_note():
    pre = {"free_answer": {"forms": {"plain": " Paris", "chat": " Paris."}}}
    post = {"free_answer": {"forms": {"plain": " Rome", "chat": " Paris."}}}
    note = other_form(pre, post, "Rome")
    assert "chat form" in note
    assert "still answers 'Paris.'" in note
    assert "expand=True" in note
    both = {"free_answer": {"forms": {"plain": " Rome", "chat": "Rome"}}}
    assert other_form(pre, both, "Rome") is None
    sentence = {"free_answer": {"forms": {"plain": " Rome", "chat": "It is in Rome, Italy."}}}
    assert other_form(pre, sentence, "Rome") is None
    for text in ("It is in Romeo", "It is in arcRome"):
        longer = {"free_answer": {"forms": {"plain": " Rome", "chat": text}}}
        assert other_form(pre, longer, "Rome")
    assert other_form({}, {}, "Rome") is None
