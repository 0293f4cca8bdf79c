"""How long a continuation is depends on its prompt, not on what is beside it in the batch."""

from __future__ import annotations

import pytest

import tiny
from easyeditor.edits import Generate
from easyeditor.lm.inference import generate
from easyeditor.lm.sampling import rows_by_room
from support import lm

CONTEXT = 24
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
