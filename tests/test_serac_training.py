"""SERAC: what its training minimises, and the networks it can use."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import serac_training
import tiny
from easyeditor import Case, EditTrainer, Probe, SERACHyperParams, SERACTrainingHparams
from easyeditor.errors import (
    DataError,
    HyperParamsError,
    ModelLoadError,
    UnsupportedModelError,
)
from easyeditor.methods.serac.learner import SERACLearner
from easyeditor.methods.serac.patch import TEMPLATE, told
from easyeditor.methods.serac.serac import SERAC
from easyeditor.methods.training import learner_of
from learning_cases import AGAIN, CASES
from serac_training import PROMPTS, train
from support import EDITS, Snapshot, argmaxes, lm, logprobs, same_bits, unsettle
from test_scope_patch import other_tokenizer
from tiers import tiered

encoder = serac_training.encoder


# -- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiered(["gpt2", "t5", "llama"], {"gpt2"}))
def test_a_training_learns_scope_and_answers(family: str, encoder: str, tmp_path: Path) -> None:
    target = lm(family)
    unsettle(target.model)
    before = Snapshot(target.model)
    done = train(target, tmp_path, encoder)
    assert before.differences(target.model) == []
    assert done.metrics["rewrite"] == done.metrics["rephrase"] == done.metrics["locality"] == 1.0
    assert {"answer_nll", "scope_in", "scope_out"} <= set(done.history[0])
    learner = learner_of(target, SERACTrainingHparams(cls_name=encoder, cedit=1.0))
    untrained = learner.validate(CASES)
    assert untrained["edit_loss"] > 2 * done.metrics["edit_loss"]
    learner.load(done.path)
    assert learner.validate(CASES) == pytest.approx(dict(done.metrics))


def test_the_loss_is_what_it_says(encoder: str) -> None:
    target = lm("gpt2")
    learner = SERACLearner(
        target,
        SERACTrainingHparams(
            cls_name=encoder,
            cedit=0.3,
            cloc=0.7,
            in_scope_weight=1.5,
        ),
    )
    learner.nets.classifier.head.weight.data.mul_(2)
    with torch.no_grad():
        found = learner.loss(CASES)
        vector = {text: learner.nets.classifier([text])[0] for text in PROMPTS}
    apart = {
        (a, e.prompt): float(((vector[a] - vector[e.prompt]) ** 2).sum())
        for a in PROMPTS
        for e in EDITS
    }
    inside = [apart[AGAIN[i], edit.prompt] for i, edit in enumerate(EDITS)]
    outside = []
    for text in PROMPTS:
        own = {EDITS[i].prompt for i in range(3) if text in {EDITS[i].prompt, AGAIN[i]}}
        nearest = min(apart[text, e.prompt] for e in EDITS if e.prompt not in own)
        outside.append(-math.log(1 - math.exp(-nearest)))
    asked = [(told(TEMPLATE, e, e.prompt), e.target) for e in EDITS]
    asked += [(told(TEMPLATE, e, q), e.target) for e, q in zip(EDITS, AGAIN, strict=True)]
    nll = [-sum(s) / len(s) for s in logprobs(learner.small, asked)]
    close = {"rel": 1e-4, "abs": 1e-5}
    assert float(found["scope_in"]) == pytest.approx(sum(inside) / 3, **close)
    assert float(found["scope_out"]) == pytest.approx(sum(outside) / len(PROMPTS), **close)
    assert float(found["answer_nll"]) == pytest.approx(sum(nll) / 6, **close)
    assert float(found["loss"]) == pytest.approx(
        0.3 * sum(nll) / 6 + 0.7 * (1.5 * sum(inside) / 3 + sum(outside) / len(PROMPTS)), **close
    )


def test_the_mixture_is_one(encoder: str) -> None:
    target = lm("gpt2")
    settings = SERACTrainingHparams(cls_name=encoder, soft_weighting=True)
    learner = SERACLearner(target, settings)
    case = CASES[0]
    (again, near) = case.probes
    with torch.no_grad():
        found = learner.loss([case])
        vectors = learner.nets.classifier([case.edit.prompt, again.prompt, near.prompt])
    s = torch.exp(-((vectors[1:] - vectors[0]) ** 2).sum(1)).tolist()

    def probabilities(model, question, answer):
        row = model.text.row(question, answer)
        with torch.no_grad():
            return model.target_logits([row]).softmax(-1).double(), list(row.target)

    def mixed(weight, question, answer):
        small, ids = probabilities(learner.small, told(TEMPLATE, case.edit, question), answer)
        base, _ = probabilities(target, question, answer)
        return weight * small + (1 - weight) * base, base, ids

    nll = []
    for weight, question in ((1.0, case.edit.prompt), (s[0], again.prompt)):
        mix, _, ids = mixed(weight, question, case.edit.target)
        nll.append(-mix[range(len(ids)), ids].log().mean())
    mix, base, _ = mixed(s[1], near.prompt, near.answers[0])
    kl = (base * (base.log() - mix.log())).sum(1).mean()
    assert float(found["answer_nll"]) == pytest.approx(float(sum(nll)) / 2, rel=1e-4)
    assert float(found["loc_kl"]) == pytest.approx(float(kl), rel=1e-3, abs=1e-6)
    learner.loss(CASES)["loss"].backward()
    assert all(p.grad is None for p in target.model.parameters())
    assert all(p.grad is not None for p in learner.nets.classifier.head.parameters())


def test_one_edit_is_not_its_own_negative(encoder: str) -> None:
    """A case with two paraphrases is two examples, which may meet in a batch."""
    learner = SERACLearner(lm("gpt2"), SERACTrainingHparams(cls_name=encoder))
    twin = Case("twin", EDITS[0], (Probe("Anna spoke", ("Italy",), "rephrase"), CASES[0].probes[1]))
    with torch.no_grad():
        both, alone = learner.loss([CASES[0], twin]), learner.loss([CASES[0]])
    assert float(both["scope_out"]) == pytest.approx(float(alone["scope_out"]), rel=1e-4)


def test_a_frozen_counterfactual_model(encoder: str, tmp_path: Path) -> None:
    target = lm("gpt2")
    path = train(target, tmp_path, encoder, freeze_cntr=True, max_iters=3).path
    tensors = load_file(path)
    for name, tensor in target.model.state_dict().items():
        assert same_bits(tensors[f"counterfactual.{name}"], tensor)


def test_nothing_is_drawn_by_lot(encoder: str) -> None:
    target = lm("gpt2")  # whose dropout is 0.1
    learner = SERACLearner(target, SERACTrainingHparams(cls_name=encoder))
    learner.module.train()
    state = torch.get_rng_state()
    one, two = (learner.loss(CASES)["loss"].detach() for _ in range(2))
    assert same_bits(one, two)
    assert torch.equal(torch.get_rng_state(), state)


def test_cases_without_a_paraphrase_cannot_be_learnt_from(encoder: str) -> None:
    case = Case("0", EDITS[0], CASES[0].probes[1:])
    with pytest.raises(DataError, match="1 of 1 have no rephrase"):
        EditTrainer(SERACTrainingHparams(cls_name=encoder), [case], [case], lm=lm("gpt2"))


# -- networks that cannot be used -------------------------------------------------------------


def small_in(folder: Path, family: str, tokenizer) -> str:
    tiny.model(family, seed=4).save_pretrained(folder / family)
    tokenizer.save_pretrained(folder / family)
    return str(folder / family)


def test_any_model_of_the_tokenizer_may_answer(encoder: str, tmp_path: Path) -> None:
    target = lm("llama")
    name = small_in(tmp_path, "gptj", tiny.tokenizer())
    done = train(target, tmp_path, encoder, small_name=name)
    patch = SERAC(SERACHyperParams(archive=str(done.path))).edit(target, EDITS).patch
    patch.apply(target.model)
    assert argmaxes(target, [(e.prompt, e.target) for e in EDITS]) == [
        target.text.row(e.prompt, e.target).target for e in EDITS
    ]


def test_networks_that_do_not_fit(encoder: str, tmp_path: Path) -> None:
    target = lm("gpt2")
    before = Snapshot(target.model)
    name = small_in(tmp_path, "gpt2", other_tokenizer())
    settings = SERACTrainingHparams(cls_name=encoder, small_name=name)
    with pytest.raises(HyperParamsError, match=r"another tokenizer than.*JackFram/llama-160m"):
        learner_of(target, settings)
    name = small_in(tmp_path, "t5", tiny.tokenizer())
    with pytest.raises(UnsupportedModelError, match="both must be encoder-decoders, or neither"):
        learner_of(target, settings.replace(small_name=name))
    with pytest.raises(ModelLoadError, match="encoder"):
        learner_of(target, SERACTrainingHparams(cls_name=str(tmp_path / "none")))
    with pytest.raises(HyperParamsError, match="learns from paraphrases"):
        learner_of(target, SERACTrainingHparams(cls_name=encoder, edit_loss_on="prompt"))
    assert before.differences(target.model) == []
