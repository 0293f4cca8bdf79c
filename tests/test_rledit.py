"""RLEdit: the loss that looks back over a sequence, running statistics as a state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from easyeditor import RLEditHyperParams, RLEditTrainingHparams
from easyeditor.errors import ArchiveError, HyperParamsError
from easyeditor.gradients.losses import kl_per_token, mean_per_row, target_nll
from easyeditor.lm.inference import score
from easyeditor.methods.rledit import RLEdit, RLEditLearner
from learning_cases import CASES
from support import EDITS, Snapshot, lm, same_bits

SETTINGS = {"layers": [1, 2], "edit_lr": 3e-2, "rank": 8, "n_edits": 1, "batch_size": 3}


def learner(target, **changes) -> RLEditLearner:
    result = RLEditLearner(target, RLEditTrainingHparams(**{**SETTINGS, **changes}))
    result.loss(CASES)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in result.network.named_parameters():
            if name != "rates":
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    result.network.eval()
    return result


def method(file: Path, **changes) -> RLEdit:
    return RLEdit(RLEditHyperParams(archive=str(file), **changes))


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_the_loss_looks_back_over_the_batches_in_the_model(family):
    """By hand: every edit as a patch on top of the others, with the statistics of the training."""
    target = lm(family)
    trained = learner(target, discount=0.5, backtrack=2, cloc=0.6, cedit=1.0)
    before = Snapshot(target.model)
    result = trained.loss(CASES)
    total, patches = 0.0, []
    for t, case in enumerate(CASES):
        recent = CASES[max(0, t - 1) : t + 1][::-1]
        near = [target.text.row(c.probes[1].prompt, c.probes[1].answers[0]) for c in recent]
        again = [target.text.row(c.probes[0].prompt, c.edit.target) for c in recent]
        with torch.no_grad(), target.at_rest():
            base = [target.target_logits([row]).log_softmax(-1) for row in near]
        patch = _without_update(trained, target, case)
        patches.append(patch)
        patch.apply(target.model)
        with torch.no_grad(), target.at_rest():
            losses = [
                target_nll(target.target_logits([a]), [a])[0]
                + 0.6
                * mean_per_row(kl_per_token(b, target.target_logits([n]).log_softmax(-1)), [n])[0]
                for a, b, n in zip(again, base, near, strict=True)
            ]
        weights = [0.5**i for i in range(len(losses))]
        total += sum(w * float(x) for w, x in zip(weights, losses, strict=True)) / sum(weights)
    for patch in patches:
        patch.revert(target.model)
    assert float(result["loss"].detach()) == pytest.approx(total / len(CASES), rel=2e-3)
    assert before.differences(target.model) == []
    result["loss"].backward()
    assert trained.network.slack.grad.abs().sum() > 0


def _without_update(trained: RLEditLearner, target, case):
    """The change of one case on the model as it is, as a patch."""
    from easyeditor.patches.weight import smallest_part, weight_patch

    with torch.no_grad():
        changes = trained._step([case], {})
    parts = {path: [smallest_part(u.T, v)] for path, (u, v) in changes.items()}
    return weight_patch(target, "RLEdit", [case.edit], trained.config, parts, {})


def test_statistics_go_on_from_the_state_and_a_validation_is_such_a_sequence(tmp_path):
    target = lm("llama")
    before = Snapshot(target.model)
    trained = learner(target)
    buffers = Snapshot(trained.network)
    editor = method(trained.save(tmp_path))
    state, patches = editor.initial_state(target), []
    asked = [(case.probes[0].prompt, case.edit.target) for case in CASES]
    for case in CASES:
        outcome = editor.edit(target, [case.edit], state)
        state = outcome.state
        patches.append(outcome.patch)
        outcome.patch.apply(target.model)
    scores = score(target, asked)
    for patch in patches:
        patch.revert(target.model)
    assert before.differences(target.model) == []
    metrics = trained.validate(CASES)
    nll = -sum(s.mean_logprob for s in scores) / len(scores)
    assert metrics["edit_nll"] == pytest.approx(nll, rel=1e-3)
    assert buffers.differences(trained.network) == []  # a validation teaches nothing
    path = trained.network.paths[0]
    assert int(state.count[path]) > int(editor.initial_state(target).count[path])
    first, again = (editor.edit(target, EDITS[:1]).patch for _ in range(2))
    assert same_bits(first.dense(path), again.dense(path))


def test_untrained_networks_keep_the_statistics():
    trained = learner(lm("gpt2"))
    fresh = trained.untrained()
    assert type(fresh) is RLEditLearner
    for path in trained.network.paths:
        assert torch.equal(
            fresh.network.statistics(path).mean, trained.network.statistics(path).mean
        )
    assert not fresh.network.transforms[0].blocks[0].b.any()
    assert fresh.validate(CASES)["edit_nll"] != trained.validate(CASES)["edit_nll"]


def test_archives_that_are_missing_or_of_another_are_refused(tmp_path):
    target = lm("gpt2")
    before = Snapshot(target.model)
    with pytest.raises(HyperParamsError, match="easyedit train --method rledit"):
        RLEdit(RLEditHyperParams()).edit(target, EDITS)
    file = learner(target).save(tmp_path)
    with pytest.raises(ArchiveError, match="does not belong"):
        method(file).edit(lm("llama"), EDITS)
    assert before.differences(target.model) == []


def test_the_number_of_edits_is_a_setting_of_its_own():
    result = RLEditTrainingHparams(n_edits=20, batch_size=8000, meta_lr=1e-5, lr=1e-6)
    assert (result.n_edits, result.batch_size) == (20, 8000)
    assert (result.lr, result.edit_lr) == (1e-5, 1e-6)
    published = RLEditTrainingHparams.preset("llama-3-8b")
    assert (published.backtrack, published.discount, published.cloc) == (10, 0.95, 0.6)
    assert (published.rank, published.max_iters, len(published.inner_params)) == (1024, 1, 18)
