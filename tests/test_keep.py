"""Prompts that an edit keeps: what they may be, where they are stored, and that they stay."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch

import seeing
import support
from cases import plain_values
from easyeditor.edits import Case, Edit, ImageRef, Prompt, Score, canonical_json, to_json
from easyeditor.errors import EditError
from easyeditor.lm.inference import generate
from easyeditor.methods import METHODS

QUESTION = "The capital of the land is"


def about(i: int) -> Prompt:
    return Prompt(QUESTION, (seeing.picture(i),))


def edit(n: int = 4) -> Edit:
    return Edit(about(0), "Rome", subject="land", keep=[about(i) for i in range(1, n + 1)])


def test_what_is_kept_is_checked():
    assert edit().keep == tuple(about(i) for i in range(1, 5))
    assert Edit("Italy is in", "Asia", keep=["Rome is in", "Rome is in"]).keep == ("Rome is in",)
    for keep, message in (
        ([about(0)], "keeps a prompt that it changes"),
        ([" "], "is empty"),
        ([3], "text"),
    ):
        with pytest.raises(EditError, match=message):
            Edit(about(0), "Rome", keep=keep)


def test_what_is_kept_is_written_and_read(tmp_path):
    from easyeditor.data.edits_file import read_cases
    from easyeditor.data.write import write_cases

    plain = Edit("Italy is in", "Asia")
    assert "keep" not in to_json(plain)
    assert canonical_json(plain) != canonical_json(replace(plain, keep=("Rome is in",)))
    assert Edit(**json.loads(canonical_json(replace(plain, keep=("It is",))))).keep == ("It is",)
    seeing.picture(1).picture.save(tmp_path / "1.png")
    kept = (Prompt(QUESTION, (ImageRef.of(tmp_path / "1.png"),)), Prompt("Rome is in"))
    case = Case("a", replace(plain, keep=kept))
    write_cases([case], tmp_path / "edits.json")
    assert read_cases(tmp_path / "edits.json")[0].edit == case.edit


def drift(name: str, edits: Edit, queries: list[Score], **changes: object) -> float:
    """How much the answers' log-probabilities move under the edit, in nats, the mean."""
    from easyeditor.lm.inference import score

    lm = seeing.lm("llava")
    kind = METHODS.get(name)
    method = kind(kind.hyperparams_class(**plain_values(name, **changes)))
    before = score(lm, queries)
    patch = method.edit(lm, [edits], method.initial_state(lm)).patch
    patch.apply(lm.model)
    after = score(lm, queries)
    assert score(lm, [Score(edits.prompt, "Rome")])[0].argmax
    patch.revert(lm.model)
    assert score(lm, queries) == before
    pairs = zip(before, after, strict=True)
    return sum(abs(sum(b.logprobs) - sum(a.logprobs)) for b, a in pairs) / len(before)


@pytest.mark.parametrize("name", ["FT", pytest.param("LoRA", marks=pytest.mark.slow)])
def test_kept_answers_move_less(name):
    whole = edit()
    answers = generate(seeing.lm("llava"), list(whole.keep), 4)
    queries = [Score(p, answer) for p, answer in zip(whole.keep, answers, strict=True)]
    trained = {"num_steps": 30} if name in {"FT", "LoRA"} else {}
    free = drift(name, replace(whole, keep=()), queries, **trained)
    assert drift(name, whole, queries, **trained) < 0.9 * free


def test_keys_of_kept_prompts_are_read_where_the_subject_stands():
    from easyeditor.associative.contrast import kept_rows
    from easyeditor.associative.keys import subject_rows

    lm = seeing.lm("llava")
    one = replace(edit(2), keep=(*edit(2).keep, Prompt("She plays the")))
    rows = kept_rows(lm, [one])
    at = subject_rows(lm, one, [""])[0].subject_last
    assert [row.subject_last for row in rows[:2]] == [at, at]
    assert [len(row.ids) for row in rows[2:]] == list(range(2, len(rows)))
    assert kept_rows(lm, [replace(one, keep=())]) == []


def test_without_kept_prompts_an_edit_has_its_bits():
    lm = support.lm("llama")
    kind = METHODS.get("FT")
    alone = Edit("Italy is in", "Asia", subject="Italy")
    patches = [
        kind(kind.hyperparams_class(**plain_values("FT", keep_factor=factor))).edit(lm, [alone])
        for factor in (0.0, 1.0)
    ]
    one, other = (
        outcome.patch.dense(path) for outcome in patches for path in outcome.patch.entries
    )
    assert torch.equal(one, other)


def test_a_prompt_that_another_edit_changes_is_not_kept():
    from easyeditor.edits import kept_prompts

    one = Edit("Italy is in", "Asia", keep=["Rome is in", "Paris is in"])
    other = Edit("Rome is in", "Asia")
    assert kept_prompts([one, other]) == [("Paris is in",), ()]


def test_a_method_without_a_place_for_them_says_so(caplog):
    from easyeditor.editors.apply_method import check_request

    kind = METHODS.get("GRACE")
    method = kind(kind.hyperparams_class(**plain_values("GRACE")))
    with caplog.at_level(logging.WARNING):
        check_request(method, [Case("a", edit())])
    assert "GRACE has no place for prompts that are kept" in caplog.text
