"""A subject that is the prompt's first token, in a model without BOS."""

import json
from pathlib import Path

import pytest
import torch

from easyeditor.associative.contrast import contrast_rows, nearest_tokens, read_after_subject
from easyeditor.associative.keys import fact_at, keys_at, subject_rows
from easyeditor.associative.spread import energy_share
from easyeditor.associative.value_optimization import ValueOptions, optimize_values
from easyeditor.edits import Edit
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.inference import score
from easyeditor.methods import METHODS
from easyeditor.patches.stack import applied
from support import CONTEXTS, EDITS, lm

FACTS = json.loads((Path(__file__).parent / "subject_first.json").read_text(encoding="utf-8"))
FIRST = Edit("Rome is the capital of", "Danish", subject="Rome")
LATER = Edit("The capital of Germany is", "Paris", subject="Germany")


@pytest.fixture(scope="module")
def target():
    model = lm("llama")
    assert model.text.row(FIRST.prompt, subject="Rome").subject_last == 0
    return model


def test_the_fact_is_read_after_a_subject_that_is_the_first_token(target):
    bare, *prefixed = subject_rows(target, FIRST, CONTEXTS)
    assert bare.subject_last == 1
    assert bare.ids == target.text.row(FIRST.prompt).ids[:2]
    for context, row in zip(CONTEXTS[1:], prefixed, strict=True):
        assert (
            row.subject_last
            == target.text.row(FIRST.prompt, subject="Rome", prefix=context).subject_last
        )
    assert read_after_subject(target, FIRST)


def test_every_other_subject_is_read_at_its_last_token(target):
    row = target.text.row(LATER.prompt, LATER.target, subject=LATER.subject)
    assert fact_at(target, row) == row.subject_last
    assert not read_after_subject(target, LATER)
    assert contrast_rows(target, [LATER, EDITS[1]]) == []


def test_a_prompt_of_one_token_is_read_there(target):
    row = target.text.row("Rome", "Italy", subject="Rome")
    assert fact_at(target, row) == 0
    assert not read_after_subject(target, Edit("Rome", "Italy", subject="Rome"))


def test_an_encoder_has_no_first_token_of_this_kind():
    model = lm("t5").encoder_side()
    row = model.text.row(FIRST.prompt, subject="Rome")
    assert fact_at(model, row) == row.subject_last
    assert not read_after_subject(model, FIRST)


def test_contrast_rows_differ_in_the_first_token_and_spare_the_other_edits(target):
    bare = subject_rows(target, FIRST, [""])[0]
    rows = [row for row in contrast_rows(target, [FIRST]) if row.ids[0] != bare.ids[0]]
    assert rows
    assert len({row.ids for row in rows}) == len(rows)
    for row in rows:
        assert row.ids[1:] == bare.ids[1:]
        assert row.subject_last == 1
    other = Edit("She is the capital of", "Germany", subject="She")
    together = {row.ids for row in contrast_rows(target, [FIRST, other])}
    assert not together & {subject_rows(target, edit, [""])[0].ids for edit in (FIRST, other)}


def test_the_other_tokens_of_the_prompt_are_left_alone(target):
    ids = target.text.row(FIRST.prompt).ids
    own = [row for row in contrast_rows(target, [FIRST]) if row.ids == ids[: len(row.ids)]]
    assert [row.subject_last for row in own] == [0, *range(2, len(ids))]


def test_nearest_tokens_are_the_nearest_by_cosine(target):
    table = torch.nn.functional.normalize(
        target.model.get_input_embeddings().weight.detach(), dim=1
    )
    token = target.text.row("Rome").ids[0]
    near = nearest_tokens(target, token, 5)
    cosines = table @ table[token]
    assert len(near) == 5
    assert token not in near
    assert cosines[near].tolist() == sorted(cosines[near].tolist(), reverse=True)


def test_the_limit_of_the_norm_is_that_of_the_subject_elsewhere(target):
    options = ValueOptions(3, 5.0, 0.0, 1.0, 0.0)
    site = Site(1, "down")
    values = optimize_values(target, site, [FIRST], CONTEXTS, options)
    assert values.delta.isfinite().all()
    assert values.delta.norm() > 0


@pytest.mark.parametrize("kind", ["ridge", "averaged"])
def test_memit_stores_it_beside_other_facts_and_leaves_other_subjects(target, kind):
    method_class = METHODS.get("MEMIT")
    settings = method_class.hyperparams_class(
        layers=[1], mom2_adjustment=False, v_num_grad_steps=20, v_lr=0.5, kl_factor=0.0,
        v_weight_decay=0.0, key=kind, mom2_update_weight=1e-3, clamp_norm_factor=4,
        context_template_length_params=[[3, 2]],
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in target.model.named_parameters()}
    patch = method_class(settings).edit(target, [LATER, FIRST]).patch
    pairs = [(FIRST.prompt, FIRST.target), (LATER.prompt, LATER.target)]
    plain = [sum(each.logprobs) for each in score(target, pairs)]
    with applied(target.model, patch):
        edited = [sum(each.logprobs) for each in score(target, pairs)]
    assert all(a > b + 0.2 for a, b in zip(edited, plain, strict=True))
    assert all((p == before[name]).all() for name, p in target.model.named_parameters())


@pytest.mark.parametrize("kind", ["ridge", "averaged", "joint"])
def test_rome_leaves_the_contrast_keys_nearly_alone(target, kind):
    method_class = METHODS.get("ROME")
    settings = method_class.hyperparams_class(
        layers=[1], mom2_adjustment=False, v_num_grad_steps=10, kl_factor=0.0, key=kind,
        context_template_length_params=[[3, 2]],
    )  # fmt: skip
    patch = method_class(settings).edit(target, [FIRST]).patch
    (part,) = next(iter(patch.entries.values()))
    bare = keys_at(target, [1], subject_rows(target, FIRST, [""]))[1]
    others = keys_at(target, [1], contrast_rows(target, [FIRST]))[1]
    moved = (others @ part.u @ part.v).norm(dim=1)
    if kind == "averaged":  # the bare prompt's key is not met exactly
        (without,) = rank_one_without_contrast(target, settings)
        assert moved.mean() < 0.5 * (others @ without.u @ without.v).norm(dim=1).mean()
    else:
        assert moved.mean() < 0.3 * (bare @ part.u @ part.v).norm()


def rank_one_without_contrast(target, settings):
    """The part of the same edit where no key is to be left alone."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("easyeditor.methods.rome.contrast_rows", lambda *_: [])
        patch = METHODS.get("ROME")(settings).edit(target, [FIRST]).patch
    return next(iter(patch.entries.values()))


def test_keys_without_energy_have_the_whole_slack():
    energy, usual = torch.tensor([0.0, 0.0, 1.0, 4.0]), torch.tensor([0.0, 2.0, 2.0, 2.0])
    assert energy_share(energy, usual).tolist() == pytest.approx([1.0, 1e-6, 0.5, 1.0])


def test_the_facts_name_their_subject_first():
    for part in ("development", "reported"):
        for fact in FACTS[part]:
            assert fact["prompt"].startswith(fact["subject"])
    subjects = [{fact["subject"] for fact in FACTS[part]} for part in ("development", "reported")]
    assert not subjects[0] & subjects[1]
    assert len(subjects[1]) == 30
