"""KN: the attributions are integrated gradients, the edit does what the paper says it does."""

from __future__ import annotations

import logging

import pytest
import torch

import tiny
import zoo
import zoo.world
from easyeditor import BaseEditor, Edit, KNHyperParams, load, load_patch, save_patch
from easyeditor.data.open import open_dataset
from easyeditor.errors import DivergedError, EditError, HyperParamsError, UnsupportedModelError
from easyeditor.interpret import integrated_gradients as attribution
from easyeditor.interpret.integrated_gradients import attribute
from easyeditor.lm import LM
from easyeditor.lm.inference import score
from easyeditor.lm.tokens import Row
from easyeditor.methods.kn import KN, kept_neurons
from support import EDITS, Snapshot, lm, logprobs, same_bits, shared_lm
from tiers import tiered

EIFFEL = Edit("The Eiffel Tower is located in the city of", "Rome", ground_truth="Paris")
CLASSIC = {"lr_scale": 1.0, "n_toks": 5, "refine": True, "batch_size": 10, "steps": 4, "p": 0.4}


def method(**changes: object) -> KN:
    return KN(KNHyperParams(**{"steps": 4, **changes}))


def probability(lm: LM, prompt: str, answer: str) -> float:
    """Of the answer's first token."""
    return float(torch.tensor(logprobs(lm, [(prompt, answer)])[0][0]).exp())


# -- attributions -----------------------------------------------------------------------------


def asked(target: LM, answer: str = "Rome") -> Row:
    """A row with two tokens of an answer; the second is attributed."""
    row = target.text.row(EIFFEL.prompt, f"{answer} is")
    return Row(
        row.ids if target.encoder_decoder else row.ids[: row.prompt_length + 2], row.target[:2]
    )


def one_pass(target: LM, row: Row, layer: int, share: float) -> tuple[torch.Tensor, ...]:
    """Activation, p, and dp/da, by a whole forward pass of one row with one hook."""
    seen: list[torch.Tensor] = []

    def scale(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = args[0].clone()
        flat = hidden.view(-1, hidden.shape[-1])
        whole = flat[-1].detach().clone()
        scaled = (share * whole).requires_grad_()
        flat[-1] = scaled
        seen.extend([whole, scaled])
        return (hidden,)

    handle = target.projection(layer).module.register_forward_pre_hook(scale)
    with target.at_rest():
        if target.encoder_decoder:
            fed = torch.tensor([[0, *row.target[:-1]]])
            out = target.model(input_ids=torch.tensor([row.ids]), decoder_input_ids=fed)
        else:
            out = target.model(input_ids=torch.tensor([row.ids[:-1]]), use_cache=False)
        p = out.logits[0, -1].float().softmax(-1)[row.target[-1]]
        p.backward()
    handle.remove()
    return seen[0].float(), p.detach(), seen[1].grad.float()


def test_every_family_equals_a_plain_loop(family: str) -> None:
    target, steps = shared_lm(family), 3
    row = asked(target)
    found = attribute(target, row, [0, 2], steps=steps)
    assert list(found.scores) == [0, 2]
    for layer, scores in found.scores.items():
        plain = [one_pass(target, row, layer, (m + 0.5) / steps) for m in range(steps)]
        activation = plain[0][0]
        wanted = activation * torch.stack([gradient for _, _, gradient in plain]).mean(0)
        assert wanted.abs().max() > 0
        torch.testing.assert_close(found.activations[layer], activation, rtol=1e-4, atol=1e-5)
        error = (scores - wanted).abs().max()
        assert error < 1e-3 * wanted.abs().max()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", tiered(tiny.CONFIGS))


def test_many_small_passes_are_one_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    target = shared_lm("gpt2")
    row = asked(target)
    whole = attribute(target, row, [0, 1, 2], steps=7)
    passes = []
    plain = attribution._add
    monkeypatch.setattr(attribution, "MIN_ROWS", 2)
    monkeypatch.setattr(attribution, "_add", lambda *args: passes.append(plain(*args)))
    parts = attribute(target, row, [0, 1, 2], steps=7, memory=1)
    assert len(passes) == 11
    for layer in whole.scores:
        torch.testing.assert_close(parts.scores[layer], whole.scores[layer])


@pytest.mark.slow
def test_the_scores_of_a_layer_add_up_to_what_it_does() -> None:
    target = load("smollm2-135m", device="cpu")
    row = target.text.row("The capital of Germany is", "Berlin")
    layers = [10, 20, 25]
    found = attribute(target, row, layers, steps=100)
    for layer in layers:
        _, full, _ = one_pass(target, row, layer, 1.0)
        _, without, _ = one_pass(target, row, layer, 0.0)
        assert full - without > 0.1
        assert float(found.scores[layer].sum()) == pytest.approx(float(full - without), rel=1e-3)


# -- which neurons ----------------------------------------------------------------------------


def test_neurons_over_the_threshold_that_enough_prompts_share() -> None:
    first = {0: torch.tensor([1.0, 0.3, 0.1]), 3: torch.tensor([0.2, -5.0, 0.19])}
    second = {0: torch.tensor([0.0, 0.3, 0.1]), 3: torch.tensor([0.0, 0.01, 0.0])}
    settings = KNHyperParams(adaptive_threshold=0.2, p=0.4)
    assert kept_neurons([first], settings) == {0: [0, 1], 3: [0]}
    assert kept_neurons([second], settings) == {0: [1, 2]}
    assert kept_neurons([first, second], settings) == {0: [0, 1, 2], 3: [0]}
    assert kept_neurons([first, second], settings.replace(p=0.6)) == {0: [1]}
    apart = {0: torch.zeros(3), 3: torch.tensor([0.0, 1.0, 0.0])}
    assert kept_neurons([first, apart], settings.replace(p=1.0)) == {0: [0, 1], 3: [0, 1]}
    assert kept_neurons([{0: torch.tensor([-1.0, -2.0])}], settings) == {}


def test_refine_asks_behind_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    target = lm("llama")
    seen = []
    plain = attribution.attribute
    monkeypatch.setattr(
        "easyeditor.methods.kn.attribute",
        lambda *args, **more: seen.append(args[1]) or plain(*args, **more),
    )
    method(refine=True, n_toks=3, n_prompts=2).edit(target, [EIFFEL])
    bare, *prefixed = seen
    assert len(prefixed) == 2
    assert len({row.ids for row in seen}) == 3
    assert all(row.ids[-len(bare.ids) + 1 :] == bare.ids[1:] for row in prefixed)


# -- what the rows become ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "opt"])
def test_rows_gain_the_new_and_lose_the_old_direction(name: str) -> None:
    target = lm(name)
    new, old = ("R", "P") if target.encoder_decoder else ("Rome", "Paris")
    edit = Edit(EIFFEL.prompt, new, ground_truth=old)
    patch = method(lambda_old=0.5, lambda_new=2.0).edit(target, [edit]).patch
    row = target.text.row(edit.prompt, old)
    (new_token,), (old_token,) = target.text.row(edit.prompt, new).target, row.target
    unit = torch.nn.functional.normalize(target.head.weight.detach(), dim=1)
    direction = 2.0 * unit[new_token] - 0.5 * unit[old_token]
    written = torch.zeros_like(direction)
    found = attribute(target, row, [0, 1, 2], steps=4)
    paths = {target.projection(layer).path: layer for layer in range(3)}
    for path in patch.entries:
        change = patch.dense(path)
        kept = change.abs().sum(1) > 0
        activation = found.activations[paths[path]][kept]
        size = change[kept] @ direction / direction.norm() ** 2
        torch.testing.assert_close(change[kept], size[:, None] * direction)
        assert torch.equal(size.sign(), activation.sign())
        written += activation @ change[kept]
    torch.testing.assert_close(written, found.stream * direction, rtol=1e-4, atol=1e-4)


def test_erasing_sets_the_rows_to_zero() -> None:
    for name in ("llama", "gpt2", "t5"):
        target = lm(name)
        patch = method(mode="erase").edit(target, EDITS[:1]).patch
        before = {layer: target.projection(layer).weight.clone() for layer in range(3)}
        patch.apply(target.model)
        for layer, old in before.items():
            now = target.projection(layer).weight
            changed = (now != old).any(1)
            assert (now[changed] == 0).all()
        assert sum(int((target.projection(i).weight != before[i]).any(1).sum()) for i in before)


def test_only_what_the_model_would_not_say_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    target = lm("llama")
    prompt = EIFFEL.prompt
    row = target.text.row(prompt, "Rome is the river")
    with torch.no_grad():
        said = target.target_logits([row]).argmax(1).tolist()
    places = []
    plain = attribution.attribute

    def recorded(_lm: LM, asked: Row, *args: object, **more: object) -> object:
        places.append((len(asked.target) - 1, asked.target[-1]))
        assert asked.ids[: row.prompt_length] == row.ids[: row.prompt_length]
        assert asked.target[:-1] == row.target[: places[-1][0]]
        return plain(_lm, asked, *args, **more)

    monkeypatch.setattr("easyeditor.methods.kn.attribute", recorded)
    method().edit(target, [Edit(prompt, "Rome is the river")])
    assert places == list(enumerate(said))
    places.clear()
    row = target.text.row(prompt, "Rome is")
    method().edit(target, [Edit(prompt, "Rome is", ground_truth="Rome")])
    assert [place for place, _ in places] == [1]
    places.clear()
    row = target.text.row(prompt, "Rome")
    method().edit(target, [Edit(prompt, "Rome", ground_truth="Rome")])  # strengthened
    assert places == [(0, row.target[0])]


# -- behaviour --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known() -> list[Edit]:
    return [case.edit for case in list(open_dataset("worldfacts"))[:36:12]]


@pytest.mark.slow
@pytest.mark.parametrize("truth", [True, False])
def test_the_embedded_model_says_the_new_answer(known: list[Edit], truth: bool) -> None:
    target = load("smollm2-135m", device="cpu")
    before = Snapshot(target.model)
    for fact in known:
        edit = Edit(fact.prompt, fact.target, ground_truth=fact.ground_truth if truth else None)
        old, new = (probability(target, edit.prompt, a) for a in (fact.ground_truth, edit.target))
        patch = KN(KNHyperParams.preset("smollm2-135m")).edit(target, [edit]).patch
        patch.apply(target.model)
        assert probability(target, edit.prompt, edit.target) > max(10 * new, 0.1)
        assert probability(target, edit.prompt, fact.ground_truth) < old / 2
        patch.revert(target.model)
        assert before.differences(target.model) == []


@pytest.mark.slow
def test_the_embedded_model_forgets(known: list[Edit]) -> None:
    target = load("smollm2-135m", device="cpu")
    for edit in known:
        old = probability(target, edit.prompt, edit.ground_truth)
        patch = KN(KNHyperParams.preset("smollm2-135m", mode="erase")).edit(target, [edit]).patch
        patch.apply(target.model)
        assert probability(target, edit.prompt, edit.ground_truth) < old
        patch.revert(target.model)


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_every_family_that_knows_its_world_says_another_answer_or_none(name: str) -> None:
    target = zoo.load(name)
    before = Snapshot(target.model)
    for case in zoo.world.cases("train")[::75]:
        prompt, new, old = case.edit.prompt, case.edit.target, case.edit.ground_truth
        answers = [(prompt, new), (prompt, old)]
        first_new, first_old = (scores.mean_logprob for scores in score(target, answers))
        for settings in (
            {"layers": [-2, -1], "lambda_new": 1.0, "lambda_old": 1.0},
            {"mode": "erase", "adaptive_threshold": 0.05},
        ):
            patch = KN(KNHyperParams(**settings)).edit(target, [case.edit]).patch
            patch.apply(target.model)
            now_new, now_old = (scores.mean_logprob for scores in score(target, answers))
            patch.revert(target.model)
            assert now_old < first_old, case.id
            assert "mode" in settings or now_new > max(first_new, now_old), case.id
    assert before.differences(target.model) == []


# -- settings and errors ----------------------------------------------------------------------


def test_classic_settings_load(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "easyeditor"):
        found = KNHyperParams(**CLASSIC, adaptive_threshold=0.2)
    assert (found.n_toks, found.refine, found.steps, found.p) == (5, True, 4, 0.4)
    assert "batch_size, lr_scale" in caplog.text


def test_all_layers_unless_some_are_listed() -> None:
    assert KNHyperParams().resolved(3).layers == (0, 1, 2)
    assert KNHyperParams(layers=-1).resolved(3).layers == (2,)
    assert KNHyperParams(layers=[]).resolved(2).layers == (0, 1)
    assert method(layers=[2]).edit(shared_lm("llama"), EDITS[:1]).patch.info.hyperparams[
        "layers"
    ] == [2]


@pytest.mark.parametrize(
    ("field", "value"),
    [("adaptive_threshold", 1), ("p", 0), ("steps", 0), ("mode", "forget"), ("lambda_new", -1)],
)
def test_impossible_settings(field: str, value: object) -> None:
    with pytest.raises(HyperParamsError, match=field):
        KNHyperParams(**{field: value})


def test_one_edit_at_a_time() -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    with pytest.raises(HyperParamsError, match="one edit at a time, not 3"):
        method().edit(target, EDITS)
    editor = BaseEditor.from_pretrained(target.model, target.tokenizer, KNHyperParams())
    with pytest.raises(EditError, match="one edit at a time"):
        editor.batch_edit(prompts=["a b"], target_new=["c"])
    assert before.differences(target.model) == []


def test_an_answer_that_no_neuron_raises() -> None:
    target = lm("llama")
    with torch.no_grad():
        for layer in range(3):  # no neuron writes anything
            target.projection(layer).parameter.zero_()
    before = Snapshot(target.model)
    with pytest.raises(EditError, match="No neuron makes ' Paris' more probable"):
        method().edit(target, [EIFFEL])
    assert before.differences(target.model) == []


def test_a_probability_that_is_no_number() -> None:
    target = lm("llama")
    with torch.no_grad():
        target.model.model.norm.weight.fill_(float("nan"))
    before = Snapshot(target.model)
    with pytest.raises(DivergedError, match="not a number"):
        method().edit(target, EDITS[:1])
    assert before.differences(target.model) == []


def test_a_head_of_another_width() -> None:
    target = lm("opt", word_embed_proj_dim=16)
    before = Snapshot(target.model)
    with pytest.raises(UnsupportedModelError, match="16 dimensions and its MLPs write 32"):
        method().edit(target, EDITS[:1])
    assert before.differences(target.model) == []


def test_a_saved_patch_does_the_same(tmp_path) -> None:
    target = lm("gpt2")
    patch = method().edit(target, EDITS[:1]).patch
    loaded = load_patch(save_patch(patch, tmp_path / "kn.safetensors"))
    for path in patch.entries:
        assert same_bits(patch.dense(path), loaded.dense(path))
