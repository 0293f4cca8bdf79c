"""Every method keeps its contract on every structural class of model.

A patch is found without a change to the model, the same one each time, on a model that carries
patches, too; it changes the weights it declares and no other. What a patch is good for once it is
found is the algebra of patches (``test_patch_algebra.py``).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cases import BY_NAME, CASES
from easyeditor import LM, load_patch, save_patch
from easyeditor.methods import METHODS
from easyeditor.methods.base import Method
from easyeditor.patches.patch import Patch
from quick import Maker, batch_of, edit_with
from support import EDITS, Interrupt, Snapshot, bits, failing_at, lm, same_bits, unsettle
from tiers import STRUCTURAL, by_turn, slow


@dataclass(frozen=True)
class Setting:
    """One method on one family in one precision."""

    method: str
    family: str
    dtype: torch.dtype = torch.float32
    variant: int | None = None

    def __str__(self) -> str:
        changes = {} if self.variant is None else BY_NAME[self.method].variants[self.variant]
        words = [self.method, self.family, str(self.dtype).removeprefix("torch.")]
        return "-".join(words + [f"{key}={value}" for key, value in changes.items()])

    def method_for(self, target: LM, make_method: Maker) -> Method:
        """The method with these settings."""
        changes = {} if self.variant is None else BY_NAME[self.method].variants[self.variant]
        return make_method(self.method, target, self.family, **changes)


NUMBER = {name: number for number, name in enumerate(BY_NAME)}

PLAIN = [
    Setting(case.name, family)
    for case in CASES
    for family in STRUCTURAL
    if not (case.causal and family == "t5")
]
SETTINGS = [
    *PLAIN,
    *(Setting(case.name, "gpt2", torch.bfloat16) for case in CASES),
    *(Setting(case.name, "llama", variant=i) for case in CASES for i in range(len(case.variants))),
]


@dataclass(frozen=True)
class Edited:
    """A model and the patch of one edit of it, not applied."""

    setting: Setting
    lm: LM
    patch: Patch

    def changed(self, *patches: Patch) -> dict[str, torch.Tensor]:
        """The weights that are others once these patches are applied, with their bits."""
        before = {name: bits(p) for name, p in self.lm.model.named_parameters()}
        for patch in patches:
            patch.apply(self.lm.model)
        after = {name: bits(p) for name, p in self.lm.model.named_parameters()}
        for patch in reversed(patches):
            patch.revert(self.lm.model)
        return {name: after[name] for name in before if not torch.equal(before[name], after[name])}


def in_tiers(settings: Iterable[Setting]) -> list[Any]:
    """Settings for ``parametrize``: of the plain ones half are of the slow tier."""
    return [
        setting
        if setting.variant is not None
        or setting.dtype != torch.float32
        or by_turn(NUMBER[setting.method], setting.family)
        else slow(setting)
        for setting in settings
    ]


@pytest.fixture(scope="module", params=in_tiers(SETTINGS), ids=str)
def edited(request: pytest.FixtureRequest, make_method: Maker) -> Edited:
    setting: Setting = request.param
    target = lm(setting.family, setting.dtype)
    method = setting.method_for(target, make_method)
    return Edited(setting, target, edit_with(method, target, batch_of(setting.method)))


def tensors(patch: Patch, folder: Path) -> dict[str, torch.Tensor]:
    """Everything a patch holds."""
    return load_file(save_patch(patch, folder / "patch.safetensors"))


def declared(edited: Edited) -> set[str]:
    """The weights that the row of the method says an edit changes."""
    case, target = BY_NAME[edited.setting.method], edited.lm
    layers = case.layers
    if case.after_norm is not None and edited.setting.family == "gemma2":
        layers = case.after_norm
    if edited.setting.variant is not None:
        layers = case.variants[edited.setting.variant].get("layers", layers)
    paths = {p.path for layer in layers for p in target.projections(layer)}
    if case.whole_blocks:
        blocks = target.encoder_side().blocks
        names = {id(p): path for path, p in target.model.named_parameters()}
        paths = {names[id(p)] for layer in layers for p in blocks[layer].parameters()}
    other = {"encoder": "decoder.", "decoder": "encoder.", "both": "-"}[case.side]
    return {path for path in paths if not path.startswith(other)}


def test_an_edit_changes_nothing_and_is_found_again_in_any_mode(
    edited: Edited,
    make_method: Maker,
    tmp_path: Path,
) -> None:
    setting = edited.setting
    target = lm(setting.family, setting.dtype)
    method = setting.method_for(target, make_method)
    unsettle(target.model)
    before = Snapshot(target.model)
    generators = torch.get_rng_state(), random.getstate()
    patch = edit_with(method, target, batch_of(setting.method))
    assert before.differences(target.model) == []
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    first, second = tensors(edited.patch, tmp_path), tensors(patch, tmp_path)
    assert first.keys() == second.keys()
    assert all(same_bits(first[name], second[name]) for name in first)


def test_a_patch_changes_the_declared_weights_and_comes_off(edited: Edited) -> None:
    before = Snapshot(edited.lm.model)
    changed = edited.changed(edited.patch)
    assert before.differences(edited.lm.model) == []
    if BY_NAME[edited.setting.method].layers:
        assert set(changed) == declared(edited)
    assert set(changed) == set(getattr(edited.patch, "entries", ()))


def test_a_patched_model_is_edited_as_it_is(edited: Edited, make_method: Maker) -> None:
    setting, first = edited.setting, edited.patch
    method = setting.method_for(edited.lm, make_method)
    first.apply(edited.lm.model)
    before = Snapshot(edited.lm.model)
    second = edit_with(method, edited.lm, EDITS[2:])
    assert before.differences(edited.lm.model) == []
    first.revert(edited.lm.model)
    assert second.info.model == first.info.model
    if BY_NAME[setting.method].layers:  # it saw the first edit
        alone = edit_with(setting.method_for(edited.lm, make_method), edited.lm, EDITS[2:])
        after_first, after_none = edited.changed(second), edited.changed(alone)
        # One that retrains what the model carries may find that nothing is left to change.
        assert any(
            name not in after_first or not torch.equal(after_first[name], after_none[name])
            for name in after_none
        )


def test_a_saved_patch_is_the_patch(edited: Edited, tmp_path: Path) -> None:
    loaded = load_patch(save_patch(edited.patch, tmp_path / "some" / "edit.safetensors"))
    assert type(loaded) is type(edited.patch)
    assert loaded.info == edited.patch.info
    first, second = edited.changed(edited.patch), edited.changed(loaded)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_state_goes_on_from_its_file_and_is_of_the_unedited_model(
    edited: Edited, make_method: Maker, tmp_path: Path
) -> None:
    setting, target = edited.setting, edited.lm
    method = setting.method_for(target, make_method)
    state = method.initial_state(target)
    assert (state is None) == (method.state_class is None)
    if state is None:
        return
    edited.patch.apply(target.model)
    values, data = setting.method_for(target, make_method).initial_state(target).dump()
    edited.patch.revert(target.model)
    expected = state.dump()
    assert json.dumps(data) == json.dumps(expected[1])
    assert values.keys() == expected[0].keys()
    assert all(same_bits(values[name], expected[0][name]) for name in values)
    restored = method.state_class.load(values, json.loads(json.dumps(data)))
    patch = method.edit(target, batch_of(setting.method), restored).patch
    first, second = tensors(edited.patch, tmp_path), tensors(patch, tmp_path)
    assert all(same_bits(first[name], second[name]) for name in first)


# -- failures -----------------------------------------------------------------------------------


def passes_until_failure(setting: Setting, place: str, call: int, make_method: Maker) -> int:
    """How often an edit runs a module when it is interrupted at pass ``call`` (0: never)."""
    target = lm(setting.family)
    method = setting.method_for(target, make_method)
    unsettle(target.model)
    passes = failing_at(target.head if place == "head" else target.projection(0).module, call)
    before = Snapshot(target.model)
    if call:
        with pytest.raises(Interrupt):
            edit_with(method, target, batch_of(setting.method))
    else:
        edit_with(method, target, batch_of(setting.method))
    assert before.differences(target.model) == []
    return passes()


@pytest.mark.parametrize("setting", in_tiers(PLAIN), ids=str)
def test_an_edit_that_fails_at_first_or_at_last_changes_nothing(
    setting: Setting, make_method: Maker
) -> None:
    total = passes_until_failure(setting, "head", 0, make_method)
    for call in sorted({1, total} - {0}) if total else ():
        passes_until_failure(setting, "head", call, make_method)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("place", ["head", "projection"])
def test_an_edit_that_fails_in_any_pass_changes_nothing(
    name: str,
    family: str,
    place: str,
    make_method: Maker,
) -> None:
    setting = Setting(name, family)
    passes_until_failure(setting, place, 0, make_method)  # collects what then lies on disk
    for call in range(1, passes_until_failure(setting, place, 0, make_method) + 1):
        passes_until_failure(setting, place, call, make_method)


def modules_of(kind: type[Method], function: str) -> list[ModuleType]:
    """The modules of a method and of the classes it inherits from that have such a function."""
    modules = {name: import_module(name) for name in (base.__module__ for base in kind.__mro__)}
    return [module for module in modules.values() if function in vars(module)]


@pytest.mark.parametrize(
    ("name", "function", "call"), [(case.name, *phase) for case in CASES for phase in case.phases]
)
def test_an_edit_that_fails_in_any_phase_changes_nothing(
    name: str,
    function: str,
    call: int,
    make_method: Maker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = 0

    def interrupted(original: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object, **more: object) -> object:
            nonlocal calls
            calls += 1
            if calls == call:
                raise Interrupt
            return original(*args, **more)

        return counted

    target = lm("gpt2")
    method = make_method(name, target, "gpt2")
    unsettle(target.model)
    before = Snapshot(target.model)
    modules = modules_of(METHODS.get(name), function)
    assert modules
    for module in modules:
        monkeypatch.setattr(module, function, interrupted(vars(module)[function]))
    with pytest.raises(Interrupt):
        edit_with(method, target, batch_of(name))
    assert before.differences(target.model) == []


def test_bits_tells_minus_zero_from_zero() -> None:
    zero = torch.zeros(1)
    assert not torch.equal(bits(zero), bits(-zero))
