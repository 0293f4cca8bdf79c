"""MEND: exact gradients, the loss it says it minimises, archives that fit or are refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tiny
import zoo
import zoo.world
from easyeditor import (
    BaseEditor,
    Case,
    Edit,
    EditTrainer,
    MENDHyperParams,
    MENDTrainingHparams,
    Probe,
    load_patch,
    save_patch,
)
from easyeditor.errors import ArchiveError, ContradictingEditsError, HyperParamsError
from easyeditor.hyperparams import FAMILY_KEYS
from easyeditor.lm.hooks import substituting
from easyeditor.lm.trunk import Trunk
from easyeditor.methods.archive import KEY, NAME, read_archive
from easyeditor.methods.mend.factors import changing_each, factors_of, nll
from easyeditor.methods.mend.learner import MENDLearner
from easyeditor.methods.mend.mend import MEND
from easyeditor.methods.mend.nets import Network, Running
from easyeditor.methods.mend.settings import sites_of
from easyeditor.patches.stack import carrying
from learning_cases import CASES
from support import EDITS, Interrupt, Snapshot, failing_at, lm, same_bits, shared_lm, unsettle

BFLOAT16 = ("llama", "gpt2", "t5")
both = [(name, torch.float32) for name in tiny.CONFIGS] + [(n, torch.bfloat16) for n in BFLOAT16]
every = pytest.mark.parametrize(
    ("family", "dtype"), both, ids=[f"{name}-{str(kind)[6:]}" for name, kind in both]
)


def stirred(target, **changes) -> MENDLearner:
    """A learner as after some training: statistics of the cases, weights no longer the first."""
    learner = MENDLearner(target, MENDTrainingHparams(**{"edit_lr": 2e-3, **changes}))
    learner.network.train()
    learner.loss(CASES)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in learner.network.named_parameters():
            if name != "rates":
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    learner.network.eval()
    return learner


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Of a stirred learner beside the tiny gpt2."""
    return stirred(lm("gpt2")).save(tmp_path_factory.mktemp("archive"))


def rows_of(target, cases=CASES):
    return [target.text.row(case.edit.prompt, case.edit.target) for case in cases]


def alone(target, learner, case):
    """The edited weights of one case, as the model stores them, by way of the patch."""
    folder = Path(learner.config.results_dir)
    patch = MEND(MENDHyperParams(archive=str(folder))).edit(target, [case.edit])
    weights = {}
    for path in patch.entries:
        weight = target.model.get_parameter(path).detach().float().clone()
        patch.add_to(path, weight)
        weights[path] = weight.to(target.model.get_parameter(path).dtype)
    return weights


# -- the gradient -----------------------------------------------------------------------------


@every
def test_the_factors_are_the_gradient(family, dtype):
    target = lm(family, dtype)
    unsettle(target.model)
    before = Snapshot(target.model)
    sites, rows = sites_of(target, (-3, -2, -1), ()), rows_of(target)
    with target.at_rest():
        found = factors_of(target.target_logits, sites, rows)
    assert before.differences(target.model) == []
    assert list(found) == [site.path for site in sites]
    for i, row in enumerate(rows):  # each row's own, as if it were alone
        parameters = [site.parameter for site in sites]
        with target.at_rest():
            for parameter in parameters:
                parameter.requires_grad_(True)
            loss = nll(target.target_logits([row]), [row])[0]
            gradients = torch.autograd.grad(loss, parameters)
        for site, gradient in zip(sites, gradients, strict=True):
            own = found[site.path]
            mine = own.x[own.row == i].T @ own.delta[own.row == i]
            wanted = (gradient.T if site.transposed else gradient).float()
            loose = 1e-4 if dtype == torch.float32 else 0.05
            assert (mine - wanted).norm() <= loose * wanted.norm() + 1e-9
            assert wanted.norm() > 0


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_rows_see_their_own_change_as_if_the_weights_carried_it(family):
    target = shared_lm(family)
    sites, rows = sites_of(target, (1, 2), ()), rows_of(target)
    generator = torch.Generator().manual_seed(1)

    def some(width):
        return (torch.randn(2, 4, width, generator=generator) * 0.2).requires_grad_()

    changes = {site.path: (some(site.d_in), some(site.d_out)) for site in sites}
    leaves = [tensor for pair in changes.values() for tensor in pair]
    owners = [1, 0, 1]
    with target.at_rest(), changing_each(target, changes, owners):
        mine = nll(target.target_logits(rows), rows)
    gradients = torch.autograd.grad(mine.sum(), leaves)
    wanted = []
    for row, owner in zip(rows, owners, strict=True):
        weights = {}
        for site in sites:
            u, v = (tensor[owner] for tensor in changes[site.path])
            change = u.T @ v
            weights[site.path] = site.parameter.detach() + (change.T if site.transposed else change)
        with target.at_rest(), substituting(target.model, weights):
            wanted.append(nll(target.target_logits([row]), [row])[0])
    assert torch.allclose(mine, torch.stack(wanted), atol=2e-4)
    assert (mine - nll(target.target_logits(rows), rows)).abs().min() > 1e-3
    for a, b in zip(gradients, torch.autograd.grad(sum(wanted), leaves), strict=True):
        assert (a - b).norm() <= 1e-3 * b.norm() + 1e-6


# -- the networks -----------------------------------------------------------------------------


def test_running_statistics_are_those_of_everything_seen():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, 5, generator=generator) * 3 + 2 for n in (1, 7, 0, 30)]
    other = torch.randn(9, 5, generator=generator)
    running = Running(5, 2)
    for part in parts:
        running.update(1, part)
    running.update(0, other)
    whole = torch.cat(parts)
    assert torch.allclose(running.mean[1], whole.mean(0), atol=1e-5)
    normal = running(1, whole)
    assert torch.allclose(normal, (whole - whole.mean(0)) / whole.std(0), atol=1e-4)
    assert torch.allclose(running.mean[0], other.mean(0), atol=1e-6)


def test_a_dimension_that_never_varies_stays_finite():
    running = Running(3, 1)
    running.update(0, torch.tensor([[1.0, 5.0, 0.0], [2.0, 5.0, 0.0]]))
    assert running(0, torch.tensor([[1.5, 5.5, -9.0]])).tolist()[0] == pytest.approx([0.0, 4, -4])
    still = Running(2, 1)
    still.update(0, torch.zeros(4, 2))
    assert still(0, torch.zeros(1, 2)).isfinite().all()


def test_the_network_starts_as_the_identity_times_minus_the_rate():
    network = Network({"a": (4, 6), "b": (4, 6), "c": (6, 4)}, rank=3, n_hidden=1, edit_lr=0.5)
    assert len(network.transforms) == 2
    generator = torch.Generator().manual_seed(0)
    for path, (d_in, d_out) in {"a": (4, 6), "b": (4, 6), "c": (6, 4)}.items():
        x, delta = torch.randn(8, d_in, generator=generator), torch.randn(8, d_out)
        network.update(path, x, delta)
        u, v = network(path, x, delta)
        assert torch.allclose(u, (x - x.mean(0)) / x.std(0), atol=1e-5)
        assert torch.allclose(v, -0.5 * (delta - delta.mean(0)) / delta.std(0), atol=1e-5)
        gradients = torch.autograd.grad(u.square().sum() + v.square().sum(), network.rates)
        assert gradients[0][network.paths.index(path)] != 0


def test_every_number_learns_from_the_start():
    network = Network({"a": (4, 6), "b": (4, 6)}, rank=3, n_hidden=1, edit_lr=0.5)
    total = sum(
        part.exp().sum()
        for path in ("a", "b")
        for part in network(path, torch.randn(8, 4), torch.randn(8, 6))
    )
    total.backward()
    still = {n for n, p in network.named_parameters() if not p.grad.any()}
    # while U is 0 no change flows through V, and there is nothing for a scale to scale
    assert {name.rpartition(".")[2] for name in still} == {"v", "scale"}


def test_the_rank_is_capped_by_the_width():
    network = Network({"a": (4, 6)}, rank=1920, n_hidden=1, edit_lr=1e-4)
    assert {tuple(layer.u.shape) for layer in network.transforms[0].layers} == {(10, 10)}


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("gpt2", ["transformer.h.{}.mlp.c_fc", "transformer.h.{}.mlp.c_proj"]),
        ("llama", [f"model.layers.{{}}.mlp.{n}_proj" for n in ("gate", "up", "down")]),
        ("opt", ["model.decoder.layers.{}.fc1", "model.decoder.layers.{}.fc2"]),
    ],
)
def test_the_last_three_blocks_are_edited(family, names):
    changes = {"n_layer": 5} if family == "gpt2" else {"num_hidden_layers": 5}
    paths = [site.path for site in sites_of(lm(family, **changes), (-3, -2, -1), ())]
    assert paths == [f"{name.format(i)}.weight" for i in (2, 3, 4) for name in names]


def test_t5_has_the_last_two_blocks_of_each_column_edited():
    target = lm("t5", num_layers=4, num_decoder_layers=3)
    paths = [site.path for site in sites_of(target, (-3, -2, -1), ())]
    assert paths == [
        f"{side}.block.{i}.layer.{at}.DenseReluDense.{name}.weight"
        for side, at, blocks in (("encoder", 1, (2, 3)), ("decoder", 2, (1, 2)))
        for i in blocks
        for name in ("wi", "wo")
    ]


# -- the loss ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "opt", "gemma2"])
def test_the_loss_is_what_the_patches_do(family, tmp_path):
    target = lm(family)
    learner = stirred(target, results_dir=str(tmp_path), cedit=0.3, cloc=0.7)
    learner.save(tmp_path)
    before = Snapshot(target.model)
    told, judged = learner.loss(CASES), learner.validate(CASES)
    edits, drifts, hits = [], [], []
    for case in CASES:
        again, near = case.probes
        row = target.text.row(near.prompt, near.answers[0])
        with torch.no_grad(), target.at_rest():
            base = target.target_logits([row]).log_softmax(-1)
            with substituting(target.model, alone(target, learner, case)):
                after = target.target_logits([row]).log_softmax(-1)
                score = target.score([(again.prompt, case.edit.target)])[0]
        edits.append(-score.mean_logprob)
        hits.append(score.accuracy)
        drifts.append(float((base.exp() * (base - after)).sum(-1).mean()))
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    assert float(told["edit_nll"]) == pytest.approx(mean(edits), rel=1e-3)
    assert float(told["loc_kl"]) == pytest.approx(mean(drifts), rel=1e-2, abs=1e-5)
    wanted = 0.3 * mean(edits) + 0.7 * mean(drifts)
    assert float(told["loss"].detach()) == pytest.approx(wanted, rel=1e-3)
    assert judged["edit_loss"] == pytest.approx(wanted, rel=1e-3)
    assert judged["rephrase"] == pytest.approx(mean(hits))
    assert mean(drifts) > 1e-4
    assert before.differences(target.model) == []


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_the_edit_is_learnt_on_the_rephrase_or_if_asked_on_the_prompt(family):
    target = shared_lm(family)
    other = [
        Case(
            c.id,
            c.edit,
            (Probe("We went home. " + c.edit.prompt, (c.edit.target,), "rephrase"), c.probes[1]),
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


@pytest.mark.parametrize("family", tiny.CAUSAL)
def test_the_trunk_gives_the_plain_logits_and_the_same_bits_in_any_company(family):
    target = lm(family)
    before, rows = Snapshot(target.model), rows_of(target)
    with target.at_rest(), torch.no_grad():
        trunk = Trunk(target, 2)
        fast, plain = trunk.target_logits(rows), target.target_logits(rows)
        assert torch.allclose(fast.log_softmax(-1), plain.log_softmax(-1), atol=1e-4)
        assert trunk.agrees(rows)
        first = trunk.target_logits(rows[:1])
        assert same_bits(Trunk(target, 2).target_logits(rows[:1]), first)
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
    monkeypatch.setattr(Trunk, "agrees", lambda *_: False)
    learner = stirred(target)
    learner.prepare(CASES)
    assert learner._logits == target.target_logits


# -- editing ----------------------------------------------------------------------------------


@every
def test_an_edit_makes_its_target_likelier(family, dtype, tmp_path):
    target = lm(family, dtype)
    learner = MENDLearner(target, MENDTrainingHparams(edit_lr=2e-3))
    learner.network.train()
    learner.loss(CASES)  # only statistics are learnt: a normalised gradient step
    unsettle(target.model)
    before = Snapshot(target.model)
    method = MEND(MENDHyperParams(archive=str(learner.save(tmp_path))))
    for edit in EDITS:
        patch = method.edit(target, [edit])
        assert before.differences(target.model) == []
        first = target.score([(edit.prompt, edit.target)])[0].mean_logprob
        patch.apply(target.model)
        assert target.score([(edit.prompt, edit.target)])[0].mean_logprob > first + 0.03
        patch.revert(target.model)
        assert before.differences(target.model) == []


def test_a_batch_is_the_sum_of_its_edits_from_one_backward_pass(archive, monkeypatch):
    target = lm("gpt2")
    method = MEND(MENDHyperParams(archive=str(archive)))
    calls = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: (calls.append(1), grad(*a, **k))[1])
    whole = method.edit(target, EDITS)
    assert len(calls) == 1
    singles = [method.edit(target, [edit]) for edit in EDITS]
    assert whole.about.edits == EDITS
    for path in whole.entries:
        total = sum(patch.dense(path) for patch in singles)
        assert (whole.dense(path) - total).norm() < 1e-4 * total.norm()
    assert method.max_batch is None


def test_lr_scale_scales_the_patch(archive):
    target = lm("gpt2")
    one, two = (
        MEND(MENDHyperParams(archive=str(archive), lr_scale=scale)).edit(target, EDITS)
        for scale in (1.0, 2.0)
    )
    for path in one.entries:
        assert torch.allclose(2 * one.dense(path), two.dense(path), rtol=1e-5)


def test_the_patch_says_what_made_it_and_survives_its_file(archive, tmp_path):
    target = lm("gpt2")
    patch = MEND(MENDHyperParams(archive=str(archive))).edit(target, EDITS[:1])
    loaded = load_patch(save_patch(patch, tmp_path / "p.safetensors"))
    assert loaded.about == patch.about
    assert list(loaded.about.hyperparams["layers"]) == [0, 1, 2]
    assert set(loaded.about.hyperparams["inner_params"]) == set(patch.entries)
    assert all(torch.equal(loaded.dense(path), patch.dense(path)) for path in patch.entries)


def test_an_archive_is_found_by_its_folder_and_read_again_after_reset(archive, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    shutil.copy(archive, folder / NAME)
    method = MEND(MENDHyperParams(archive=str(folder)))
    first = method.edit(lm("gpt2"), EDITS)
    (folder / NAME).unlink()
    second = method.edit(lm("gpt2"), EDITS)
    assert all(torch.equal(first.dense(path), second.dense(path)) for path in first.entries)
    method.reset()
    with pytest.raises(ArchiveError, match="no archive"):
        method.edit(lm("gpt2"), EDITS)


def test_the_editor_edits_and_undoes(archive):
    target = lm("gpt2")
    before = Snapshot(target.model)
    editor = BaseEditor.from_pretrained(
        target.model, target.tokenizer, MENDHyperParams(archive=str(archive), batch_size=3)
    )
    said = {"prompts": [e.prompt for e in EDITS], "target_new": [e.target for e in EDITS]}
    for edit in (editor.edit, editor.batch_edit):
        metrics, _, patch = edit(**said, verbose=False)
        assert len(metrics) == len(EDITS)
        editor.undo(patch)
        assert before.differences(target.model) == []


# -- archives that are refused ----------------------------------------------------------------


def test_without_an_archive_it_says_how_to_train_one():
    target = lm("gpt2")
    before = Snapshot(target.model)
    method = MEND(MENDHyperParams())
    with pytest.raises(HyperParamsError, match="easyedit train --method mend"):
        method.edit(target, EDITS)
    with pytest.raises(HyperParamsError, match="easyedit train --method mend"):
        method.prepare(target)
    assert before.differences(target.model) == []


def test_a_preset_whose_archive_is_not_there_says_so_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArchiveError, match=r"results/MEND/gpt2-xl.*easyedit train --method mend"):
        MEND(MENDHyperParams.preset("gpt2-xl")).edit(lm("gpt2"), EDITS)


def spoilt(archive: Path, folder: Path, how: str) -> Path:
    """A bad archive."""
    file = folder / NAME
    tensors, header = load_file(archive), {}
    with torch.no_grad():
        if how == "truncated":
            file.write_bytes(archive.read_bytes()[:-1000])
        elif how == "not safetensors":
            file.write_bytes(b"PK\x03\x04" + b"x" * 500)
        elif how == "no header":
            save_file(tensors, file)
        elif how == "a patch":
            patch = MEND(MENDHyperParams(archive=str(archive))).edit(lm("gpt2"), EDITS)
            save_patch(patch, file)
        elif how == "empty folder":
            return folder
        else:
            with safe_open(archive, framework="pt") as opened:
                header = json.loads(opened.metadata()[KEY])
            header, tensors = SPOILS[how](header, tensors)
            text = header if isinstance(header, str) else json.dumps(header)
            save_file(tensors, file, metadata={KEY: text})
    return file


def _drop(header, tensors):
    return header, {name: t for name, t in tensors.items() if name != "rates"}


def _reshape(header, tensors):
    return header, {**tensors, "rates": tensors["rates"][:-1].clone()}


def _nan(header, tensors):
    return header, {**tensors, "rates": tensors["rates"] * float("nan")}


SPOILS = {
    "no json": lambda h, t: ("{", t),
    "a list": lambda h, t: ([1], t),
    "another format": lambda h, t: ({**h, "format": 99}, t),
    "another method": lambda h, t: ({**h, "method": "ROME"}, t),
    "hyperparams missing": lambda h, t: ({k: v for k, v in h.items() if k != "hyperparams"}, t),
    "unknown hyperparams": lambda h, t: ({**h, "hyperparams": {"alg_name": "MEND", "x": 1}}, t),
    "another rank": lambda h, t: ({**h, "hyperparams": {**h["hyperparams"], "rank": 2}}, t),
    "other weights": lambda h, t: (
        {**h, "model": {**h["model"], "samples": [s + 1 for s in h["model"]["samples"]]}},
        t,
    ),
    "a tensor missing": _drop,
    "a tensor of another shape": _reshape,
    "numbers that are none": _nan,
}
WHY = {
    "truncated": "cannot be read",
    "not safetensors": "cannot be read",
    "no header": "not an EasyEdit archive",
    "a patch": "not an EasyEdit archive",
    "empty folder": "no archive",
    "another method": "trained for ROME",
    "other weights": "does not belong to this model",
    "unknown hyperparams": "cannot be used",
    "numbers that are none": "not finite",
}


@pytest.mark.parametrize(
    "how", ["truncated", "not safetensors", "no header", "a patch", "empty folder", *SPOILS]
)
def test_a_bad_archive_is_refused_and_the_model_unharmed(archive, tmp_path, how):
    target = lm("gpt2")
    unsettle(target.model)
    before = Snapshot(target.model)
    bad = spoilt(archive, tmp_path, how)
    with pytest.raises(ArchiveError, match=WHY.get(how, "archive")) as error:
        MEND(MENDHyperParams(archive=str(bad))).edit(target, EDITS)
    assert str(tmp_path) in str(error.value)
    assert before.differences(target.model) == []


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_an_archive_of_another_model_is_refused(archive, family):
    target = lm(family)
    before = Snapshot(target.model)
    with pytest.raises(ArchiveError, match="does not belong to this model"):
        MEND(MENDHyperParams(archive=str(archive))).edit(target, EDITS)
    assert before.differences(target.model) == []


def test_an_archive_of_the_same_class_with_other_weights_is_refused(archive):
    with pytest.raises(ArchiveError, match="sampled weights differ"):
        MEND(MENDHyperParams(archive=str(archive))).edit(lm("gpt2", seed=7), EDITS)


def test_an_archive_works_in_another_precision_and_on_a_patched_model(archive):
    assert MEND(MENDHyperParams(archive=str(archive))).edit(lm("gpt2", torch.bfloat16), EDITS)
    target = lm("gpt2")
    method = MEND(MENDHyperParams(archive=str(archive)))
    method.edit(target, EDITS[:1]).apply(target.model)
    assert method.edit(target, EDITS[1:])


def test_saving_keeps_what_is_there_when_it_fails(tmp_path, monkeypatch):
    learner = stirred(lm("gpt2"))
    file = learner.save(tmp_path)
    before = file.read_bytes()

    def fail(*_args, **_more):
        raise Interrupt

    monkeypatch.setattr("easyeditor.patches.headed.save_file", fail)
    with pytest.raises(Interrupt):
        learner.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [NAME]
    assert file.read_bytes() == before


def test_an_archive_holds_no_place(tmp_path):
    learner = stirred(lm("gpt2"), results_dir=str(tmp_path / "secret"), device="cpu")
    learner.save(tmp_path)
    assert not {"results_dir", "device"} & set(read_archive(tmp_path, "MEND").hyperparams)


# -- which weights ----------------------------------------------------------------------------

DOWN = "transformer.h.2.mlp.c_proj.weight"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("transformer.h.2.mlp.c_prj.weight", f"Did you mean '{DOWN}'"),
        ("transformer.h.9.mlp.c_proj.weight", "is no parameter"),
        ("transformer.h.2.mlp.c_proj.bias", "not the weight of a Conv1D"),
        ("transformer.h.2.ln_1.weight", "not the weight of a Conv1D"),
        ("transformer.wte.weight", "not the weight of a Conv1D"),
    ],
)
def test_names_that_do_not_fit_are_all_listed(name, why):
    with pytest.raises(HyperParamsError) as error:
        MENDLearner(lm("gpt2"), MENDTrainingHparams(inner_params=[DOWN, name, "nonsense"]))
    assert why in str(error.value)
    assert "'nonsense' is no parameter" in str(error.value)


def test_the_output_embedding_is_left_alone():
    with pytest.raises(HyperParamsError, match="output embedding"):
        MENDLearner(lm("llama"), MENDTrainingHparams(inner_params=["lm_head.weight"]))


def test_named_weights_are_edited_and_no_others(tmp_path):
    target = lm("gpt2")
    learner = stirred(target, inner_params=[DOWN])
    file = learner.save(tmp_path)
    patch = MEND(MENDHyperParams(archive=str(file), inner_params=[DOWN])).edit(target, EDITS)
    assert set(patch.entries) == {DOWN}
    for other in ({"inner_params": [DOWN.replace("2", "1")]}, {"layers": [0]}):
        with pytest.raises(HyperParamsError, match="was trained to edit"):
            MEND(MENDHyperParams(archive=str(file), **other)).edit(target, EDITS)


def test_layers_outside_the_model():
    with pytest.raises(HyperParamsError, match="3 layers"):
        MENDLearner(lm("gpt2"), MENDTrainingHparams(layers=[5]))
    assert len(MENDLearner(lm("gpt2", n_layer=1), MENDTrainingHparams()).sites) == 2


# -- classic files ----------------------------------------------------------------------------

CLASSIC = """
alg_name: "MEND"
model_name: "./hugging_cache/gpt2-xl"
device: 0
model_parallel: false
fp16: false
archive: {archive}
model_class: GPT2LMHeadModel
tokenizer_class: GPT2Tokenizer
tokenizer_name: gpt2-xl
inner_params:
- transformer.h.1.mlp.c_proj.weight
- transformer.h.1.mlp.c_fc.weight
lr: 1e-6
edit_lr: 1e-4
lr_lr: 1e-4
lr_scale: 1.0
seed: 42
cedit: 0.1
cloc: 1.0
cbase: 1.0
dropout: 0.0
train_base: false
no_grad_layers: null
one_sided: false
n_hidden: 1
hidden_dim: null
init: id
norm: true
combine: true
x_only: false
delta_only: false
act: relu
rank: 1920
mlp_class: IDMLP
shared: true
batch_size: 1
model_save_pt: 5000
silent: false
max_iters: 100000
log_interval: 500
eval_log_interval: 1000
final_eval: true
val_interval: 5000
early_stop_patience: 30000
early_stop_key: "loss/total_edit_val"
eval_only: false
half: false
debug: false
save: false
verbose: true
val_batch_size: 5
accumulate_bs: 10
val_steps: 500
opt: Adam
grad_clip: 100.0
results_dir: ./results
"""


@pytest.mark.parametrize("kind", [MENDHyperParams, MENDTrainingHparams])
@pytest.mark.parametrize("suffix", ["", ".yaml"])
def test_a_complete_classic_file_loads(kind, suffix, tmp_path, caplog):
    body = CLASSIC.format(
        archive="./results/models/MEND/gpt2-xl" if kind.model_fields.get("archive") else "null"
    )
    (tmp_path / "gpt2-xl.yaml").write_text(body)
    with caplog.at_level(logging.INFO, "easyeditor"):
        found = kind.from_hparams(str(tmp_path / "gpt2-xl") + suffix)
    values = yaml.safe_load(body)
    left = values.keys() - kind.model_fields.keys() - FAMILY_KEYS
    assert left == kind.ignored & values.keys()
    for name in kind.model_fields.keys() & values.keys() - {"inner_params"}:
        now = found.model_dump(mode="json")[name]
        assert now == (float(values[name]) if isinstance(now, float) else values[name]), name
    assert found.inner_params == tuple(values["inner_params"])
    (line,) = [r.getMessage() for r in caplog.records if "no longer used" in r.getMessage()]
    assert all(name in line for name in left)


@pytest.mark.parametrize("kind", [MENDHyperParams, MENDTrainingHparams])
def test_presets_for_all_known_models(kind):
    assert set(kind.presets) == {
        *("gpt2-xl", "gpt-j-6B", "gpt-neo-2.7B", "llama-7b", "llama-2-7b", "t5-3b"),
        "smollm2-135m",
    }


def test_the_large_presets_are_the_published_settings():
    found = MENDTrainingHparams.preset("gpt2-xl")
    assert (found.lr, found.lr_lr, found.edit_lr, found.rank) == (1e-6, 1e-4, 1e-4, 1920)
    assert (found.batch_size, found.accumulate_bs, found.grad_clip) == (1, 10, 100.0)
    assert (found.cedit, found.cloc, found.edit_loss_on) == (0.1, 1.0, "rephrase")


def test_an_unknown_field_has_a_neighbour():
    with pytest.raises(HyperParamsError, match="Did you mean 'archive'"):
        MENDHyperParams(archve="x")
    with pytest.raises(HyperParamsError, match="Did you mean 'edit_lr'"):
        MENDTrainingHparams(edit_lrr=1)


def test_the_edit_checks_its_request(archive):
    method = MEND(MENDHyperParams(archive=str(archive)))
    with pytest.raises(ContradictingEditsError):
        method.edit(lm("gpt2"), [EDITS[0], Edit(EDITS[0].prompt, "Danish")])


@pytest.mark.parametrize("place", ["head", "block"])
def test_an_edit_that_fails_in_any_pass_changes_nothing(archive, place):
    def attempt(call):
        target = lm("gpt2")
        method = MEND(MENDHyperParams(archive=str(archive)))
        method.prepare(target)
        unsettle(target.model)
        passes = failing_at(target.head if place == "head" else target.blocks[1], call)
        before, state = Snapshot(target.model), torch.get_rng_state()
        if call:
            with pytest.raises(Interrupt):
                method.edit(target, EDITS)
        else:
            method.edit(target, EDITS)
        assert before.differences(target.model) == []
        assert torch.equal(torch.get_rng_state(), state)
        return passes()

    total = attempt(0)
    assert total == 1  # one forward pass for all edits
    attempt(1)


# -- on a model that knows something ----------------------------------------------------------


def test_the_scores_of_a_training_are_those_of_the_patches_it_leads_to(tmp_path):
    target = zoo.load("llama")
    before = Snapshot(target.model)
    settings = MENDTrainingHparams(
        model_name="zoo-llama",
        results_dir=str(tmp_path),
        lr=3e-4,
        lr_lr=3e-4,
        edit_lr=5e-4,
        rank=32,
        cedit=5.0,
        batch_size=16,
        max_iters=10,
        val_interval=10,
        lr_schedule="cosine",
    )
    held_out = zoo.world.cases("eval")[:20]
    trained = EditTrainer(settings, zoo.world.cases("train"), held_out, lm=target).run()
    method = MEND(MENDHyperParams(archive=str(trained.path)))
    told = {"rewrite": [], "rephrase": [], "locality": []}
    for case in held_out:  # by the patches themselves, each alone
        again = next(p for p in case.probes if p.group == "rephrase")
        near = next(p for p in case.probes if p.group == "locality")
        asked = [(case.edit.prompt, case.edit.target), (again.prompt, case.edit.target)]
        asked.append((near.prompt, near.answers[0]))
        unedited = target.score(asked[2:])[0].argmax
        with carrying(target.model, method.edit(target, [case.edit])):
            scores = target.score(asked)
        told["rewrite"].append(scores[0].accuracy)
        told["rephrase"].append(scores[1].accuracy)
        kept = [a == b for a, b in zip(scores[2].argmax, unedited, strict=True)]
        told["locality"].append(sum(kept) / len(kept))
    mean = {name: sum(values) / len(values) for name, values in told.items()}
    assert mean == pytest.approx({name: trained.metrics[name] for name in mean}, abs=0.02)
    assert before.differences(target.model) == []
