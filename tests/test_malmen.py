"""MALMEN: its formula, its solve, gradients through both, archives and classic files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from easyeditor import MALMENHyperParams, MALMENTrainingHparams, save_patch
from easyeditor.associative.solve import Cholesky, closed_form
from easyeditor.errors import ArchiveError, ContradictingEditsError, HyperParamsError
from easyeditor.gradients.factors import answer_factors, differentiable
from easyeditor.gradients.losses import kl_per_token, mean_per_row, target_nll
from easyeditor.lm.inference import score
from easyeditor.methods.malmen.learner import MALMENLearner
from easyeditor.methods.malmen.malmen import MALMEN
from easyeditor.methods.malmen.nets import Network
from easyeditor.patches.stack import applied
from learning_cases import CASES
from support import EDITS, Snapshot, lm, shared_lm, unsettle

SETTINGS = {"layers": [1, 2], "edit_lr": 3e-2, "rank": 8, "batch_size": 3}


def learner(target, **changes) -> MALMENLearner:
    """A learner that has seen the cases once and learnt nothing but their statistics."""
    result = MALMENLearner(target, MALMENTrainingHparams(**{**SETTINGS, **changes}))
    result.loss(CASES)
    result.network.eval()
    return result


def moved(target, **changes) -> MALMENLearner:
    """The same with networks that are no longer the first ones."""
    result = learner(target, **changes)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in result.network.named_parameters():
            if name != "rates":
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return result


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return learner(lm("gpt2")).save(tmp_path_factory.mktemp("archive"))


def method(file: Path, **changes) -> MALMEN:
    return MALMEN(MALMENHyperParams(archive=str(file), **changes))


# -- the formula ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [7, 40])
def test_the_solve_of_tokens_is_that_of_inputs(n):
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(n, 20, generator=generator, dtype=torch.float64)
    d = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    slack = torch.tensor(0.3, dtype=torch.float64).exp()
    gram = h.T @ h + slack * torch.eye(20, dtype=torch.float64)
    wanted = torch.linalg.solve(gram, h.T @ d)
    result = closed_form(h.T, Cholesky.identity(), slack) @ d
    assert (result - wanted).abs().max() < 1e-6 * wanted.abs().max()


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_untrained_it_is_its_formula(family, tmp_path):
    target = lm(family)
    file = learner(target).save(tmp_path)
    patch = method(file).edit(target, EDITS).patch
    network = learner(target).network
    rows = [target.text.row(edit.prompt, edit.target) for edit in EDITS]
    sites = MALMENLearner.sites_of(target, (1, 2), ())
    for path, pair in answer_factors(target, sites, rows).items():
        h, g = (t.double() for t in pair)
        normal = []
        for t in (h, g):  # the statistics have seen these factors alone
            deviation = t.std(0, unbiased=False)
            normal.append((t - t.mean(0)) / deviation.clamp(min=1e-2 * deviation.mean()))
        d = -3e-2 * (h * normal[0]).sum(1, keepdim=True) * normal[1]
        gram = h.T @ h + torch.eye(h.shape[1], dtype=torch.float64)
        wanted = torch.linalg.solve(gram, h.T @ d).float()
        assert (patch.dense(path) - wanted).norm() < 1e-4 * wanted.norm()
        assert network.statistics(path).count == len(h)


def test_every_number_learns_from_the_start():
    network = Network({"a": (4, 6), "b": (4, 6)}, rank=3, n_blocks=2, edit_lr=0.5)
    generator = torch.Generator().manual_seed(0)
    parts = []
    for path in ("a", "b"):
        h, g = torch.randn(8, 4, generator=generator), torch.randn(8, 6, generator=generator)
        network.update(path, h, g)
        u, v = network(path, h, g)
        parts.append((u.T @ v).exp().sum())
    sum(parts).backward()
    still = {n.rpartition(".")[2] for n, p in network.named_parameters() if not p.grad.any()}
    assert still == {"a", "scale"}  # while B is 0, no change flows through A


# -- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_the_gradient_in_chunks_is_that_of_one_pass(family, monkeypatch):
    target = shared_lm(family)
    before = Snapshot(target.model)
    monkeypatch.setattr("easyeditor.methods.malmen.learner.TOKENS", 8)
    chunked = moved(target, cedit=0.3, cloc=0.7)
    result = chunked.loss(CASES)
    parameters = list(chunked.network.parameters())
    gradients = torch.autograd.grad(result["loss"], parameters)
    changes = chunked.changes(CASES, learning=False)
    _, rephrasings, unrelated = chunked.rows(CASES)
    with target.at_rest():
        with torch.no_grad():
            base = target.target_logits(unrelated).log_softmax(-1)
        with differentiable(target, changes):
            nll = target_nll(target.target_logits(rephrasings), rephrasings).mean()
            now = target.target_logits(unrelated).log_softmax(-1)
    kl = mean_per_row(kl_per_token(base, now), unrelated).mean()
    whole = 0.3 * nll + 0.7 * kl
    assert float(result["loss"].detach()) == pytest.approx(float(whole.detach()), rel=1e-4)
    for a, b in zip(gradients, torch.autograd.grad(whole, parameters), strict=True):
        assert (a - b).norm() <= 2e-3 * b.norm() + 1e-6
    assert kl > 1e-5
    assert before.differences(target.model) == []


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_the_scores_are_those_of_the_patch_of_all_cases(family, tmp_path):
    target = lm(family)
    trained = moved(target)
    patch = method(trained.save(tmp_path)).edit(target, [case.edit for case in CASES]).patch
    metrics = trained.validate(CASES)
    asked = [(case.probes[0].prompt, case.edit.target) for case in CASES]
    with applied(target.model, patch):
        scores = score(target, asked)
    nll = -sum(s.mean_logprob for s in scores) / len(scores)
    assert metrics["edit_nll"] == pytest.approx(nll, rel=1e-3)
    assert metrics["rephrase"] == pytest.approx(sum(s.accuracy for s in scores) / len(scores))
    assert float(trained.loss(CASES)["edit_nll"]) == pytest.approx(nll, rel=1e-3)


def test_training_steps_lower_the_loss_and_leave_the_model():
    target = lm("llama")
    unsettle(target.model)
    before = Snapshot(target.model)
    trained = MALMENLearner(target, MALMENTrainingHparams(**SETTINGS, lr=1e-2))
    adam = torch.optim.Adam(trained.parameter_groups())
    losses = []
    for _ in range(12):
        adam.zero_grad()
        loss = trained.loss(CASES)["loss"]
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert before.differences(target.model) == []
    assert losses[-1] < 0.9 * losses[1]


# -- archives and settings --------------------------------------------------------------------


def test_an_edit_lowers_the_loss_of_its_targets(archive, tmp_path):
    target = lm("gpt2")
    before = Snapshot(target.model)
    patch = method(archive).edit(target, EDITS).patch
    assert before.differences(target.model) == []
    asked = [(edit.prompt, edit.target) for edit in EDITS]
    first = [s.mean_logprob for s in score(target, asked)]
    with applied(target.model, patch):
        assert sum(s.mean_logprob for s in score(target, asked)) > sum(first) + 0.1
    assert before.differences(target.model) == []
    assert list(patch.info.hyperparams["layers"]) == [1, 2]
    assert save_patch(patch, tmp_path / "p.safetensors").is_file()


def test_without_an_archive_or_with_anothers_it_says_what_to_do(archive, tmp_path):
    target = lm("llama")
    before = Snapshot(target.model)
    with pytest.raises(HyperParamsError, match="easyedit train --method malmen"):
        MALMEN(MALMENHyperParams()).edit(target, EDITS)
    with pytest.raises(ArchiveError, match=r"no archive.*easyedit train --method malmen"):
        method(tmp_path).edit(target, EDITS)
    with pytest.raises(ArchiveError, match="does not belong to this model"):
        method(archive).edit(target, EDITS)
    with pytest.raises(HyperParamsError, match="was trained to edit"):
        method(archive, layers=[0]).edit(lm("gpt2"), EDITS)
    with pytest.raises(ContradictingEditsError):
        method(archive).edit(lm("gpt2"), [EDITS[0], *[type(EDITS[0])(EDITS[0].prompt, "x")]])
    assert before.differences(target.model) == []


@pytest.mark.parametrize("change", [{"rank": 2}, {"n_blocks": 10**9}])
def test_a_header_that_its_tensors_do_not_bear_out_is_refused(archive, tmp_path, change):
    from easyeditor.methods.archive import read_archive, write_archive

    target, read = lm("gpt2"), read_archive(archive, "MALMEN")
    settings = MALMENTrainingHparams(**{**read.hyperparams, **change})
    bad = write_archive(tmp_path, target, "MALMEN", settings, read.tensors)
    before = Snapshot(target.model)
    with pytest.raises(ArchiveError, match=f"says {next(iter(change))}="):
        method(bad).edit(target, EDITS)
    assert before.differences(target.model) == []


CLASSIC = """
alg: "MALMEN"
archive: null
model_name: ./hugging_cache/gpt2-xl
model_class: GPT2LMHeadModel
tokenizer_class: GPT2TokenizerFast
tokenizer_name: ./hugging_cache/gpt2-xl
inner_params:
- transformer.h.1.mlp.c_proj.weight
dropout: 0.0
train_base: False
no_grad_layers: null
rank: 1920
n_blocks: 2
lr: 1e-6
meta_lr: 1e-5
loc_coef: 0.5
max_grad_norm: 1
token: mask
n_edits: 512
batch_size: 8
editor_batch_size: 1024
silent: False
max_iters: 10000
log_interval: 100
eval_log_interval: 100
final_eval: True
val_interval: 100
early_stop_patience: 1000
early_stop_key: "ES_val"
eval_only: False
debug: False
save: False
val_batch_size: 1
val_steps: 200
model_parallel: false
results_dir: ./results
"""


def test_complete_classic_files_load(tmp_path):
    (tmp_path / "gpt2-xl.yaml").write_text(CLASSIC)
    result = MALMENTrainingHparams.from_hparams(tmp_path / "gpt2-xl")
    assert (result.lr, result.edit_lr, result.batch_size) == (1e-5, 1e-6, 512)
    assert (result.cloc, result.grad_clip, result.max_iters) == (0.5, 1.0, 10_000)
    assert MALMENTrainingHparams(**result.model_dump()) == result
    editing = MALMENHyperParams.from_hparams(tmp_path / "gpt2-xl")
    assert (editing.batch_size, editing.inner_params) == (512, result.inner_params)
    published = MALMENTrainingHparams.preset("gpt2-xl")
    assert (published.lr, published.edit_lr, published.rank) == (1e-5, 1e-6, 1920)
    assert len(published.inner_params) == 6
