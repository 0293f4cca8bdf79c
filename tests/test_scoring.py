"""Many questions in few passes say what each says alone: scores, answers, continuations."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch

import support
import tiny
from easyeditor import LM, Generate
from easyeditor.errors import DivergedError
from easyeditor.evaluate.query import Measures, observe
from easyeditor.lm import sampling, scoring
from easyeditor.lm.forward.batching import (
    ScoredSequence,
    TokenScores,
    batches_by_length,
    scored_sequences,
)
from easyeditor.lm.inference import continue_all, generate, score
from easyeditor.lm.tokens import Row
from support import argmaxes, logprobs, shared_lm

PAIRS = [
    ("Berlin is the capital of", "Germany"),
    ("Berlin is the capital of", "Italy"),
    ("Berlin is the capital of", "Germany and Rome is the capital of Italy"),
    ("Berlin", "is the capital of Germany"),  # begins the first, word for word
    ("Berlin is", "the"),
    ("Berlin is the capital of", "Germany"),
    ("The Eiffel Tower is located in the city of Paris. The mother tongue of Anna Lind is", "xqj"),
    ("The", "Eiffel Tower"),
    ("She plays the", "piano well. Because it rained, I stayed inside"),
    ("zvk wpf", "the river"),
]
NOISE = 3e-5  # in float32, of log-probabilities down to -25
PROMPTS = list(dict.fromkeys(prompt for prompt, _ in PAIRS))


def continuations(lm, prompts, n_tokens, seed=0):
    return generate(lm, [Generate(prompt, n_tokens, seed) for prompt in prompts])


class Counted:
    """How often a model is run inside, and on how many tokens, padding not counted."""

    def __init__(self, lm):
        self.lm, self.passes, self.tokens, self.rows = lm, 0, 0, 0

    def __enter__(self):
        self.handle = self.lm.model.register_forward_pre_hook(self._count, with_kwargs=True)
        return self

    def __exit__(self, *_):
        self.handle.remove()

    def _count(self, _module, _args, given):
        self.passes += 1
        self.tokens += int(given["attention_mask"].sum())
        self.rows += len(given["input_ids"])


def alone(lm, prompt, answer):
    """Log-probabilities and argmaxes of one answer: one pass, no padding, transformers only."""
    row = lm.text.row(prompt, answer)
    with torch.no_grad():
        if lm.encoder_decoder:
            labels = torch.tensor([row.target])
            logits = lm.model(input_ids=torch.tensor([row.ids]), labels=labels).logits[0]
        else:
            logits = lm.model(input_ids=torch.tensor([row.ids])).logits[0]
            logits = logits[row.prompt_length - 1 : -1]
    chosen = logits.log_softmax(-1)[range(len(row.target)), list(row.target)]
    return row.target, chosen.tolist(), logits.argmax(-1).tolist()


def agree(scores, lm, prompt, answer):
    target, logprobs, argmax = alone(lm, prompt, answer)
    assert scores.target == tuple(target)
    assert scores.logprobs == pytest.approx(logprobs, abs=NOISE)
    assert list(scores.argmax) == argmax


# -- scores -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.CONFIGS)
@pytest.mark.parametrize("budget", [2048, 40], ids=["one pass", "many passes"])
def test_together_as_alone(family, budget, monkeypatch):
    monkeypatch.setattr(scoring, "TOKEN_BUDGET", budget)
    lm = shared_lm(family)
    found = score(lm, PAIRS)
    for scores, pair in zip(found, PAIRS, strict=True):
        agree(scores, lm, *pair)
    assert found[5] == found[0]
    assert logprobs(lm, PAIRS) == [scores.logprobs for scores in found]
    assert argmaxes(lm, PAIRS) == [scores.argmax for scores in found]
    for scores, pair in zip(found, PAIRS, strict=True):
        (own,) = score(lm, [pair])
        assert own.logprobs == pytest.approx(scores.logprobs, abs=NOISE)
        assert own.argmax == scores.argmax


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "t5"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizers_padding_side_does_not_matter(family, side):
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.padding_side = side
    lm = LM(tiny.model(family), tokenizer)
    for scores, pair in zip(score(lm, PAIRS), PAIRS, strict=True):
        agree(scores, lm, *pair)


def test_a_tokenizer_without_padding():
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.pad_token = None
    lm = LM(tiny.model("gpt2"), tokenizer)
    for scores, pair in zip(score(lm, PAIRS), PAIRS, strict=True):
        agree(scores, lm, *pair)


def test_the_order_of_the_questions_does_not_matter():
    lm = shared_lm("gpt2")
    there, back = score(lm, PAIRS), score(lm, PAIRS[::-1])[::-1]
    for a, b in zip(there, back, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=NOISE)
        assert a.argmax == b.argmax


def test_nothing_is_asked():
    assert score(shared_lm("llama"), []) == []
    assert generate(shared_lm("llama"), []) == []
    assert continuations(shared_lm("llama"), [], 5) == []


def test_a_prompt_is_run_once_for_all_its_answers():
    lm, prompt = shared_lm("llama"), "Berlin is the capital of"
    answers = ["Germany", "Italy", "Paris"]
    first = {lm.text.row(prompt, answer).target for answer in answers}
    assert {len(target) for target in first} == {1}
    with Counted(lm) as counted:
        score(lm, [(prompt, answer) for answer in answers])
    assert (counted.passes, counted.rows) == (1, 1)
    assert counted.tokens == len(lm.text.row(prompt).ids)


def test_the_beginning_of_a_passage_is_not_run_again():
    """A text, and every beginning of it as a question of its own: one row."""
    lm, words = shared_lm("llama"), ["Berlin", "is", "the", "capital", "of", "Germany", "and"]
    pairs = [(" ".join(words[:i]), words[i]) for i in range(1, len(words))]
    with Counted(lm) as counted:
        found = score(lm, pairs)
    whole = lm.text.row(" ".join(words[:-1]), words[-1])
    assert (counted.rows, counted.tokens) == (1, len(whole.ids) - 1)
    for scores, pair in zip(found, pairs, strict=True):
        agree(scores, lm, *pair)


def test_an_encoder_is_run_for_every_answer():
    lm, prompt = shared_lm("t5"), "Berlin is the capital of"
    with Counted(lm) as counted:
        score(lm, [(prompt, "Germany"), (prompt, "Italy"), (prompt, "Italy")])
    assert (counted.passes, counted.rows) == (1, 2)


def test_budgets_are_kept(monkeypatch):
    monkeypatch.setattr(scoring, "TOKEN_BUDGET", 30)
    lm = shared_lm("llama")
    seen = []

    def note(_module, _args, given):
        seen.append(tuple(given["input_ids"].shape))

    handle = lm.model.register_forward_pre_hook(note, with_kwargs=True)
    score(lm, PAIRS)
    handle.remove()
    assert len(seen) > 1
    assert all(rows * length <= 30 or rows == 1 for rows, length in seen)
    assert all(a[1] <= b[1] for a, b in pairwise(seen))  # sorted, so that little is padded


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_the_model_is_left_as_it_was(family):
    lm = support.lm(family)
    support.unsettle(lm.model)
    before = support.Snapshot(lm.model)
    score(lm, PAIRS)
    generate(lm, PROMPTS, 3)
    continuations(lm, PROMPTS, 3)
    observe(lm, [], Measures(4, 4, heldout="Some text."))
    assert before.differences(lm.model) == []


def test_a_model_in_training_is_read_in_evaluation():
    """Dropout of one half would make two readings differ."""
    lm = support.lm("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    expected = score(lm, PAIRS)
    lm.model.train()
    assert score(lm, PAIRS) == expected
    assert generate(lm, PROMPTS, 3) == generate(shared_lm("gpt2"), PROMPTS, 3)
    assert lm.model.training


def test_a_failing_pass_leaves_the_model_as_it_was():
    lm = support.lm("llama")
    lm.model.train()
    before = support.Snapshot(lm.model)
    handle = lm.model.model.layers[1].register_forward_pre_hook(fails)
    for ask in (
        lambda: score(lm, PAIRS),
        lambda: generate(lm, PROMPTS, 3),
        lambda: continuations(lm, PROMPTS, 3),
    ):
        with pytest.raises(support.Interrupt):
            ask()
    handle.remove()
    assert before.differences(lm.model) == []


def fails(*_):
    raise support.Interrupt


def test_means():
    scores = TokenScores((5, 6, 7), (-1.0, -2.0, -6.0), (5, 9, 7))
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.mean_logprob == -3.0


# -- which passes -----------------------------------------------------------------------------


def rows(*texts):
    """``"1 2 | 3 4"``: prompt and target."""
    made = []
    for text in texts:
        prompt, target = (tuple(map(int, part.split())) for part in text.split("|"))
        made.append(Row(prompt + target, target))
    return made


def test_passages_by_hand():
    asked = rows("1 2 3 | 4", "1 2 3 | 5 6", "1 2 | 3", "7 | 8")
    assert sorted(scored_sequences(asked), key=lambda p: p.ids) == [
        # "1 2 3 5" is fed; its position 1 answers "1 2", 2 answers both longer prompts.
        ScoredSequence((1, 2, 3, 5), (1, 2, 3), ((1, (1, 2)), (0, (1,)), (2, (0,)))),
        ScoredSequence((7,), (0,), ((3, (0,)),)),
    ]


@pytest.mark.parametrize(
    ("texts", "fed"),
    [
        (["1 | 2"], [(1,)]),
        (["1 | 2", "1 | 2"], [(1,)]),
        (["1 | 2 3", "1 2 | 3"], [(1, 2)]),  # two borders in one text
        (["1 2 | 9", "1 3 | 9", "1 | 9"], [(1, 2), (1, 3)]),
        (["1 2 3 | 9", "1 2 4 | 9", "1 2 | 9", "1 | 9"], [(1, 2, 3), (1, 2, 4)]),
        (["2 | 9", "1 2 | 9"], [(1, 2), (2,)]),  # an end is no beginning
        (["10 | 1", "1 0 | 1"], [(1, 0), (10,)]),
    ],
    ids=str,
)
def test_only_beginnings_are_shared(texts, fed):
    found = scored_sequences(rows(*texts))
    assert sorted(p.ids for p in found) == fed
    assert sorted(i for p in found for i, _ in p.rows) == list(range(len(texts)))


def test_every_row_is_read_where_its_own_pass_would_be():
    generator = torch.Generator().manual_seed(0)
    asked = []
    for _ in range(200):
        n = int(torch.randint(2, 7, (), generator=generator))
        ids = tuple(torch.randint(0, 3, (n,), generator=generator).tolist())
        border = int(torch.randint(1, n, (), generator=generator))
        asked.append(Row(ids, ids[border:]))
    found = scored_sequences(asked)
    seen = set()
    for passage in found:
        assert list(passage.positions) == sorted(set(passage.positions))
        for i, own in passage.rows:
            seen.add(i)
            fed = asked[i].ids[:-1]
            assert passage.ids[: len(fed)] == fed
            read = [passage.positions[k] for k in own]
            assert read == list(range(asked[i].prompt_length - 1, len(fed)))
    assert seen == set(range(200))
    fed = {row.ids[:-1] for row in asked}
    longest = [a for a in fed if not any(b[: len(a)] == a and b != a for b in fed)]
    assert len(found) == len(longest)  # none is fed in vain


def test_cut_keeps_to_both_budgets():
    assert list(batches_by_length([3, 1, 2, 9], [1, 1, 1, 1], 6, 10)) == [[1, 2], [0], [3]]
    assert list(batches_by_length([1, 1, 1], [2, 2, 2], 100, 4)) == [[0, 1], [2]]
    assert list(batches_by_length([50, 60], [9, 9], 10, 1)) == [[0], [1]]  # too long for any: alone
    assert list(batches_by_length([], [], 10, 10)) == []


# -- free text --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "bloom", "mistral", "t5"])
@pytest.mark.parametrize("budget", [8192, 40], ids=["one batch", "many batches"])
def test_answers_together_as_alone(family, budget, monkeypatch):
    monkeypatch.setattr(sampling, "GENERATION_BUDGET", budget)
    lm = shared_lm(family)
    found = generate(lm, [*PROMPTS, PROMPTS[0]], 8)
    assert found == [generate(lm, [prompt], 8)[0] for prompt in [*PROMPTS, PROMPTS[0]]]
    assert len(set(found)) > 2


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "bloom", "mistral", "t5"])
@pytest.mark.parametrize("budget", [8192, 40], ids=["one batch", "many batches"])
def test_continuations_together_as_alone(family, budget, monkeypatch):
    monkeypatch.setattr(sampling, "GENERATION_BUDGET", budget)
    lm = shared_lm(family)
    found = continuations(lm, PROMPTS, 8, seed=1)
    assert found == [continuations(lm, [prompt], 8, seed=1)[0] for prompt in PROMPTS]
    assert continuations(lm, PROMPTS[::-1], 8, seed=1)[::-1] == found


def test_continuations_follow_their_seed():
    lm = shared_lm("gpt2")
    state = torch.random.get_rng_state()
    first = continuations(lm, PROMPTS, 12, seed=1)
    assert continuations(lm, PROMPTS, 12, seed=1) == first
    assert continuations(lm, PROMPTS, 12, seed=2) != first
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_most_probable_is_what_is_left_of_one_choice():
    lm = shared_lm("gpt2")
    replies = sampling.continuations(lm, PROMPTS, 8, top_k=1)
    assert [reply.text for reply in replies] == generate(lm, PROMPTS, 8)


def test_continuations_are_drawn_from_the_best_five():
    """By one plain pass over what was drawn."""
    lm = shared_lm("gpt2")
    for prompt in PROMPTS:
        start = lm.text.row(prompt).ids
        generator = sampling._stream(prompt, 0)
        ids = list(start)
        for _ in range(6):
            with torch.no_grad():
                best = lm.model(torch.tensor([ids])).logits[0, -1].topk(5)
            place = torch.multinomial(best.values.softmax(-1), 1, generator=generator)
            ids.append(int(best.indices[place]))
        made = ids[len(start) :]
        made = made[: made.index(2)] if 2 in made else made
        expected = lm.tokenizer.decode(made, skip_special_tokens=True)
        (reply,) = sampling.continuations(lm, [prompt], 6)
        assert (reply.text, list(reply.ids)) == (expected, made)


@pytest.mark.parametrize("seed", [None, 0])
def test_a_continuation_has_its_tokens_and_their_entropies(seed):
    """By one plain pass over what was written; sampled and greedy ones alike."""
    lm = shared_lm("gpt2")
    queries = [Generate(prompt, 6, seed) for prompt in PROMPTS]
    replies = continue_all(lm, queries, entropies=True)
    assert [reply.text for reply in replies] == generate(lm, queries)
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        assert reply.text == lm.tokenizer.decode(reply.ids, skip_special_tokens=True)
        start = lm.text.row(prompt).ids
        with torch.no_grad():
            logits = lm.model(torch.tensor([[*start, *reply.ids]])).logits[0, len(start) - 1 :]
        expected = torch.distributions.Categorical(logits=logits).entropy()[: len(reply.ids)]
        assert reply.ids
        assert reply.entropies == pytest.approx(expected.tolist(), abs=1e-4)
    assert all(not reply.entropies for reply in continue_all(lm, queries))


def test_the_end_of_a_text_ends_it():
    """A model that wants to stop after what it began with."""
    lm = support.lm("gpt2")
    lm.model.lm_head = torch.nn.Linear(32, lm.model.config.vocab_size)
    torch.nn.init.zeros_(lm.model.lm_head.weight)
    torch.nn.init.zeros_(lm.model.lm_head.bias)
    lm.model.lm_head.bias.data[2] = 100.0
    assert continuations(lm, PROMPTS, 8) == [""] * len(PROMPTS)
    assert generate(lm, PROMPTS, 8) == [""] * len(PROMPTS)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_says_no_numbers_is_heard_all_the_same(value):
    lm = support.lm("gpt2")
    lm.model.transformer.h[2].mlp.c_proj.bias.data[:] = value
    assert len(continuations(lm, PROMPTS, 4)) == len(generate(lm, PROMPTS, 4)) == len(PROMPTS)
    with pytest.raises(DivergedError, match="not numbers"):  # nothing is to be learnt from it
        sampling.sample(lm, ["The"], 4, generator=torch.Generator())
