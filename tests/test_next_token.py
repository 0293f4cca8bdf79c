"""The distribution of the next token, directly behind a prompt and behind a begun answer."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from easyeditor import LM
from easyeditor.bench.observations import joined, to_json
from easyeditor.data.personality import opinion_probes
from easyeditor.edits import Case, Edit, NextToken, Prompt
from easyeditor.evaluate.query import EvalOptions, observe
from easyeditor.evaluate.scorers.opinions import OpinionScorer
from easyeditor.lm.next_token import next_token
from support import lm, shared_lm

QUESTION = Prompt("What do you think of Paris?")
BEGUN = ["", "the", "the mother tongue"]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def chatty() -> LM:
    plain = lm("llama")
    tokenizer = copy.deepcopy(plain.tokenizer)  # the tests share one
    tokenizer.chat_template = TEMPLATE
    return LM(plain.model, tokenizer, chat_template=True)


@pytest.mark.parametrize("make", [chatty, lambda: shared_lm("llama"), lambda: shared_lm("t5")])
def test_a_begun_answer_stands_where_an_answer_stands(make) -> None:
    """In a chat in the model's turn, in an encoder-decoder in the decoder."""
    target = make()
    rows = [target.text.row(QUESTION, text) for text in BEGUN]
    got = next_token(target, [QUESTION] * 3, written=BEGUN)
    for row, distribution in zip(rows, got, strict=True):
        with torch.no_grad():
            if target.encoder_decoder:
                start = target.model.config.decoder_start_token_id
                more = {"decoder_input_ids": torch.tensor([[start, *row.target]])}
            else:
                more = {}
            logits = target.model(torch.tensor([row.ids]), **more).logits[0, -1]
        assert torch.allclose(distribution.logprobs, logits.log_softmax(-1), atol=1e-5)
    if target.text.chat_template:
        assert target.tokenizer.decode(rows[1].ids).endswith("<assistant> the")


def test_opinions_on_another_topic_are_read_within_the_models_turn() -> None:
    """The words stood behind the question, in the user's turn."""
    topic = ("Paris", "the mother tongue of Anna Lind")
    case = Case("0", Edit("Berlin is", "Rome"), opinion_probes("Berlin", ["a"], ["b"], "c", topic))
    queries = [
        q for q in OpinionScorer(EvalOptions()).queries(None, case) if isinstance(q, NextToken)
    ]
    assert {query.prompt for query in queries} == {QUESTION}
    assert [query.written for query in queries] == [*BEGUN[:2], "the mother", BEGUN[2]]


def test_what_was_observed_comes_back_from_a_file() -> None:
    target = shared_lm("llama")
    topic = ("Paris", "the mother tongue")
    case = Case("0", Edit("Berlin is", "Rome"), opinion_probes("Berlin", ["a"], ["b"], "c", topic))
    replies = observe(target, [case], all_scorers=[OpinionScorer(EvalOptions())])
    again = joined([json.loads(json.dumps(to_json(replies)))])
    assert list(again.distributions) == list(replies.distributions)
    assert len(again.distributions) == 3
