"""Forgetting: the target comes from the model, and the report looks for what is left."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

import outer
import zoo
from easyeditor import BaseEditor, Case, Edit, Probe, load_patch
from easyeditor.editors.forgetting import alternative_answer, forgetting_case
from easyeditor.edits import Prompt, Score
from easyeditor.errors import EditError, EditFailed, EmptyTargetError
from easyeditor.evaluate.gone import Gone, OldAnswer, Relearned, Traces, gone_report
from easyeditor.interpret.logit_lens import logit_lens
from easyeditor.lm.inference import generate, score
from outer import PROMPT, SUBJECT
from scripting import BAD_INPUT, DONE, NOT_TAKEN, document, refused
from support import Snapshot, lm, shared_lm
from zoo import world

CAPITAL = Edit("The capital of France is", "Rome", "France", "Paris")
OTHERS = [Edit("Berlin is the capital of", "Germany"), Edit("Rome is the capital of", "Italy")]


# -- targets ----------------------------------------------------------------------------------


def known_case() -> Case:
    """A fact that the small trained model knows."""
    return replace(world.cases("eval")[0], probes=())


def test_the_alternative_is_the_models_own_and_another() -> None:
    target, case = zoo.load("gpt2"), known_case()
    old = case.edit.ground_truth
    assert old is not None
    assert generate(target, [case.edit.prompt], 6)[0].strip().startswith(old)
    answer = alternative_answer(target, case.edit, old)
    assert answer
    assert old not in answer
    row, other = (target.text.row(case.edit.prompt, text).target[0] for text in (old, answer))
    assert row != other


def test_the_old_answer_is_asked_for_where_it_is_not_named() -> None:
    target = shared_lm("llama")
    case = forgetting_case(target, Case("0", Edit(PROMPT, "unknown", SUBJECT)), "I do not know")
    said = generate(target, [PROMPT], 10)[0]
    assert case.edit.target == "I do not know"
    assert case.edit.ground_truth
    assert said.strip().startswith(case.edit.ground_truth)
    assert case.edit.rejected == case.edit.ground_truth


def test_no_other_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    target = shared_lm("llama")
    monkeypatch.setattr("easyeditor.editors.forgetting.generate", lambda *_a, **_k: ["Paris."])
    with pytest.raises(EditFailed, match=r"has no answer to .* beside 'Paris'"):
        alternative_answer(target, CAPITAL, "Paris")
    monkeypatch.setattr("easyeditor.editors.forgetting.generate", lambda *_a, **_k: [" ."])
    with pytest.raises(EditFailed, match="gives no answer"):
        forgetting_case(target, Case("0", Edit(PROMPT, "unknown", SUBJECT)))


def test_all_that_depends_on_the_target_gets_the_new_one() -> None:
    edit = replace(
        CAPITAL,
        target="unknown",
        ground_truth=" Paris ",
        expansions=(Edit("France's capital is", "unknown", "France"),),
    )
    probes = [
        Probe("The French capital, in France, is", ("unknown",), "rephrase"),
        Probe("The capital of France?", ("unknown",), "rephrase/image"),
        Probe("The capital of Italy is", ("Rome",), "locality/near"),
        Probe("The capital of France lies in", ("Europe",), "portability/one_hop"),
    ]
    case = Case("0", edit, probes, references=["Its capital is unknown."])
    result = forgetting_case(shared_lm("llama"), case, "I do not know")
    assert [(e.target, e.rejected) for e in result.edit.rows] == [("I do not know", "Paris")] * 2
    assert [(probe.kind, probe.answers) for probe in result.probes] == [
        ("rephrase", ("I do not know",)),
        ("rephrase/image", ("I do not know",)),
        ("locality/near", ("Rome",)),
    ]
    assert result.references == ()


def test_blank_texts_and_further_edits() -> None:
    target = shared_lm("llama")
    before = Snapshot(target.model)
    blank = replace(CAPITAL, ground_truth=" ")
    case = forgetting_case(target, Case("0", blank), "I do not know")
    assert (case.edit.ground_truth or "").strip()
    with pytest.raises(EditError, match="has further edits"):
        forgetting_case(target, Case("0", CAPITAL, also=OTHERS[:1]))
    with pytest.raises(EmptyTargetError):
        forgetting_case(target, Case("0", CAPITAL), "")
    with pytest.raises(EditError, match="names no old answer"):
        OldAnswer.of(Case("0", blank))
    with pytest.raises(EditError, match="is blank; name what to look for"):
        gone_report(target, [OldAnswer(Prompt(PROMPT), " ")])
    assert before.differences(target.model) == []


# -- the report -------------------------------------------------------------------------------


def test_what_is_looked_for() -> None:
    fact = OldAnswer.of(Case("0", CAPITAL))
    assert fact.reversed == "Paris is the capital of"
    assert "What is the capital of France?" in [str(p) for p in fact.paraphrases]
    probe = Probe("France's capital is", ("Paris",), "rephrase")
    assert OldAnswer.of(Case("0", CAPITAL, (probe,))).paraphrases == (probe.prompt,)
    with pytest.raises(EditError, match="names no old answer"):
        OldAnswer.of(Case("0", replace(CAPITAL, ground_truth=None)))


def test_rewordings_are_asked_as_the_prompt_is() -> None:
    prompt = Prompt(CAPITAL.prompt.text, system="Be brief.", chat=True)
    fact = OldAnswer.of(Case("0", replace(CAPITAL, prompt=prompt)))
    assert fact.reversed == prompt.with_text("Paris is the capital of")
    assert {(p.system, p.chat) for p in fact.paraphrases} == {("Be brief.", True)}


def test_an_encoder_decoder_is_not_sampled(capsys: pytest.CaptureFixture[str]) -> None:
    from easyeditor.cli import forget

    (gone,) = gone_report(shared_lm("t5"), [OldAnswer(Prompt(PROMPT), "French")], steps=())
    assert (gone.n_samples, gone.before.samples, gone.after.samples) == (0, 0, 0)
    forget.show([gone])
    assert "samples" not in capsys.readouterr().out


def test_the_numbers_are_those_of_the_model() -> None:
    target = zoo.load("gpt2")
    editor = BaseEditor(target, outer.settings("FT", layers=[1]))
    before = Snapshot(target.model)
    case = forgetting_case(target, known_case())
    old, prompt = str(case.edit.ground_truth), case.edit.prompt
    result = editor.edit_cases([case], verbose=False)
    others = [replace(c.edit, target=str(c.edit.ground_truth)) for c in world.cases("eval")[5:8]]
    (gone,) = gone_report(target, [OldAnswer.of(case)], steps=(1, 2), others=others, samples=2)
    (scores,) = score(target, [Score(prompt, old)])
    assert gone.after.probability == pytest.approx(math.exp(scores.mean_logprob))
    ranks = logit_lens(target, prompt, [old]).ranks[0, -1]
    assert (gone.after.rank, gone.after.lens_rank) == (int(ranks[-1]), int(ranks.min()))
    assert gone.before.probability > gone.after.probability
    assert (gone.before.rank, gone.before.says) == (1, True)
    assert [one.steps for one in gone.relearned] == [1, 2]
    assert gone.relearned[0].probability != gone.after.probability
    assert gone.to_json()["verdict"] == gone.verdict
    editor.undo(result.patch)
    assert before.differences(target.model) == []


def test_relearning_is_on_stand_ins_of_the_weights() -> None:
    target = lm("gpt2")
    before = Snapshot(target.model)
    facts = [OldAnswer.of(Case("0", CAPITAL))]
    gone_report(target, facts, steps=(1,), others=OTHERS, samples=1)
    assert before.differences(target.model) == []
    with pytest.raises(EditError, match="no old answer to look for"):
        gone_report(target, [])


def traces(**changes: Any) -> Traces:
    plain = Traces(0.01, 50, 40, 2, says=False, paraphrases=0, samples=0, reversed=None)
    return replace(plain, **changes)


@pytest.mark.parametrize(
    ("after", "relearned", "verdict"),
    [
        ({}, (), "suppressed; no attack that was tried recovered it"),
        ({"says": True}, (), "not suppressed: the model still gives the old answer"),
        ({"rank": 2}, (), "suppressed; recovered by the candidates of the answer (rank 2)"),
        (
            {"lens_rank": 3, "paraphrases": 1, "samples": 2},
            (),
            "suppressed; recovered by the logit lens (rank 3 at layer 2), 1 of 3 other wordings, "
            "2 of 5 samples",
        ),
        (
            {"reversed": True},
            (Relearned(1, 0.1, 9, says=False), Relearned(5, 0.5, 1, says=True)),
            "suppressed; recovered by the reversed question, relearning (5 steps on other facts)",
        ),
    ],
)
def test_the_verdict_never_says_deleted(
    after: dict[str, Any], relearned: tuple[Relearned, ...], verdict: str
) -> None:
    fact = OldAnswer(Prompt("a"), "b", (Prompt("c"),) * 3)
    gone = Gone(fact, traces(), traces(**after), relearned)
    assert gone.verdict == verdict
    assert "deleted" not in str(gone.to_json())


# -- the command ------------------------------------------------------------------------------

FORGET = ("edit", "--method", "ft", "--forget", "--prompt", PROMPT, "--subject", SUBJECT)
TRAIN = ("--set", "layers=[1]", "--set", "num_steps=40", "--set", "lr=0.02")


@pytest.mark.slow
def test_from_the_command_line(easyedit, folder, tmp_path):
    file = tmp_path / "p.safetensors"
    words = (*FORGET, *TRAIN, "--set", "objective_optimization=target_new", "--model", folder)
    words += ("--refusal", "French", "--ground-truth", "Danish")
    result = easyedit(*words, "--save", file, "--json")
    assert result.code in (DONE, NOT_TAKEN), result.err
    (gone,) = document(result)["gone"]
    assert gone["verdict"].startswith(("suppressed", "not suppressed"))
    assert [one["steps"] for one in gone["relearned"]] == [1, 5, 10]
    assert file.is_file()


def test_the_patch_is_saved_before_the_report(easyedit, folder, tmp_path, monkeypatch):
    def fails(*_args: Any) -> None:
        raise EditError("the report failed")

    monkeypatch.setattr("easyeditor.cli.forget.report", fails)
    file = tmp_path / "p.safetensors"
    words = (*FORGET, "--set", "layers=[1]", "--set", "num_steps=1", "--model", folder)
    result = easyedit(*words, "--refusal", "French", "--ground-truth", "Danish", "--save", file)
    assert (result.code, "the report failed" in result.err) == (BAD_INPUT, True)
    assert load_patch(file).info.method == "FT"


def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    from easyeditor.cli import forget

    relearned = (Relearned(5, 0.5, 1, says=True),)
    fact = OldAnswer(Prompt("The capital of France is"), "Paris", (), Prompt("Paris is the"))
    forget.show([Gone(fact, traces(rank=1), traces(lens_rank=3), relearned)])
    text = " ".join(capsys.readouterr().out.split())
    assert "Is it gone?" in text
    assert "best rank over layers" in text
    assert "'Paris': suppressed; recovered by the logit lens (rank 3 at layer 2)" in text
    assert "deleted" not in text


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((*FORGET, "--target", "Rome"), "--forget takes no --target"),
        (
            ("edit", "--prompt", "a", "--target", "b", "--refusal", "c"),
            "what --forget answers with",
        ),
        ((*FORGET, "--chat"), "leave out --expand and --chat"),
        ((*FORGET, "--alias", "Anna"), "leave out --question and --alias"),
        ((*FORGET, "--question", "What does Anna Lind speak?"), "leave out --question and"),
        ((*FORGET, "--portability", "She speaks => French"), "leave out --portability"),
        ((*FORGET, "--refusal", " "), "it is empty; give the text to answer with"),
        (("edit", "--forget", "--subject", "a"), "--prompt missing"),
    ],
)
def test_mistakes(easyedit, folder, words, why):
    assert why in refused(easyedit(*words, "--model", folder))


def test_a_file_with_expansions_is_refused(easyedit, folder, tmp_path):
    file = tmp_path / "edits.jsonl"
    record = {"prompt": PROMPT, "target_new": "x", "subject": SUBJECT, "aliases": ["Anna"]}
    file.write_text(json.dumps(record))
    result = easyedit("edit", "--method", "ft", "--forget", "--edits", file, "--model", folder)
    assert "--forget replaces one answer to one prompt" in refused(result)
