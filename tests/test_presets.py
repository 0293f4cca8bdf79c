"""Presets: the questions a user would ask, made by rules and never edited with."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import pytest

import benching
import support
import tiny
from easyeditor import LM, Case, Edit, Generate, Probe, Prompt
from easyeditor.bench.judging import judge_run
from easyeditor.bench.runner import run
from easyeditor.editors.expanding import Expansion, expanded_cases
from easyeditor.errors import UnknownPresetError
from easyeditor.evaluate.judge import Verdict
from easyeditor.evaluate.metrics import summarise
from easyeditor.evaluate.presets import ANSWER_TOKENS, PRESETS, preset
from easyeditor.evaluate.probes import distracted, with_asked, with_distractors
from easyeditor.evaluate.query import EvalOptions, observe
from easyeditor.evaluate.replies import Ending, Replies
from easyeditor.evaluate.scorers import scorers
from easyeditor.lm.inference import continue_all
from support import shared_lm

SENTENCE = "The Louvre is located in the city of"
QUESTION = "In which city is the Louvre located?"
EDIT = Edit(SENTENCE, "Rome", "The Louvre", "Paris")


def chat_lm(*, wrapped: bool = False) -> LM:
    """A tiny model whose tokenizer has a chat template."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return LM(tiny.model("llama"), tokenizer, chat_template=wrapped)


def asked_of(lm: LM, case: Case) -> dict[str, Prompt]:
    """Prompts of the new probes by name."""
    return {p.name: p.prompt for p in with_asked(lm, case).probes if p.group == "asked"}


def test_the_questions_of_a_sentence():
    assert asked_of(shared_lm("llama"), Case("c", EDIT)) == {"question": QUESTION}
    assert asked_of(chat_lm(), Case("c", EDIT)) == {
        "question": Prompt(QUESTION, chat=False),
        "chat": Prompt(SENTENCE, chat=True),
        "chat_question": Prompt(QUESTION, chat=True),
    }
    case = with_asked(chat_lm(), Case("c", EDIT))
    assert {p.answers for p in case.probes} == {("Rome",)}
    assert with_asked(chat_lm(), case) == case  # not twice


def test_a_model_that_wraps_prompts_is_edited_in_chat_form():
    names = asked_of(chat_lm(wrapped=True), Case("c", EDIT))
    assert set(names) == {"question", "sentence", "chat_question"}  # the sentence in plain form


def test_an_edit_that_is_a_question():
    edit = Edit("What is the capital of France?", "Lyon", "France")
    assert asked_of(shared_lm("llama"), Case("c", edit)) == {"sentence": "The capital of France is"}
    assert set(asked_of(chat_lm(), Case("c", edit))) == {"sentence", "chat", "chat_question"}


def test_what_the_edit_is_made_with_is_not_asked():
    further = Edit(Prompt(QUESTION, chat=True), "Rome", "Louvre")
    case = Case("c", Edit(SENTENCE, "Rome", "The Louvre", expansions=(further,)))
    assert set(asked_of(chat_lm(), case)) == {"chat"}
    two = Case("c", EDIT, also=(Edit(Prompt(QUESTION, chat=False), "Rome", "Louvre"),))
    assert set(asked_of(chat_lm(), two)) == {"chat", "chat_question"}


def test_an_expanded_edit_leaves_out_what_is_asked():
    lm = chat_lm()
    case = with_asked(lm, Case("c", EDIT))
    (expanded,) = expanded_cases(lm, [case], Expansion(rewordings=3))
    words = " ".join(other.prompt.text for other in expanded.edit.expansions)
    assert QUESTION not in words
    assert SENTENCE not in words
    assert "When it comes to the Louvre" in words


def test_images_and_system_messages_stay():
    system = Edit(Prompt(SENTENCE, system="Be brief."), "Rome", "The Louvre")
    names = asked_of(chat_lm(wrapped=True), Case("c", system))
    assert names == {"chat_question": Prompt(QUESTION, system="Be brief.", chat=True)}
    raw = Edit(Prompt(SENTENCE, raw=True), "Rome", "The Louvre")
    assert asked_of(chat_lm(), Case("c", raw)) == {}


def test_wild_warns_where_nothing_can_be_asked(caplog):
    raw = Case("r", Edit(Prompt(SENTENCE, raw=True), "Rome"))
    with caplog.at_level(logging.WARNING):
        preset("wild").cases(shared_lm("llama"), [raw, Case("c", EDIT)])
    assert "1 of 2 cases (r)" in caplog.text


def test_presets_by_name():
    assert list(PRESETS) == ["classic", "wild", "long"]
    cases = [Case("c", EDIT)]
    assert preset("classic").cases(shared_lm("llama"), cases) == cases
    options = EvalOptions(3)
    assert preset("classic").options(options) is options
    assert preset("Wild").options(options) == EvalOptions(3, asked_tokens=ANSWER_TOKENS)
    with pytest.raises(UnknownPresetError, match="Did you mean 'wild'"):
        preset("wyld")


def test_answers_are_scored_by_hand():
    case = Case("c", EDIT, (Probe(QUESTION, ("Rome",), "asked/question"),))
    query = Generate(QUESTION, 8)
    options = EvalOptions(asked_tokens=8)

    def generation(text, ending):
        replies = Replies(
            observe(shared_lm("llama"), [case]).scores, {query: text}, endings={query: ending}
        )
        return summarise(case, replies, replies, scorers(options))["generation"]

    assert generation("In Rome.\nWhat else?", Ending(8, False)) == {
        "question_acc": 1.0,
        "question_exact": 0.0,
        "question_ended": 0.0,
        "question_tokens": 8.0,
    }
    assert generation(" Rome. ", Ending(2, True))["question_exact"] == 1.0


def test_endings_say_whether_the_model_stopped():
    lm = support.lm("llama")
    cases, options = [with_asked(lm, Case("c", EDIT))], EvalOptions(asked_tokens=5)
    query = Generate(QUESTION, 5)
    assert observe(lm, cases, options).endings == {query: Ending(5, False)}
    (first, *_) = continue_all(lm, [query])[0].ids
    lm.model.generation_config.eos_token_id = first  # its first token ends the text now
    assert observe(lm, cases, options).endings == {query: Ending(0, True)}


def test_other_numbers_stay_to_the_bit():
    lm, case = shared_lm("llama"), benching.CASES[0]
    chosen = EvalOptions(answer_tokens=4)
    plain = observe(lm, [case], chosen)
    wild = preset("wild").cases(lm, [case])[0]
    options = preset("wild").options(chosen)
    both = observe(lm, [wild], options)
    before = summarise(case, plain, plain, scorers(chosen, [case]))
    after = summarise(wild, both, both, scorers(options, [wild]))
    extra = {key for key in after["generation"] if key.startswith("question_")}
    assert len(extra) == 4
    for key in extra:
        del after["generation"][key]
    assert after == before


def test_a_run_in_the_wild(tmp_path):
    lm = benching.lm()
    wild = preset("wild")
    cases = [with_distractors(case) for case in wild.cases(lm, benching.CASES)]
    measures = EvalOptions(asked_tokens=4, divergence=True)
    plan = benching.plan(cases=cases, measures=measures, preset="wild")
    run(lm, plan, tmp_path)
    table = benching.tables(tmp_path)["table.md"].decode()
    for title in ("question contains", "question ended", "question tokens", "NS+", "NKL"):
        assert title in table
    assert "preset wild" in table
    records = benching.records(tmp_path)
    assert {row["name"] for record in records for row in record["texts"]["asked"]} == {"question"}
    assert all(record["post"]["locality"]["distracting_kl"] >= 0 for record in records)
    asked = []

    def judge(questions):
        asked.extend(questions)
        return [Verdict(True, "yes", False) for _ in questions]

    assert judge_run(tmp_path, judge)["FT"] == {
        "question": {"judge_acc": 1.0, "n": 3, "unparsed": 0}
    }
    prompts = [p.prompt for case in cases for p in case.probes if p.group == "asked"]
    assert [question.prompt for question in asked] == prompts
    before = benching.contents(tmp_path)
    run(lm, plan, tmp_path)  # goes on: nothing is left to do, and the folder is the same
    assert benching.contents(tmp_path) == before


def test_distractors_by_rule():
    near = Probe("The Uffizi is in the city of", ("Florence",), "locality/neighborhood")
    far = Probe("She plays the", ("piano",), "locality/other")
    case = Case("c", EDIT, (near, far))
    distracting = distracted(EDIT, near)
    assert distracting == Probe(
        f"{SENTENCE} Rome. The Uffizi is in the city of", ("Florence",), "locality/distracting"
    )
    assert with_distractors(case).probes == (near, far, distracting)
    assert with_distractors(with_distractors(case)) == with_distractors(case)
    others = with_distractors(Case("c", EDIT, (far,)))
    assert others.probes[-1].prompt.text == f"{SENTENCE} Rome. She plays the"
    assert with_distractors(Case("c", EDIT)) == Case("c", EDIT)
    placed = replace(EDIT, prompt=EDIT.prompt.with_text(f"<image> {EDIT.prompt.text}"))
    assert distracted(placed, near) == distracting  # the fact's image is not shown
