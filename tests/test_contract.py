"""What every method promises on every architecture: nothing changes but what the patch declares."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain, combinations, permutations

import pytest
import torch

import tiny
from easyeditor import LM, Edit, load_patch, save_patch
from easyeditor.associative.contexts import context_prefixes
from easyeditor.associative.keys import keys_at, subject_rows, values_at
from easyeditor.associative.value_optimization import OptimizedValues, optimize_values
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.inference import score
from easyeditor.methods import METHODS
from easyeditor.methods.base import Method
from easyeditor.patches.copies import edited_copy
from easyeditor.patches.weight import WeightPatch, merged
from support import (
    EDITS,
    Interrupt,
    Snapshot,
    bits,
    failing_at,
    lm,
    logits,
    projected,
    same_bits,
    unsettle,
)

Maker = Callable[..., Method]

LOCATE = {"v_num_grad_steps": 3, "context_template_length_params": ((2, 2),), "mom2_n_tokens": 200}
SETTINGS: dict[str, dict[str, object]] = {
    "ROME": {"layers": [1], **LOCATE},
    "MEMIT": {"layers": [0, 1], **LOCATE},
    "FT": {"layers": [1], "num_steps": 3, "lr": 5e-3, "norm_constraint": 1e-2},
    "KN": {"layers": [1], "steps": 3},
}
VARIANTS = {  # of one method, tried on one family
    "ROME": [{"key": key} for key in ("paper", "averaged", "joint")] + [{"mom2_adjustment": False}],
    "MEMIT": [{"layers": [1]}],
    "FT": [{"objective_optimization": "target_new"}, {"layers": [0, 2], "append_eos": True}],
    "KN": [{"refine": True, "n_toks": 2, "n_prompts": 2}],
}
BFLOAT16 = ("llama", "gpt2", "gemma2", "bloom", "opt")


@dataclass(frozen=True)
class Setting:
    """One method on one family in one precision."""

    method: str
    family: str
    dtype: torch.dtype = torch.float32
    variant: int | None = None

    def __str__(self) -> str:
        changes = {} if self.variant is None else VARIANTS[self.method][self.variant]
        named = [f"{key}={value}" for key, value in changes.items()]
        return "-".join([self.method, self.family, str(self.dtype).removeprefix("torch."), *named])


SETTINGS_TRIED = [
    Setting(method, family, dtype)
    for method in SETTINGS
    for dtype, families in ((torch.float32, tuple(tiny.CONFIGS)), (torch.bfloat16, BFLOAT16))
    for family in families
] + [
    Setting(method, "llama", variant=i)
    for method, variants in VARIANTS.items()
    for i in range(len(variants))
]


@pytest.fixture(scope="module")
def make(corpus: str, stats_dir: str) -> Maker:
    """A method with quick settings."""

    def made(name: str, variant: int | None = None, **changes: object) -> Method:
        kind = METHODS.get(name)
        settings = {**SETTINGS[name], **({} if variant is None else VARIANTS[name][variant])}
        if "mom2_n_tokens" in settings:
            settings |= {"mom2_dataset": corpus, "stats_dir": stats_dir}
        return kind(kind.hyperparams_class(**{**settings, **changes}))

    return made


def batches(name: str) -> list[Sequence[Edit]]:
    """Three requests, the first as large as the method takes."""
    if METHODS.get(name).max_batch == 1:
        return [[edit] for edit in EDITS]
    return [EDITS, EDITS[:1], EDITS[1:]]


@dataclass(frozen=True)
class Made:
    """A model, three patches made for it, and the model as it was."""

    setting: Setting
    lm: LM
    method: Method
    patches: list[WeightPatch]
    pristine: torch.nn.Module

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.lm.model.named_parameters()}

    def alone(self, patches: Sequence[WeightPatch]) -> dict[str, torch.Tensor]:
        """The weights of a fresh model to which only these were applied."""
        fresh = copy.deepcopy(self.pristine)
        for patch in patches:
            patch.apply(fresh)
        return {name: p.detach() for name, p in fresh.named_parameters()}


@pytest.fixture(scope="module", params=SETTINGS_TRIED, ids=str)
def made(request: pytest.FixtureRequest, make: Maker) -> Made:
    setting: Setting = request.param
    target = lm(setting.family, setting.dtype)
    pristine = copy.deepcopy(target.model)
    method = make(setting.method, setting.variant)
    patches = [method.edit(target, edits) for edits in batches(setting.method)]
    return Made(setting, target, method, patches, pristine)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(same_bits(a[name], b[name]) for name in a)


# -- editing leaves everything as it was --------------------------------------------------------


def test_edit_changes_nothing_but_finds_the_same_patch_in_any_mode(made: Made, make: Maker) -> None:
    setting = made.setting
    target = lm(setting.family, setting.dtype)
    unsettle(target.model)
    before = Snapshot(target.model)
    generators = torch.get_rng_state(), random.getstate()
    patch = make(setting.method, setting.variant).edit(target, batches(setting.method)[0])
    assert before.differences(target.model) == []
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert equal(
        {path: patch.dense(path) for path in patch.entries},
        {path: made.patches[0].dense(path) for path in made.patches[0].entries},
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("place", ["head", "projection"])
def test_an_edit_that_fails_in_any_pass_changes_nothing(
    name: str, family: str, place: str, make: Maker
) -> None:
    def attempt(call: int) -> int:
        target = lm(family)
        unsettle(target.model)
        module = target.head if place == "head" else target.projection(0).module
        passes = failing_at(module, call)
        before = Snapshot(target.model)
        if call:
            with pytest.raises(Interrupt):
                make(name, layers=[0, 1] if name == "MEMIT" else [1]).edit(target, batches(name)[0])
        else:
            make(name).edit(target, batches(name)[0])
        assert before.differences(target.model) == []
        return passes()

    total = attempt(0)
    assert total > 3
    for call in range(1, total + 1):
        attempt(call)


@pytest.mark.parametrize(
    ("name", "module", "function", "call"),
    [
        ("ROME", "rome", "find_values", 1),
        ("ROME", "rome", "closed_form", 1),
        ("ROME", "rome", "weight_patch", 1),
        ("MEMIT", "memit", "find_values", 1),
        ("MEMIT", "memit", "closed_form", 2),  # the first layer is edited by then
        ("MEMIT", "memit", "weight_patch", 2),
        ("FT", "ft", "_loss", 2),
        ("FT", "ft", "weight_patch", 1),
        ("KN", "kn", "attribute", 1),
        ("KN", "kn", "weight_patch", 1),
    ],
)
def test_an_edit_that_fails_in_any_phase_changes_nothing(
    name: str,
    module: str,
    function: str,
    call: int,
    make: Maker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = f"easyeditor.methods.{module}.{function}"
    original = vars(import_module(f"easyeditor.methods.{module}"))[function]
    calls = 0

    def interrupted(*args: object, **more: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Interrupt
        return original(*args, **more)

    target = lm("gpt2")
    unsettle(target.model)
    before = Snapshot(target.model)
    monkeypatch.setattr(place, interrupted)
    with pytest.raises(Interrupt):
        make(name).edit(target, batches(name)[0])
    assert before.differences(target.model) == []


# -- patches ------------------------------------------------------------------------------------


def test_a_patch_changes_the_declared_weights_and_no_other(made: Made) -> None:
    layers = {"ROME": (1,), "MEMIT": (0, 1), "FT": (1,), "KN": (1,)}[made.setting.method]
    if made.setting.variant is not None:
        layers = VARIANTS[made.setting.method][made.setting.variant].get("layers", layers)
    if made.setting.method == "MEMIT" and made.setting.family in {"gemma2", "gemma3_text", "olmo2"}:
        layers = layers[-1:]  # a norm after the MLP: z is searched and written at one layer
    declared = {p.path for layer in layers for p in made.lm.projections(layer)}
    if made.setting.method != "FT":  # of a column where the fact is read, not of both
        other = "encoder." if made.setting.method == "KN" else "decoder."
        declared = {path for path in declared if not path.startswith(other)}
    patch, before = made.patches[0], made.weights()
    patch.apply(made.lm.model)
    after = made.weights()
    patch.revert(made.lm.model)
    assert set(patch.entries) == declared
    assert {name for name in before if not same_bits(before[name], after[name])} == declared


def test_revert_is_exact_also_after_training_mode_and_twice(made: Made) -> None:
    before = Snapshot(made.lm.model)
    for _ in range(2):
        made.patches[0].apply(made.lm.model)
        assert before.differences(made.lm.model)
        made.patches[0].revert(made.lm.model)
        assert before.differences(made.lm.model) == []


def test_three_patches_come_off_in_any_order(made: Made) -> None:
    model, patches = made.lm.model, made.patches
    before = Snapshot(model)
    subsets = chain.from_iterable(combinations(range(3), size) for size in range(4))
    expected = {kept: made.alone([patches[i] for i in kept]) for kept in subsets}
    for order in permutations(range(3)):
        for patch in patches:
            patch.apply(model)
        left = [0, 1, 2]
        assert equal(made.weights(), expected[tuple(left)])
        for i in order:
            patches[i].revert(model)
            left.remove(i)
            assert equal(made.weights(), expected[tuple(left)])
        assert before.differences(model) == []


def test_merged_patches_are_the_patches_in_order(made: Made) -> None:
    assert equal(made.alone([merged(made.patches)]), made.alone(made.patches))


def test_the_applied_sum_is_rounded_once(made: Made) -> None:
    model = made.lm.model
    for patch in made.patches:
        patch.apply(model)
    now = made.weights()
    for patch in made.patches:
        patch.revert(model)
    for path, original in model.named_parameters():
        changes = [patch.dense(path) for patch in made.patches if path in patch.entries]
        terms = [original.detach().double()]
        terms += [(c if made.lm.family.conv1d else c.T).double() for c in changes]
        total, size = sum(terms), sum(term.abs() for term in terms)
        summing = torch.finfo(torch.float32).eps * 8
        rounding = torch.finfo(original.dtype).eps / 2
        error = (now[path].double() - total).abs()
        assert (error <= total.abs() * rounding + size * summing).all()


def test_a_saved_patch_is_the_patch(made: Made, tmp_path: object) -> None:
    patch = made.patches[0]
    loaded = load_patch(save_patch(patch, tmp_path / "some" / "edit.safetensors"))
    assert equal(made.alone([patch]), made.alone([loaded]))
    assert loaded.info == patch.info
    assert loaded.transposed == patch.transposed


def test_a_patched_model_can_be_edited_again(made: Made, make: Maker) -> None:
    setting, first = made.setting, made.patches[0]
    first.apply(made.lm.model)
    before = Snapshot(made.lm.model)
    again = make(setting.method, setting.variant).edit(made.lm, batches(setting.method)[2])
    assert before.differences(made.lm.model) == []
    first.revert(made.lm.model)
    assert again.info.model == first.info.model
    assert not equal(made.alone([again]), made.alone([made.patches[2]]))


# -- the copy -----------------------------------------------------------------------------------


def test_the_edited_copy_shares_what_is_not_edited(made: Made) -> None:
    model, patch = made.lm.model, made.patches[0]
    before, said = Snapshot(model), logits(model)
    twin = edited_copy(model, patch)
    assert type(twin) is type(model)
    assert before.differences(model) == []
    mine, its = dict(model.named_parameters()), dict(twin.named_parameters())
    assert mine.keys() == its.keys()
    for name in mine:
        assert its[name] is not mine[name]
        assert (its[name].data_ptr() == mine[name].data_ptr()) == (name not in patch.entries)
    patch.apply(model)
    edited = logits(model)
    patch.revert(model)
    assert same_bits(logits(twin), edited)
    assert same_bits(logits(model), said)
    assert not same_bits(edited, said)
    twin.half().requires_grad_(False)
    twin.train()
    assert before.differences(model) == []
    assert same_bits(logits(model), said)


def test_copies_of_a_patched_model_are_independent_of_it(made: Made) -> None:
    model, (first, second, third) = made.lm.model, made.patches
    before = Snapshot(model)
    first.apply(model)
    twin = edited_copy(model, second)
    third.apply(model)
    first.revert(model)
    its = {name: p.detach() for name, p in twin.named_parameters()}
    assert equal(its, made.alone([first, second]))
    first.revert(twin)
    its = {name: p.detach() for name, p in twin.named_parameters()}
    assert equal(its, made.alone([second]))
    assert equal(made.weights(), made.alone([third]))
    second.revert(twin)
    third.revert(model)
    assert before.differences(model) == []
    assert equal({name: p.detach() for name, p in twin.named_parameters()}, made.weights())


# -- what the patches do ------------------------------------------------------------------------

LOOSE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


def of(method: str) -> pytest.MarkDecorator:
    tried = [setting for setting in SETTINGS_TRIED if setting.method == method]
    return pytest.mark.parametrize("made", tried, ids=str, indirect=True)


def searched(made: Made, site: Site, edits: Sequence[Edit]) -> torch.Tensor:
    """The vectors the method must have found for these settings."""
    settings = made.method.hyperparams
    target = made.lm.encoder_side()
    contexts = context_prefixes(target, settings.context_template_length_params)
    return optimize_values(target, site, edits, contexts, settings.search()).delta


@of("ROME")
def test_rome_stores_v_star_under_k_star(made: Made) -> None:
    edit, patch = EDITS[0], made.patches[0]
    delta = searched(made, Site(1, "down"), [edit])[0]
    target = made.lm.encoder_side()
    key, value = projected(target, 1, edit)
    (path,) = patch.entries
    if made.method.hyperparams.key == "averaged":  # exact for the averaged key instead
        contexts = context_prefixes(target, ((2, 2),))
        mean = keys_at(target, [1], subject_rows(target, edit, contexts))[1].mean(0)
        got = mean @ (target.projection(1).weight.float() + patch.dense(path))
        wanted = key @ target.projection(1).weight.float() + delta
        assert (mean - key).norm() > 1e-2 * key.norm()
        assert (got - wanted).norm() < 1e-3 * delta.norm()
        return
    patch.apply(made.lm.model)
    same_key, got = projected(target, 1, edit)
    patch.revert(made.lm.model)
    assert delta.norm() > 1e-2 * value.norm()
    assert same_bits(same_key, key)
    assert (got - (value + delta)).norm() < LOOSE[made.setting.dtype] * delta.norm()


@pytest.mark.parametrize("layers", [[1], [0, 1]], ids=str)
@pytest.mark.parametrize("family", tiny.CAUSAL)
def test_memit_reaches_z_as_lambda_vanishes(
    family: str, layers: list[int], make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches = []

    def recorded(target: LM, site: Site, *args: object, **more: object) -> OptimizedValues:
        found = optimize_values(target, site, *args, **more)
        searches.append((site, found))
        return found

    monkeypatch.setattr("easyeditor.methods.memit.optimize_values", recorded)
    target = lm(family)
    rows = [subject_rows(target, edit, [""])[0] for edit in EDITS]
    errors = []
    for strength in (1e7, 1e3, 1e-6):
        changes = {"context_template_length_params": (), "mom2_update_weight": strength}
        patch = make("MEMIT", layers=layers, **changes).edit(target, EDITS)
        site, found = searches[-1]
        assert torch.equal(found.origin, values_at(target, site, rows))
        patch.apply(target.model)
        missed = values_at(target, site, rows) - (found.origin + found.delta)
        patch.revert(target.model)
        errors.append(float(missed.norm() / found.delta.norm()))
    assert errors[-1] < 1e-2
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1


def loss(target: LM, edits: Sequence[Edit], objective: str) -> float:
    """FT's objective, from whole forward passes without padding."""
    losses = []
    for edit in edits:
        if objective == "target_new" or target.encoder_decoder:
            losses.append(-score(target, [(edit.prompt, edit.target)])[0].mean_logprob)
            continue
        prompt = target.tokenizer(edit.prompt.text)["input_ids"]
        wanted = target.tokenizer(" " + edit.target)["input_ids"]
        with torch.no_grad():
            said = target.model(input_ids=torch.tensor([prompt])).logits[0, -1].float()
        losses.append(float(-said.log_softmax(-1)[wanted].mean()))
    return sum(losses) / len(losses)


@of("FT")
def test_ft_lowers_its_loss_and_keeps_to_its_box(made: Made) -> None:
    model, patch = made.lm.model, made.patches[0]
    objective, box = made.method.hyperparams.objective_optimization, 1e-2
    before, first = made.weights(), loss(made.lm, EDITS, objective)
    patch.apply(model)
    after, last = made.weights(), loss(made.lm, EDITS, objective)
    patch.revert(model)
    assert last < first
    for path in patch.entries:
        low, high = before[path].float() - box, before[path].float() + box
        change = patch.dense(path) if made.lm.family.conv1d else patch.dense(path).T
        learnt = before[path].float() + change
        assert (learnt >= low).all()
        assert (learnt <= high).all()
        assert ((learnt == low) | (learnt == high)).any()  # the box was needed
        if made.setting.dtype == torch.float32:
            assert same_bits(after[path], learnt)


def test_ft_without_a_box_goes_further(make: Maker) -> None:
    target = lm("llama")
    (inside,) = make("FT").edit(target, EDITS).entries.values()
    (outside,) = make("FT", norm_constraint=None).edit(target, EDITS).entries.values()
    assert outside[0].delta.abs().max() > 1.1e-2 > inside[0].delta.abs().max()


def test_bits_tells_minus_zero_from_zero() -> None:
    zero = torch.zeros(1)
    assert not torch.equal(bits(zero), bits(-zero))
