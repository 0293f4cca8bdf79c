"""MEND: its edits, alone and in a batch, and on a model that knows something."""

from __future__ import annotations

import shutil

import pytest
import torch

import mending
import zoo
import zoo.world
from easyeditor import (
    BaseEditor,
    Edit,
    EditTrainer,
    MENDHyperParams,
    MENDTrainingHparams,
    load_patch,
    save_patch,
)
from easyeditor.errors import ArchiveError, ContradictingEditsError
from easyeditor.lm.inference import score
from easyeditor.methods.archive import NAME
from easyeditor.methods.mend.learner import MENDLearner
from easyeditor.methods.mend.mend import MEND
from easyeditor.patches.stack import applied
from learning_cases import CASES
from mending import every
from support import EDITS, Interrupt, Snapshot, failing_at, lm, unsettle

archive = mending.archive


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
        patch = method.edit(target, [edit]).patch
        assert before.differences(target.model) == []
        first = score(target, [(edit.prompt, edit.target)])[0].mean_logprob
        patch.apply(target.model)
        assert score(target, [(edit.prompt, edit.target)])[0].mean_logprob > first + 0.03
        patch.revert(target.model)
        assert before.differences(target.model) == []


def test_a_batch_is_the_sum_of_its_edits_from_one_backward_pass(archive, monkeypatch):
    target = lm("gpt2")
    method = MEND(MENDHyperParams(archive=str(archive)))
    calls = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: (calls.append(1), grad(*a, **k))[1])
    whole = method.edit(target, EDITS).patch
    assert len(calls) == 1
    singles = [method.edit(target, [edit]).patch for edit in EDITS]
    assert whole.info.edits == EDITS
    for path in whole.entries:
        total = sum(patch.dense(path) for patch in singles)
        assert (whole.dense(path) - total).norm() < 1e-4 * total.norm()
    assert method.max_batch is None


def test_lr_scale_scales_the_patch(archive):
    target = lm("gpt2")
    one, two = (
        MEND(MENDHyperParams(archive=str(archive), lr_scale=scale)).edit(target, EDITS).patch
        for scale in (1.0, 2.0)
    )
    for path in one.entries:
        assert torch.allclose(2 * one.dense(path), two.dense(path), rtol=1e-5)


def test_the_patch_says_what_made_it_and_survives_its_file(archive, tmp_path):
    target = lm("gpt2")
    patch = MEND(MENDHyperParams(archive=str(archive))).edit(target, EDITS[:1]).patch
    loaded = load_patch(save_patch(patch, tmp_path / "p.safetensors"))
    assert loaded.info == patch.info
    assert list(loaded.info.hyperparams["layers"]) == [0, 1, 2]
    assert set(loaded.info.hyperparams["inner_params"]) == set(patch.entries)
    assert all(torch.equal(loaded.dense(path), patch.dense(path)) for path in patch.entries)


def test_an_archive_is_found_by_its_folder_and_read_again_after_reset(archive, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    shutil.copy(archive, folder / NAME)
    method = MEND(MENDHyperParams(archive=str(folder)))
    target = lm("gpt2")
    first = method.edit(target, EDITS).patch
    (folder / NAME).unlink()
    second = method.edit(target, EDITS).patch
    assert all(torch.equal(first.dense(path), second.dense(path)) for path in first.entries)
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


def test_the_edit_checks_its_request(archive):
    method = MEND(MENDHyperParams(archive=str(archive)))
    with pytest.raises(ContradictingEditsError):
        method.edit(lm("gpt2"), [EDITS[0], Edit(EDITS[0].prompt, "Danish")])


@pytest.mark.parametrize("place", ["head", "block"])
def test_an_edit_that_fails_in_any_pass_changes_nothing(archive, place):
    def attempt(call):
        target = lm("gpt2")
        method = MEND(MENDHyperParams(archive=str(archive)))
        method.initial_state(target)
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
        unedited = score(target, asked[2:])[0].argmax
        with applied(target.model, method.edit(target, [case.edit]).patch):
            scores = score(target, asked)
        told["rewrite"].append(scores[0].accuracy)
        told["rephrase"].append(scores[1].accuracy)
        kept = [a == b for a, b in zip(scores[2].argmax, unedited, strict=True)]
        told["locality"].append(sum(kept) / len(kept))
    mean = {name: sum(values) / len(values) for name, values in told.items()}
    assert mean == pytest.approx({name: trained.metrics[name] for name in mean}, abs=0.02)
    assert before.differences(target.model) == []
