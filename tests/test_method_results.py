"""What ROME, MEMIT and FT write is what their mathematics says, on every structural class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from easyeditor import LM, Edit
from easyeditor.associative.contexts import context_prefixes
from easyeditor.associative.keys import keys_at, subject_rows, values_at
from easyeditor.associative.value_optimization import OptimizedValues, optimize_values
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.inference import score
from easyeditor.methods.base import Method
from easyeditor.patches.weight import WeightPatch
from quick import Maker, batch_of, edit_with
from support import EDITS, lm, projected, same_bits
from test_method_contract import SETTINGS, Setting, in_tiers
from tiers import STRUCTURAL

LOOSE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Edited:
    """A model, a method and the patch of its edit, not applied."""

    setting: Setting
    lm: LM
    method: Method
    patch: WeightPatch

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of every weight."""
        return {name: p.detach().clone() for name, p in self.lm.model.named_parameters()}


@pytest.fixture
def edited(request: pytest.FixtureRequest, make_method: Maker) -> Edited:
    setting: Setting = request.param
    target = lm(setting.family, setting.dtype)
    method = setting.method_for(target, make_method)
    patch = edit_with(method, target, batch_of(setting.method))
    return Edited(setting, target, method, patch)


def of(method: str) -> pytest.MarkDecorator:
    settings = in_tiers(setting for setting in SETTINGS if setting.method == method)
    return pytest.mark.parametrize("edited", settings, ids=str, indirect=True)


def optimized(edited: Edited, site: Site, edits: Sequence[Edit]) -> torch.Tensor:
    """The vectors δ of the value search with these settings."""
    settings = edited.method.hyperparams
    target = edited.lm.encoder_side()
    contexts = context_prefixes(target, settings.context_template_length_params)
    return optimize_values(target, site, edits, contexts, settings.search()).delta


@of("ROME")
def test_rome_stores_v_star_under_k_star(edited: Edited) -> None:
    edit, patch = EDITS[0], edited.patch
    delta = optimized(edited, Site(1, "down"), [edit])[0]
    target = edited.lm.encoder_side()
    key, value = projected(target, 1, edit)
    (path,) = patch.entries
    if edited.method.hyperparams.key == "averaged":  # exact for the averaged key instead
        contexts = context_prefixes(target, ((2, 2),))
        mean = keys_at(target, [1], subject_rows(target, edit, contexts))[1].mean(0)
        result = mean @ (target.projection(1).weight.float() + patch.dense(path))
        expected = key @ target.projection(1).weight.float() + delta
        assert (mean - key).norm() > 1e-2 * key.norm()
        assert (result - expected).norm() < 1e-3 * delta.norm()
        return
    patch.apply(edited.lm.model)
    key_after, result = projected(target, 1, edit)
    patch.revert(edited.lm.model)
    assert delta.norm() > 1e-2 * value.norm()
    assert same_bits(key_after, key)
    assert (result - (value + delta)).norm() < LOOSE[edited.setting.dtype] * delta.norm()


@pytest.mark.parametrize("layers", [[1], [0, 1]], ids=str)
@pytest.mark.parametrize("family", [name for name in STRUCTURAL if name != "t5"])
def test_memit_reaches_z_as_lambda_vanishes(
    family: str, layers: list[int], make_method: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches = []

    def recorded(target: LM, site: Site, *args: object, **more: object) -> OptimizedValues:
        values = optimize_values(target, site, *args, **more)
        searches.append((site, values))
        return values

    monkeypatch.setattr("easyeditor.methods.value_search.optimize_values", recorded)
    target = lm(family)
    rows = [subject_rows(target, edit, [""])[0] for edit in EDITS]
    errors = []
    for strength in (1e7, 1e3, 1e-6):
        changes = {"context_template_length_params": (), "mom2_update_weight": strength}
        method = make_method("MEMIT", target, family, layers=layers, **changes)
        patch = edit_with(method, target, EDITS)
        site, values = searches[-1]
        assert torch.equal(values.origin, values_at(target, site, rows))
        patch.apply(target.model)
        missed = values_at(target, site, rows) - (values.origin + values.delta)
        patch.revert(target.model)
        errors.append(float(missed.norm() / values.delta.norm()))
    assert errors[-1] < 1e-2
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1


def loss(target: LM, edits: Sequence[Edit], objective: str) -> float:
    """FT's objective, from whole forward passes without padding."""
    losses = []
    for edit in edits:
        prompt = str(edit.prompt)
        if objective == "target_new" or target.encoder_decoder:
            losses.append(-score(target, [(prompt, edit.target)])[0].mean_logprob)
            continue
        ids = target.tokenizer(prompt)["input_ids"]
        labels = target.tokenizer(" " + edit.target)["input_ids"]
        with torch.no_grad():
            scores = target.model(input_ids=torch.tensor([ids])).logits[0, -1].float()
        losses.append(float(-scores.log_softmax(-1)[labels].mean()))
    return sum(losses) / len(losses)


@of("FT")
def test_ft_lowers_its_loss_and_stays_in_its_box(edited: Edited) -> None:
    model, patch = edited.lm.model, edited.patch
    objective, box = edited.method.hyperparams.objective_optimization, 1e-2
    before, first = edited.weights(), loss(edited.lm, EDITS, objective)
    patch.apply(model)
    after, last = edited.weights(), loss(edited.lm, EDITS, objective)
    patch.revert(model)
    assert last < first
    for path in patch.entries:
        low, high = before[path].float() - box, before[path].float() + box
        change = patch.dense(path) if edited.lm.family.conv1d else patch.dense(path).T
        learnt = before[path].float() + change
        assert (learnt >= low).all()
        assert (learnt <= high).all()
        assert ((learnt == low) | (learnt == high)).any()  # the box was needed
        if edited.setting.dtype == torch.float32:
            assert same_bits(after[path], learnt)


def test_ft_without_a_box_goes_further(make_method: Maker) -> None:
    target = lm("llama")
    patches = [
        edit_with(make_method("FT", target, "llama", **changes), target, EDITS)
        for changes in ({}, {"norm_constraint": None})
    ]
    (inside,), (outside,) = (patch.entries.values() for patch in patches)
    assert outside[0].delta.abs().max() > 1.1e-2 > inside[0].delta.abs().max()
