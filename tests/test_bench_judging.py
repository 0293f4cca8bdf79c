"""``easyedit bench judge``: what is asked of the judge, and what is counted."""

from __future__ import annotations

import json

import pytest

import benching
from easyeditor.bench.judging import FILE, judge_run
from easyeditor.bench.runner import run
from easyeditor.errors import BenchError, JudgeError
from easyeditor.evaluate.judge import Verdict
from easyeditor.evaluate.query import Measures
from scripting import DONE, document, refused
from test_judge import completion, endpoint, refusal


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A finished run with free answers."""
    place = tmp_path_factory.mktemp("judged") / "run"
    run(benching.lm(), benching.plan(), place)
    return place


class Scripted:
    """A judge that knows its verdict by the prompt, and remembers what it was asked."""

    def __init__(self, verdict=lambda _prompt: True):
        self.verdict, self.asked = verdict, []

    def __call__(self, questions):
        self.asked += questions
        return [Verdict(self.verdict(question.prompt), "said", False) for question in questions]


def test_every_answer_to_prompts_and_rephrases_is_judged(out):
    first, second, third = (case.edit.prompt for case in benching.CASES)
    judge = Scripted({first: True, second: None, third: False}.get)  # no verdict on rephrases
    scores = judge_run(out, judge)
    prompts = {first, second, third}
    rephrases = {p.prompt for case in benching.CASES for p in case.probes if p.kind == "rephrase"}
    assert {question.prompt for question in judge.asked} == prompts | rephrases
    answers = {r["case_id"]: r["texts"]["answers"] for r in benching.records(out)}
    for case in benching.CASES:
        own = [q for q in judge.asked if q.prompt == case.edit.prompt]
        assert [q.target for q in own] == [case.edit.target]
        assert own[0].answer.strip() in answers[case.id][case.edit.prompt]
    assert scores["FT"] == {
        "rewrite": {"judge_acc": 0.5, "n": 3, "unparsed": 1},
        "rephrase": {"judge_acc": None, "n": 3, "unparsed": 3},
    }
    assert json.loads((out / FILE).read_text(encoding="utf-8")) == scores


def test_in_a_sequence_the_answers_at_its_end_are_judged(tmp_path):
    run(benching.lm(), benching.plan("sequential"), tmp_path)
    judge = Scripted()
    assert judge_run(tmp_path, judge)["FT"]["rewrite"]["judge_acc"] == 1.0
    final = [r for r in benching.records(tmp_path) if r["stage"] == "final"]
    said = {a.strip() for record in final for a in record["texts"]["answers"].values()}
    assert all(any(q.answer.strip() in text for text in said) for q in judge.asked)


def test_a_run_without_free_answers(tmp_path):
    run(benching.lm(), benching.plan(measures=Measures()), tmp_path)
    with pytest.raises(BenchError, match="--answers"):
        judge_run(tmp_path, Scripted())
    assert not (tmp_path / FILE).exists()


def test_no_run(tmp_path):
    with pytest.raises(BenchError):
        judge_run(tmp_path, Scripted())


def test_a_judge_that_refuses_leaves_the_run_as_it_was(out):
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}

    def judge(_questions):
        raise JudgeError("no")

    with pytest.raises(JudgeError):
        judge_run(out, judge)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_the_command_asks_an_endpoint_and_keeps_its_replies(easyedit, out):
    with endpoint(lambda n, _body: completion("YES" if n % 2 else "no.")) as script:
        words = ("bench", "judge", out, "--base-url", script.url, "--judge-model", "m")
        told = easyedit(*words, "--json")
        first = len(script.bodies)
        again = easyedit(*words)
        assert len(script.bodies) == first  # from the cache beside the run
    assert told.code == DONE
    counts = document(told)["FT"]
    assert first == 6
    assert sum(kind["judge_acc"] * kind["n"] for kind in counts.values()) == pytest.approx(3)
    assert again.code == DONE
    assert "states the target" in again.out


def test_the_command_against_a_server_that_refuses(easyedit, out):
    before = (out / FILE).read_bytes()
    with endpoint(lambda *_: refusal(401, "bad key")) as script:
        told = easyedit("bench", "judge", out, "--base-url", script.url, "--judge-model", "other")
    assert "bad key" in refused(told)
    assert (out / FILE).read_bytes() == before


def test_answers_about_images_are_judged_in_the_form_of_their_prompts():
    from dataclasses import replace

    from easyeditor.bench.judging import _questions
    from easyeditor.editors.metric_recorder import request_of
    from easyeditor.edits import Case, Edit, ImageRef, Probe, Prompt
    from easyeditor.evaluate.query import Replies, texts_of

    about = Prompt("It is the flag of", (ImageRef("a/1.png", "a" * 64),))
    other = replace(about, images=(ImageRef("b/1.png", "b" * 64),))  # the same name, elsewhere
    spoken = replace(about, chat=True)
    words = about.with_text("This flag is of")
    probes = [
        Probe(words, ("Norway",), "rephrase/text"),
        Probe(other, ("Norway",), "rephrase/image"),
        Probe(spoken, ("Norway",), "rephrase"),
    ]
    case = Case("0", Edit(about, "Norway"), probes)
    options = Measures(answer_tokens=5)
    answers = {about: "A", words: "B", other: "C\nE", spoken: "D\nE"}
    replies = Replies({}, {options.answer(p): text for p, text in answers.items()})
    record = {
        "requested_rewrite": request_of(case),
        "hparams": {},
        "texts": texts_of(case, replies, options),
    }
    assert len(record["texts"]["answers"]) == 4
    assert [(kind, q.prompt, q.answer) for kind, q in _questions(record)] == [
        ("rewrite", about.text, "A"),
        ("rephrase", words.text, "B"),
        ("rephrase", about.text, "C"),
        ("rephrase", about.text, "D\nE"),
    ]
