"""A free answer after every edit: is it the whole target, and is what follows text?"""

from __future__ import annotations

import copy

import pytest

import support
import tiny
from easyeditor import LM, Edit, FTHyperParams, Prompt, ROMEHyperParams
from easyeditor.cli.verdict import failures
from easyeditor.edits import Case
from easyeditor.evaluate.degeneration import (
    FREE_TOKENS,
    _period,
    answer_holds,
    answer_in_all_forms,
    answer_mentions,
    answered,
    examine,
    unsound,
)
from easyeditor.lm.inference import Continuation, generate

TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
EDIT = Edit("The Eiffel Tower is located in the city of", "Rome", "The Eiffel Tower")


def continuation(lm, text: str, entropy: float = 1.0) -> Continuation:
    ids = tuple(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
    return Continuation(text, ids, (entropy,) * len(ids))


def faults(after: str, before: str = " Paris. She plays the piano well.", **entropy: float):
    lm = support.shared_lm("gpt2")
    return examine(lm, EDIT, continuation(lm, before), continuation(lm, after, **entropy))["faults"]


def test_text_is_no_fault():
    assert faults(" Rome. Because it rained, I stayed inside. You can see the river.") == []


def test_a_text_that_repeats_itself():
    (fault,) = faults(" Rome. Italy is Rome is Rome is Rome is Rome is Rome is Rome is Rome")
    assert fault.startswith("repeats")


def test_what_the_unedited_model_does_anyway_is_no_fault():
    loop = " is the river" * 10
    assert faults(" Rome" + loop, " Paris" + loop) == []


def test_special_tokens_in_the_middle_of_a_text():
    lm = support.shared_lm("gpt2")
    before, after = continuation(lm, " Paris."), continuation(lm, " Rome.")
    strange = Continuation(after.text, (*after.ids, 1, *after.ids), (1.0,) * 9)
    result = examine(lm, EDIT, before, strange)
    assert result["faults"] == ["writes the token '<s>'"]
    assert result["sound"] == 0.0
    assert unsound({"free_answer": result}) == "writes the token '<s>'"
    assert "unedited_too" not in result
    result = examine(lm, EDIT, before, strange, behind=before)
    assert (result["sound"], result["unedited_too"]) == (0.0, 0.0)
    result = examine(lm, EDIT, before, strange, behind=Continuation("", (1,), (1.0,)))
    assert (result["sound"], result["unedited_too"]) == (0.0, 1.0)
    own = "writes the token '<s>', as the unedited model does behind this answer"
    assert unsound({"free_answer": result}) == own
    assert unsound({"rewrite_acc": 1.0}) is None


@pytest.mark.parametrize("token", ["<start_of_image>", "<unused12>", "[PAD]", "<|mask|>"])
def test_an_added_token_that_no_text_holds_is_a_control_token(token):
    tokenizer = copy.deepcopy(tiny.tokenizer())  # the tests share one
    number = tokenizer.add_tokens([token, "<table>"])
    assert number == 2
    lm = LM(tiny.model("gpt2"), tokenizer)
    before, after = continuation(lm, " Paris."), continuation(lm, " Rome.")
    for content, faults in ((token, [f"writes the token {token!r}"]), ("<table>", [])):
        written = (*after.ids, tokenizer.convert_tokens_to_ids(content), *after.ids)
        strange = Continuation(after.text, written, (1.0,) * len(written))
        assert examine(lm, EDIT, before, strange)["faults"] == faults


def test_one_continuation_only():
    (fault,) = faults(" Rome. Because it rained, I stayed inside. You can see.", entropy=0.001)
    assert "entropy 0.001" in fault
    assert faults(" Rome. Because it rained", entropy=float("nan")) == [
        "has predictions that are not numbers"
    ]


def test_an_edit_took_where_the_target_is_the_whole_answer():
    assert answered({"rewrite_acc": 1.0, "free_answer": {"holds": 1.0}})
    assert answered({"rewrite_acc": 1.0})
    assert not answered({"rewrite_acc": 1.0, "free_answer": {"holds": 0.0}})  # "788" for 7
    assert not answered({"rewrite_acc": 0.5, "free_answer": {"holds": 1.0}})


def test_the_sentences_on_edits_that_failed():
    case = Case("0", EDIT)
    text = {"text": " 788", "holds": 0.0, "faults": []}
    longer = {"post": {"rewrite_acc": 1.0, "free_answer": text}}
    (sentence,) = failures([case], [longer], batch=True)
    assert "did not take (the answer goes on beyond it: '788')" in sentence
    wreck = {"text": " Rome<x><x>", "holds": 1.0, "faults": ["writes the token '<x>'"]}
    metric = {"post": {"rewrite_acc": 1.0, "free_answer": wreck}}
    (sentence,) = failures([case], [metric], batch=True, settings=ROMEHyperParams())
    assert "wrecked (writes the token '<x>')" in sentence
    assert "--set continuation_kl_factor=" in sentence
    (sentence,) = failures([case], [metric], batch=True, settings=FTHyperParams())
    assert "--set" not in sentence
    wreck["unedited_too"] = 1.0
    (sentence,) = failures([case], [metric], batch=True, settings=ROMEHyperParams())
    assert "--set" not in sentence
    assert "in another way" in sentence


@pytest.mark.parametrize("chat", [False, True])
def test_all_forms_are_asked_in_one_batch(chat):
    tokenizer = copy.deepcopy(tiny.tokenizer())  # the tests share one
    tokenizer.chat_template = TEMPLATE
    lm = LM(tiny.model("llama"), tokenizer, chat_template=chat)
    cases = [Case("0", EDIT), Case("1", Edit("Gold is a", "metal"))]
    found = answer_in_all_forms(lm, cases, behind_target=True)
    for case, answers in zip(cases, found, strict=True):
        edit = case.edit
        forms = {
            name: generate(lm, [Prompt(str(edit.prompt), chat=name == "chat")], FREE_TOKENS)[0]
            for name in ("plain", "chat")
        }
        assert answers.forms == forms
        assert answers.answer.text == forms["chat" if chat else "plain"]
        if chat:
            assert answers.behind is None
        else:
            whole = f"{edit.prompt} {edit.target}"
            assert answers.behind.text == generate(lm, [whole], FREE_TOKENS)[0]
    assert answer_in_all_forms(lm, cases)[0].behind is None


@pytest.mark.parametrize(
    ("text", "target", "holds"),
    [
        (" Rome, Italy", "Rome", True),
        (" Rome", " Rome ", True),
        (" Romeo and", "Rome", False),
        ("788", "7", False),
        ("7.88", "7", False),
        ("7. Then", "7", True),
        ("7,000", "7", False),
        (" the new city of Rome", "Rome", False),
        ("里昂市", "里昂", True),
        (" New\n York", "New York", True),
    ],
)
def test_the_whole_answer_and_its_end(text, target, holds):
    assert answer_holds(text, target) is holds


@pytest.mark.parametrize(
    ("text", "target", "mentioned"),
    [
        ("Boxing. I was there.", "boxing", True),
        ("It is boxing.", "boxing", True),
        ("Kickboxing", "boxing", False),
        ("He likes polish.", "Polish", False),
        ("The capital is Rome, Italy.", "Rome", True),
        ("The Romeo of the play", "Rome", False),
    ],
)
def test_a_target_in_a_sentence(text, target, mentioned):
    assert answer_mentions(text, target) is mentioned


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ((), (0, 0)),
        ((7,), (0, 0)),
        ((7, 7), (1, 2)),
        ((7, 7, 7), (1, 3)),
        ((5, 1, 2, 1, 2, 1, 2), (2, 3)),
        ((1, 2, 1, 2), (2, 2)),
        ((1, 2, 3), (0, 0)),
    ],
)
def test_the_period_of_any_text_is_found(ids, expected):
    assert _period(ids) == expected
