"""Multi-hop questions, conditional tests and divergences against counts by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from easyeditor import Case, Edit, Generate, MQuAKEDataset, Probe, RippleEditsDataset
from easyeditor.data.edits_file import case_of
from easyeditor.data.fields import Fields
from easyeditor.data.write import record_of
from easyeditor.edits import ConditionalTest, NextToken, to_json
from easyeditor.errors import DataError
from easyeditor.evaluate.metrics import summarise
from easyeditor.evaluate.query import EvalOptions, Replies, observe
from easyeditor.evaluate.scorers.conditions import ConditionsScorer
from easyeditor.evaluate.scorers.divergence import DivergenceScorer
from easyeditor.evaluate.scorers.multi_hop import MultiHopScorer
from easyeditor.lm import next_token as module
from easyeditor.lm.inference import score
from easyeditor.lm.next_token import Distribution, kl_divergence, next_token
from support import shared_lm

HERE = Path(__file__).parent / "data"
OPTIONS = EvalOptions(answer_tokens=6)


def replies(texts):
    return Replies({}, {Generate(prompt, 6): text for prompt, text in texts.items()})


def scored(scorer, case, before, after):
    return summarise(case, before, after, [scorer(OPTIONS)])


# -- MQuAKE -----------------------------------------------------------------------------------

(HOPS,) = MQuAKEDataset(HERE / "mquake.json")
ONE, TWO, THREE = (str(p.prompt) for p in HOPS.probes if p.name == "multi_hop")
MARRIED, CITIZEN = (str(p.prompt) for p in HOPS.probes if p.name == "one_hop")


@pytest.mark.parametrize(
    ("texts", "any_exact", "any_acc", "hops_exact", "hops_acc"),
    [
        ({}, 0, 0, 0, 0),
        ({TWO: " iceland.\nNext"}, 1, 1, 0, 0),  # one wording is enough, up to the line's end
        ({THREE: "Ísland"}, 1, 1, 0, 0),  # an alias
        ({ONE: "It is Iceland."}, 0, 1, 0, 0),  # stands in the text, does not equal it
        ({ONE: "Norway\nIceland"}, 0, 0, 0, 0),
        ({MARRIED: "Nils Berg"}, 0, 0, 0, 0),  # every hop must be right
        ({MARRIED: "Nils Berg", CITIZEN: "The Iceland"}, 0, 0, 1, 1),
        ({MARRIED: "To Nils Berg", CITIZEN: "Iceland", ONE: "Iceland"}, 1, 1, 0, 1),
    ],
)
def test_any_of_three_by_hand(texts, any_exact, any_acc, hops_exact, hops_acc):
    after = replies(dict.fromkeys((ONE, TWO, THREE, MARRIED, CITIZEN), "Norway") | texts)
    assert scored(MultiHopScorer, HOPS, after, after)["generation"] == {
        "multi_hop_any_acc": any_acc,
        "multi_hop_any_exact": any_exact,
        "hops_all_acc": hops_acc,
        "hops_all_exact": hops_exact,
    }


def test_hops_of_other_cases_are_not_counted():
    case = Case("c", Edit("P", "new"), (Probe("H", ("hop",), "portability/one_hop"),))
    scorer = MultiHopScorer(OPTIONS)
    assert list(scorer.queries(None, case)) == []
    assert list(MultiHopScorer(EvalOptions()).queries(None, HOPS)) == []
    assert scorer.score(None, case, replies({}), replies({"H": "hop"})) == {}
    assert scorer.score(None, HOPS, replies({}), replies({})) == {}  # nothing was written


# -- RippleEdits ------------------------------------------------------------------------------


def probes(prompt, *answers):
    return tuple(Probe(prompt, (answer,), "locality/x") for answer in answers)


def test_conditions_are_asked_of_the_unedited_model():
    case = Case(
        "c",
        Edit("P", "new"),
        tests=(
            ConditionalTest("A", (probes("q1", "one"),), (probes("c1", "yes"),)),
            ConditionalTest("A", (probes("q2", "two"),), (probes("c2", "yes"),)),
            ConditionalTest("A", (probes("q3", "three", "drei"),)),
            ConditionalTest("B", (probes("q1", "one"), probes("q2", "two")), any=False),
            ConditionalTest("B", (probes("q1", "one"), probes("q2", "two"))),
            ConditionalTest("C", (probes("q1", "one"),), (probes("c2", "yes"),)),
        ),
    )
    before = replies({"c1": "yes", "c2": "no", "q1": "no", "q2": "no", "q3": "no"})
    after = replies({"c1": "no", "c2": "yes", "q1": "one", "q2": "no", "q3": "drei, three"})
    assert scored(ConditionsScorer, case, before, after)["conditional"] == {
        "A_acc": 1.0,  # of the first and the third; the second does not count
        "A_counted": pytest.approx(2 / 3),
        "B_acc": 0.5,
        "B_counted": 1.0,
        "C_acc": None,
        "C_counted": 0.0,
    }
    half = replies({"q1": "one", "q2": "no", "q3": "drei", "c1": "no", "c2": "no"})
    assert scored(ConditionsScorer, case, before, half)["conditional"]["A_acc"] == 0.5
    queries = set(ConditionsScorer(OPTIONS).queries(None, case))
    assert queries == set(before.texts)
    assert list(ConditionsScorer(EvalOptions()).queries(None, case)) == []
    assert "conditional" not in scored(ConditionsScorer, Case("c", case.edit), before, after)


def test_the_six_criteria_of_a_record():
    first, second = RippleEditsDataset(HERE / "rippleedits.json")
    names = [test.name for test in first.tests]
    assert names == [
        "Relation_Specificity",
        "Relation_Specificity",  # the third has no answer
        "Forgetfulness",
        "Logical_Generalization",
        "Compositionality_I",
        "Subject_Aliasing",
    ]
    mother, *_, hop, _ = first.tests
    assert mother.conditions == (
        (
            Probe(
                "The name of the mother of Leo Dahl is",
                ("Ida Dahl", "Ida Moe"),
                "conditional/Relation_Specificity",
            ),
        ),
    )
    assert mother.any
    assert [c[0].answers for c in hop.conditions] == [("Reykjavík",)]
    forgotten = first.tests[2].questions[0]
    assert [probe.answers for probe in forgotten] == [("Norway",), ("Sweden", "Sverige")]
    assert second.tests == ()
    assert len(to_json(first)["tests"]) == 6
    assert "tests" not in to_json(second)  # files and digests from before are the same


def test_a_plain_file_holds_tests():
    first = RippleEditsDataset(HERE / "rippleedits.json")[0]
    record = record_of(first)
    assert case_of(Fields(record), 0) == first
    (one, *_) = record["tests"]
    for change, why in (
        ({"any": "yes"}, r"tests\[0\].any must be true or false"),
        ({"questions": []}, "at least one question"),
        ({"questions": [{"prompt": "q", "answers": [" "]}]}, "at least one answer"),
        ({"questions": [{"prompt": "q", "answers": "a"}]}, "list of lists"),
        ({"name": None}, r"tests\[0\].name missing"),
    ):
        with pytest.raises(DataError, match=why):
            case_of(Fields({**record, "tests": [{**one, **change}]}), 0)


def test_a_test_condition_nobody_knows(tmp_path):
    record = json.loads((HERE / "rippleedits.json").read_text())[0]
    record["Relation_Specificity"][0]["test_condition"] = "XOR"
    file = tmp_path / "ripple.json"
    file.write_text(json.dumps([record]))
    with pytest.raises(DataError, match=r"test_condition must be 'OR' or 'AND', not 'XOR'"):
        RippleEditsDataset(file)[0]


# -- divergence -------------------------------------------------------------------------------


def distribution(*shares):
    return Distribution(None, torch.tensor(shares).log())


def test_divergence_by_hand(monkeypatch):
    p, q = distribution(0.5, 0.25, 0.125, 0.125), distribution(0.25, 0.25, 0.25, 0.25)
    whole = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert kl_divergence(p, q) == pytest.approx(whole)
    assert kl_divergence(p, p) == 0.0
    monkeypatch.setattr(module, "TOP", 1)
    rest = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert kl_divergence(p, q) == pytest.approx(rest)
    assert rest < whole  # a lower bound
    assert math.isnan(kl_divergence(p, distribution(math.nan, 0.5, 0.25, 0.25)))


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_next_token_is_the_first_of_an_answer(family):
    lm = shared_lm(family)
    prompts = [Probe(text, ("x",), "k").prompt for text in ("Berlin is the capital of", "She")]
    for prompt, result in zip(prompts, next_token(lm, prompts), strict=True):
        (scores,) = score(lm, [(prompt, "Germany")])
        assert result.logprobs[scores.target[0]] == pytest.approx(scores.logprobs[0], abs=3e-5)
        assert result.logprobs.argmax() == scores.argmax[0]
        assert result.logprobs.exp().sum() == pytest.approx(1)
        top = result.top()
        again = Distribution.from_json(*json.loads(json.dumps(top.to_json())))
        assert torch.equal(again.ids, top.ids)
        assert torch.equal(again.logprobs, top.logprobs)
    assert next_token(lm, []) == []


def test_divergence_is_of_the_edited_model():
    case = Case("c", Edit("P", "new"), (Probe("N", ("near",), "locality/distracting"),))
    query = NextToken("N")
    before = Replies({}, distributions={query: distribution(0.5, 0.5)})
    after = Replies({}, distributions={query: distribution(0.25, 0.75)})
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    result = scored(DivergenceScorer, case, before, after)
    assert result["locality"] == {"distracting_kl": pytest.approx(kl)}
    assert scored(DivergenceScorer, case, before, before)["locality"] == {}
    assert list(DivergenceScorer(OPTIONS).queries(case.probes[0], case)) == []
    asking = EvalOptions(divergence=True)
    case = Case("c", Edit("Berlin is", "Italy"), (Probe("She is", ("a",), "locality/x"),))
    assert set(observe(shared_lm("llama"), [case], asking).distributions) == {NextToken("She is")}
