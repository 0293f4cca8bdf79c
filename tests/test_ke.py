"""KE: rank of its update, what an untrained network does, archives and classic files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from easyeditor import Edit, KEHyperParams, KETrainingHparams
from easyeditor.errors import ArchiveError, HyperParamsError
from easyeditor.gradients.factors import factors_of
from easyeditor.lm.inference import score
from easyeditor.methods.archive import read_archive, write_archive
from easyeditor.methods.ke.ke import KE
from easyeditor.methods.ke.learner import KELearner
from easyeditor.patches.stack import applied
from learning_cases import CASES
from support import EDITS, Snapshot, lm, shared_lm, unsettle

SETTINGS = {"layers": [1, 2], "hidden": 8, "condition": 16, "gate_hidden": 8, "edit_lr": 50.0}


def learner(target, **changes) -> KELearner:
    result = KELearner(target, KETrainingHparams(**{**SETTINGS, **changes}))
    result.network.eval()
    return result


def moved(target, **changes) -> KELearner:
    """A learner with every gate at work."""
    result = learner(target, **changes)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in result.network.named_parameters():
            if name != "rates":
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return result


def method(file: Path, **changes) -> KE:
    return KE(KEHyperParams(archive=str(file), **changes))


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return moved(lm("gpt2")).save(tmp_path_factory.mktemp("archive"))


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_the_update_is_the_gated_gradient_of_rank_tokens_plus_one(family, tmp_path):
    target = lm(family)
    trained, edit = moved(target), EDITS[0]
    before = Snapshot(target.model)
    patch = method(trained.save(tmp_path)).edit(target, [edit]).patch
    row = target.text.row(edit.prompt, edit.target)
    with target.at_rest():
        factors = factors_of(target.target_logits, trained.sites, [row])
    with torch.no_grad():
        condition = trained.condition([edit])
    for index, site in enumerate(trained.sites):
        x, g = factors[site.path].x, factors[site.path].delta
        with torch.no_grad():
            alpha, beta, gamma, shift, c = trained.network.gates[index](condition)
        gradient = g.T @ x  # (d_out, d_in)
        wanted = 50.0 * c * (gradient * (alpha.T @ beta) + gamma.T @ shift)
        result = patch.dense(site.path)
        assert (result - wanted.T).norm() < 1e-4 * wanted.norm()
        (part,) = patch.entries[site.path]
        assert part.u.shape[1] == int(factors[site.path].place.max()) + 2
        top = torch.linalg.matrix_rank(result.double(), rtol=1e-6)
        assert int(top) <= min(len(x) + 1, *result.shape)
    assert before.differences(target.model) == []


def test_untrained_it_steps_against_the_gradient(tmp_path):
    target = lm("llama")
    trained, edit = learner(target), EDITS[0]
    file = trained.save(tmp_path)
    row = target.text.row(edit.prompt, edit.target)
    with target.at_rest():
        factors = factors_of(target.target_logits, trained.sites, [row])
    patch = method(file).edit(target, [edit]).patch
    for site in trained.sites:
        gradient = factors[site.path].x.T @ factors[site.path].delta
        change = patch.dense(site.path)
        assert torch.cosine_similarity(change.flatten(), -gradient.flatten(), dim=0) > 0.7
    first = score(target, [(edit.prompt, edit.target)])[0].mean_logprob
    with applied(target.model, patch):
        assert score(target, [(edit.prompt, edit.target)])[0].mean_logprob > first + 0.01


def test_the_old_answer_is_read():
    target = shared_lm("llama")
    trained = moved(target)
    edit = EDITS[0]
    conditions = [
        trained.condition([Edit(edit.prompt, edit.target, ground_truth=old)])
        for old in (None, "Danish", "the")
    ]
    assert not torch.allclose(conditions[0], conditions[1])
    assert not torch.allclose(conditions[1], conditions[2])
    alone = torch.cat([trained.condition([e]) for e in EDITS])
    assert torch.allclose(trained.condition(EDITS), alone, atol=1e-5)  # padding is not read


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_batch_of_cases_is_each_alone_and_the_loss_falls(family):
    target = lm(family)
    unsettle(target.model)
    before = Snapshot(target.model)
    trained = learner(target, edit_lr=1.0, lr=1e-2, lr_lr=0.5)
    together = trained.loss(CASES)
    apart = [float(trained.loss([case])["loss"].detach()) for case in CASES]
    assert float(together["loss"].detach()) == pytest.approx(sum(apart) / len(apart), rel=2e-3)
    adam = torch.optim.Adam(trained.parameter_groups())
    for _ in range(8):
        adam.zero_grad()
        result = trained.loss(CASES)
        result["loss"].backward()
        adam.step()
    assert float(result["edit_nll"]) < float(together["edit_nll"]) - 0.02
    assert before.differences(target.model) == []


def test_bad_archives_and_calls_are_refused_and_the_model_unharmed(archive, tmp_path):
    target = lm("gpt2")
    before = Snapshot(target.model)
    with pytest.raises(HyperParamsError, match="easyedit train --method ke"):
        KE(KEHyperParams()).edit(target, EDITS[:1])
    with pytest.raises(HyperParamsError, match="one edit at a time"):
        method(archive).edit(target, EDITS)
    with pytest.raises(ArchiveError, match="does not belong"):
        method(archive).edit(lm("llama"), EDITS[:1])
    read = read_archive(archive, "KE")
    settings = KETrainingHparams(**{**read.hyperparams, "hidden": 10**6})
    bad = write_archive(tmp_path, target, "KE", settings, read.tensors)
    with pytest.raises(ArchiveError, match="hidden=1000000"):
        method(bad).edit(target, EDITS[:1])
    assert before.differences(target.model) == []


CLASSIC = """
model_name: ./hugging_cache/gpt2-xl
model_class: GPT2LMHeadModel
tokenizer_class: GPT2Tokenizer
tokenizer_name: ./hugging_cache/gpt2-xl
inner_params:
- transformer.h.45.mlp.c_proj.weight
archive: null
alg: KE
lr: 1e-5
edit_lr: 1e-2
lr_lr: 1e-3
seed: 42
cedit: 0.1
cloc: 1.0
cbase: 1.0
dropout: 0.0
train_base: False
no_grad_layers: null
device: cuda:5
batch_size: 1
model_save_pt: 5000
silent: False
max_iters: 100000
log_interval: 10
eval_log_interval: 100
final_eval: True
val_interval: 10
early_stop_patience: 20000
early_stop_key: "loss/total_edit_val"
eval_only: False
half: False
debug: False
save: False
verbose: True
val_batch_size: 5
accumulate_bs: 10
val_steps: 500
opt: Adam
grad_clip: 100.
results_dir: ./results
"""


def test_complete_classic_files_load(tmp_path):
    (tmp_path / "gpt2-xl.yaml").write_text(CLASSIC)
    result = KETrainingHparams.from_hparams(tmp_path / "gpt2-xl")
    assert (result.lr, result.edit_lr, result.lr_lr, result.seed) == (1e-5, 1e-2, 1e-3, 42)
    assert KEHyperParams.from_hparams(tmp_path / "gpt2-xl").inner_params == result.inner_params
    assert KETrainingHparams.preset("gpt2-xl").lr == 1e-5
