"""A metric is one file and one line."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from easyeditor import Case, Edit, Probe, Prompt, Score
from easyeditor.edits import Generate
from easyeditor.errors import UnknownScorerError
from easyeditor.evaluate.metrics import summarise
from easyeditor.evaluate.query import EvalOptions, Replies, observe, texts_of
from easyeditor.evaluate.scorers import SCORERS, scorers
from easyeditor.evaluate.scorers.base import Scorer, Values
from support import shared_lm


class Brevity(Scorer):
    """How many words a free answer to a ``brevity`` probe has, before and after."""

    group = "brevity"

    def queries(self, probe: Probe | None, case: Case) -> Iterable[Generate]:
        assert probe is not None
        yield Generate(probe.prompt, 4)

    def score(self, probe: Probe | None, case: Case, before: Replies, after: Replies) -> Values:
        assert probe is not None
        words = len(after[Generate(probe.prompt, 4)].split())
        return {f"brevity/{probe.name}_words": float(words)}


CASE = Case(
    "c",
    Edit("Berlin is the capital of", "Italy"),
    (
        Probe("She plays the", ("piano",), "brevity/music"),
        Probe("You can see the", ("river",), "brevity/music"),
        Probe("Rome is the capital of", ("Italy",), "locality/near"),
    ),
)


def test_a_scorer_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = shared_lm("llama")
    plain = observe(lm, [CASE])
    without = summarise(CASE, plain, plain)
    monkeypatch.setitem(SCORERS._entries, "brevity", "test_scorers:Brevity")
    replies = observe(lm, [CASE])
    assert set(replies.texts) == {Generate(p.prompt, 4) for p in CASE.probes[:2]}
    result = summarise(CASE, replies, replies)
    words = [len(text.split()) for text in replies.texts.values()]
    assert result.pop("brevity") == {"music_words": sum(words) / 2}
    assert result == without  # no other number moves


def test_probes_without_a_scorer_are_not_asked() -> None:
    replies = observe(shared_lm("llama"), [CASE])
    assert {query.prompt.text for query in replies.scores} == {
        "Berlin is the capital of",
        "Rome is the capital of",
    }


def test_replies_are_keyed_by_the_queries() -> None:
    lm = shared_lm("llama")
    options = EvalOptions(answer_tokens=3)
    replies = observe(lm, [CASE], options)
    query = Score("Berlin is the capital of", "Italy")
    assert replies[query] is replies.scores[query]
    assert texts_of(CASE, replies, options)["answers"] == {
        str(q.prompt): text for q, text in replies.texts.items()
    }
    with pytest.raises(KeyError):
        replies[Score(Prompt("Berlin is the capital of", raw=True), "Italy")]


def test_an_unknown_scorer() -> None:
    with pytest.raises(UnknownScorerError, match="Did you mean 'fluency'"):
        SCORERS.get("fluenzy")
    assert [type(each).__name__ for each in scorers()][:2] == ["RewriteScorer", "RephraseScorer"]
