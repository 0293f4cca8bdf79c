"""How long a continuation is depends on its prompt, not on what is beside it in the batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest

import tiny
from easyeditor.edits import Generate, Prompt, as_prompt
from easyeditor.lm import sampling
from easyeditor.lm.forward.batching import split_by_length
from easyeditor.lm.inference import continue_all, generate
from easyeditor.lm.model import LM
from easyeditor.lm.routing import Rerouted, set_routers
from easyeditor.lm.sampling import generation_batches, rows_by_room
from support import lm

CONTEXT = 24
PROMPTS = ("Berlin is", "The capital of France is", "You can see the", "She plays")
SHORT, LONG = "Berlin is", "Rome is the capital of Italy. She plays the piano well. You can see"


@pytest.mark.parametrize("seed", [None, 3])
def test_a_prompt_near_the_end_of_the_context_shortens_no_other(seed: int | None) -> None:
    target = lm("gpt2", n_positions=CONTEXT)
    queries = [Generate(text, 10, seed) for text in (SHORT, LONG)]
    lengths = [len(target.text.row(query.prompt).ids) for query in queries]
    assert lengths[0] + 10 <= CONTEXT < lengths[1] + 10
    together = generate(target, queries)
    assert together == [generate(target, [query])[0] for query in queries]
    assert len(tiny.tokenizer()(together[0])["input_ids"]) > CONTEXT - lengths[1]


def test_rows_are_grouped_by_the_tokens_that_fit_behind_them() -> None:
    rows = [[5] * n for n in (2, 14, 15, 20, 23, 24, 2)]
    groups = dict(rows_by_room(lm("gpt2", n_positions=CONTEXT), rows, 10))
    assert groups == {10: [0, 1, 6], 9: [2], 4: [3], 1: [4, 5]}
    assert dict(rows_by_room(lm("t5"), rows, 10)) == {10: [0, 1, 2, 3, 4, 5, 6]}


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("seed", [None, 3])
def test_a_shorter_text_is_the_beginning_of_a_longer_one(family: str, seed: int | None) -> None:
    """A prompt asked for several lengths has the texts that it has where it is asked for one."""
    target = lm(family)
    queries = [Generate(text, n, seed) for n in (3, 9, 1) for text in PROMPTS]
    together = continue_all(target, [*queries, queries[0]], entropies=True)
    assert together[-1] == together[0]
    for query, reply in zip(queries, together, strict=False):
        (alone,) = continue_all(target, [query], entropies=True)
        assert (reply.text, reply.ids, reply.ended) == (alone.text, alone.ids, alone.ended)
        assert reply.entropies == pytest.approx(alone.entropies, abs=1e-4)
    assert {len(reply.ids) for reply in together} >= {1, 3}


def test_a_prompt_is_written_once_for_all_its_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    target, written = lm("gpt2"), list[int]()
    original = type(target.model).generate

    def generate_and_count(model, input_ids, **options):  # type: ignore[no-untyped-def]
        written.append(len(input_ids) * options["max_new_tokens"])
        return original(model, input_ids=input_ids, **options)

    monkeypatch.setattr(type(target.model), "generate", generate_and_count)
    continue_all(target, [Generate(text, n) for n in (3, 9) for text in PROMPTS])
    assert sum(written) == 9 * len(PROMPTS)
    written.clear()  # what options make of a text may depend on its length
    queries = [Generate(text, n) for n in (3, 9) for text in PROMPTS]
    continue_all(target, queries, no_repeat_ngram_size=2)
    assert sum(written) == (3 + 9) * len(PROMPTS)


@pytest.mark.parametrize("setting", [{"num_beams": 3}, {"forced_eos_token_id": 5}])
def test_where_the_end_depends_on_the_length_texts_are_written_apart(setting, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    target = lm("gpt2")
    for name, value in setting.items():
        monkeypatch.setattr(target.model.generation_config, name, value)
    queries = [Generate(text, n) for n in (3, 12) for text in PROMPTS]
    together = continue_all(target, queries)
    assert together == [continue_all(target, [query])[0] for query in queries]


def test_a_shorter_text_ends_where_it_would_have_ended() -> None:
    """Also where generation goes on behind a token that ends a text for the tokenizer alone."""
    target = lm("gpt2")
    (whole,) = continue_all(target, [Generate(PROMPTS[0], 12)])
    ends = whole.ids[2]
    target.tokenizer = copy.deepcopy(target.tokenizer)
    target.tokenizer.eos_token = target.tokenizer.convert_ids_to_tokens(ends)
    assert ends in target.end_tokens
    queries = [Generate(PROMPTS[0], n) for n in (1, 2, 5, 12)]
    together = continue_all(target, queries)
    assert together == [continue_all(target, [query])[0] for query in queries]
    first = whole.ids.index(ends)
    assert [len(reply.ids) for reply in together] == [min(n, first) for n in (1, 2, 5, 12)]
    assert [reply.ended for reply in together] == [n > first for n in (1, 2, 5, 12)]


@pytest.mark.parametrize("seed", [None, 3])
def test_lengths_near_the_end_of_the_context_and_of_several_patches(seed: int | None) -> None:
    target = lm("gpt2", n_positions=CONTEXT)
    queries = [Generate(text, n, seed) for n in (2, 10) for text in (SHORT, LONG)]
    alone = [continue_all(target, [query])[0] for query in queries]
    assert continue_all(target, queries) == alone
    both = continue_all(target, [*queries, *queries], [0] * len(queries) + [1] * len(queries))
    assert both == alone * 2


class ToAnother:
    """A router that asks another model about the prompts of one word."""

    def __init__(self, other: LM) -> None:
        self.other = other

    def reroute(self, lm: LM, prompts: Sequence[Prompt | str]) -> list[Rerouted | None]:
        """See :class:`easyeditor.lm.routing.Router`."""
        return [
            Rerouted(prompt, self.other) if str(as_prompt(prompt).text) == PROMPTS[0] else None
            for prompt in prompts
        ]


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("seed", [None, 3])
def test_lengths_through_a_router(family: str, seed: int | None) -> None:
    target, other = lm("gpt2"), lm(family)
    queries = [Generate(text, n, seed) for n in (3, 9, 1) for text in PROMPTS]
    plain = continue_all(target, queries)
    set_routers(target.model, [ToAnother(other)])
    try:
        routed = continue_all(target, queries)
    finally:
        set_routers(target.model, [])
    for query, reply, before in zip(queries, routed, plain, strict=True):
        at_other = query.prompt.text == PROMPTS[0]
        assert reply == (continue_all(other, [query])[0] if at_other else before)


def test_what_is_sampled_twice_by_options_is_written_twice() -> None:
    target = lm("gpt2")
    queries = [Generate(PROMPTS[0], 12)] * 4
    texts = [one.text for one in continue_all(target, queries, do_sample=True, temperature=5.0)]
    assert len(set(texts)) > 1


def test_short_prompts_are_apart_from_long_ones_where_that_is_cheaper() -> None:
    lengths = [40, 10, 11, 40, 10, 11, 40]
    assert split_by_length(lengths, 0) == [[1, 4], [2, 5], [0, 3, 6]]
    assert split_by_length(lengths, 5) == [[1, 4, 2, 5], [0, 3, 6]]  # 2 padded tokens against 5
    assert split_by_length(lengths, 115) == [[1, 4, 2, 5], [0, 3, 6]]  # 116 more against 115
    assert split_by_length(lengths, 117) == [[1, 4, 2, 5, 0, 3, 6]]
    assert split_by_length([], 7) == []


def test_batches_of_generation_keep_to_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "GENERATION_BUDGET", 60)
    monkeypatch.setattr(sampling, "STEP_TOKENS", 1)
    batches = list(generation_batches(lm("gpt2"), [25, 5, 5, 25, 5, 5, 5, 5], 5))
    assert batches == [[1, 2, 4, 5, 6, 7], [0, 3]]
