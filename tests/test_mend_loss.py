"""MEND: the loss it says it minimises, with hidden states computed once where they can be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from easyeditor import Case, MENDHyperParams, MENDTrainingHparams, Probe
from easyeditor.lm.forward.lower_block_cache import LowerBlockCache
from easyeditor.lm.hooks import substituting
from easyeditor.lm.inference import score
from easyeditor.methods.mend.learner import MENDLearner
from easyeditor.methods.mend.mend import MEND
from easyeditor.methods.mend.settings import sites_of
from learning_cases import CASES
from mending import rows_of, stirred
from support import Interrupt, Snapshot, failing_at, lm, same_bits, shared_lm, unsettle
from tiers import tiered


def alone(target, learner, case):
    """The edited weights of one case, as the model stores them, by way of the patch."""
    folder = Path(learner.config.results_dir)
    patch = MEND(MENDHyperParams(archive=str(folder))).edit(target, [case.edit]).patch
    weights = {}
    for path in patch.entries:
        weight = target.model.get_parameter(path).detach().float().clone()
        change = patch.dense(path)
        weight += change if path in patch.in_out else change.T
        weights[path] = weight.to(target.model.get_parameter(path).dtype)
    return weights


# -- the loss ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "opt", "gemma2"])
def test_the_loss_is_what_the_patches_do(family, tmp_path):
    target = lm(family)
    learner = stirred(target, results_dir=str(tmp_path), cedit=0.3, cloc=0.7)
    learner.save(tmp_path)
    before = Snapshot(target.model)
    told, evaluate_cases = learner.loss(CASES), learner.validate(CASES)
    edits, drifts, hits = [], [], []
    for case in CASES:
        again, near = case.probes
        row = target.text.row(near.prompt, near.answers[0])
        with torch.no_grad(), target.at_rest():
            base = target.target_logits([row]).log_softmax(-1)
            with substituting(target.model, alone(target, learner, case)):
                after = target.target_logits([row]).log_softmax(-1)
                scores = score(target, [(again.prompt, case.edit.target)])[0]
        edits.append(-scores.mean_logprob)
        hits.append(scores.accuracy)
        drifts.append(float((base.exp() * (base - after)).sum(-1).mean()))
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    assert float(told["edit_nll"]) == pytest.approx(mean(edits), rel=1e-3)
    assert float(told["loc_kl"]) == pytest.approx(mean(drifts), rel=1e-2, abs=1e-5)
    wanted = 0.3 * mean(edits) + 0.7 * mean(drifts)
    assert float(told["loss"].detach()) == pytest.approx(wanted, rel=1e-3)
    assert evaluate_cases["edit_loss"] == pytest.approx(wanted, rel=1e-3)
    assert evaluate_cases["rephrase"] == pytest.approx(mean(hits))
    assert mean(drifts) > 1e-4
    assert before.differences(target.model) == []


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_the_edit_is_learnt_on_the_rephrase_or_if_asked_on_the_prompt(family):
    target = shared_lm(family)
    other = [
        Case(
            c.id,
            c.edit,
            (Probe(f"We went home. {c.edit.prompt}", (c.edit.target,), "rephrase"), c.probes[1]),
        )
        for c in CASES
    ]
    bare = [Case(c.id, c.edit, c.probes[1:]) for c in CASES]
    for where, differ in (("both", True), ("rephrase", True), ("prompt", False)):
        learner = stirred(target, edit_loss_on=where)
        one, two = (float(learner.loss(cases)["edit_nll"]) for cases in (CASES, other))
        assert (one != two) == differ
    assert float(learner.loss(bare)["edit_nll"]) == one
    assert "rephrase" not in learner.validate(bare)


def test_both_is_the_mean_of_the_two():
    told = {
        where: stirred(shared_lm("gpt2"), edit_loss_on=where)
        for where in ("both", "rephrase", "prompt")
    }
    for name in ("loss", "judged"):
        value = {
            where: float(learner.loss(CASES)["edit_nll"])
            if name == "loss"
            else learner.validate(CASES)["edit_nll"]
            for where, learner in told.items()
        }
        assert value["both"] == pytest.approx((value["rephrase"] + value["prompt"]) / 2, rel=1e-4)
        assert value["rephrase"] != pytest.approx(value["prompt"], rel=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "opt"])
def test_a_batch_is_the_mean_of_its_cases(family):
    learner = stirred(shared_lm(family))
    together = learner.loss(CASES)
    apart = [learner.loss([case]) for case in CASES]
    for name, value in together.items():
        mean = sum(float(told[name].detach()) for told in apart) / len(apart)
        assert float(value.detach()) == pytest.approx(mean, rel=2e-3, abs=1e-5)


def test_validation_does_not_depend_on_its_batches_and_changes_nothing():
    target = lm("llama")
    learner = stirred(target, val_batch_size=2)
    before, state = Snapshot(target.model), Snapshot(learner.network)
    learner.network.train()
    told = learner.validate(CASES)
    assert learner.network.training
    learner.network.eval()
    assert state.differences(learner.network) == []
    assert before.differences(target.model) == []
    whole = stirred(target, val_batch_size=50).validate(CASES)
    assert told == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_training_steps_lower_the_loss_and_leave_the_model(family):
    target = lm(family)
    unsettle(target.model)
    before = Snapshot(target.model)
    learner = MENDLearner(target, MENDTrainingHparams(edit_lr=1e-3, lr=1e-3))
    adam = torch.optim.Adam(learner.parameter_groups())
    losses = []
    for _ in range(15):
        adam.zero_grad()
        loss = learner.loss(CASES)["loss"]
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert before.differences(target.model) == []
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("place", ["head", "block"])
def test_a_loss_that_fails_in_any_pass_changes_nothing(place):
    def attempt(call):
        target = lm("gpt2")
        unsettle(target.model)
        learner = MENDLearner(target, MENDTrainingHparams())
        passes = failing_at(target.head if place == "head" else target.blocks[1], call)
        before = Snapshot(target.model)
        if call:
            with pytest.raises(Interrupt):
                learner.loss(CASES)
        else:
            learner.loss(CASES)
        assert before.differences(target.model) == []
        return passes()

    for call in range(1, attempt(0) + 1):
        attempt(call)


# -- hidden states computed once --------------------------------------------------------------


@pytest.mark.parametrize("family", tiered(tiny.CAUSAL))
def test_the_trunk_gives_the_plain_logits_and_the_same_bits_in_any_company(family):
    target = lm(family)
    before, rows = Snapshot(target.model), rows_of(target)
    with target.at_rest(), torch.no_grad():
        trunk = LowerBlockCache(target, 2)
        fast, plain = trunk.target_logits(rows), target.target_logits(rows)
        assert torch.allclose(fast.log_softmax(-1), plain.log_softmax(-1), atol=1e-4)
        assert trunk.agrees(rows)
        first = trunk.target_logits(rows[:1])
        assert same_bits(LowerBlockCache(target, 2).target_logits(rows[:1]), first)
    assert before.differences(target.model) == []


def test_the_trunk_is_used_where_it_fits_and_gives_the_same_loss():
    target = lm("llama", num_hidden_layers=5)
    plain, fast, full = (stirred(target, cache_mb=mb) for mb in (0, 64, 64))
    fast.prepare(CASES)
    plain.prepare(CASES)
    assert fast._logits != target.target_logits
    assert plain._logits == target.target_logits
    one, two = plain.loss(CASES), fast.loss(CASES)
    assert float(one["loss"].detach()) == pytest.approx(float(two["loss"].detach()), rel=1e-4)
    assert plain.validate(CASES) == pytest.approx(fast.validate(CASES), rel=1e-3)
    full.sites = sites_of(target, (0,), ())
    full.prepare(CASES)  # nothing lies below the first block
    assert full._logits == target.target_logits


def test_a_trunk_that_disagrees_is_not_used(monkeypatch):
    target = lm("llama", num_hidden_layers=5)
    monkeypatch.setattr(LowerBlockCache, "agrees", lambda *_: False)
    learner = stirred(target)
    learner.prepare(CASES)
    assert learner._logits == target.target_logits
