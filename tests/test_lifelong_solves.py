"""AlphaEdit, EMMET and UltraEdit: the published formulas, protection, state, undo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from easyeditor import AlphaEditHyperParams, Edit, EMMETHyperParams
from easyeditor.associative.post_steps import (
    bounded_singular_values,
    largest_relative,
    off_principal_directions,
)
from easyeditor.associative.protected_metric import BLOCK_KEYS, ProtectedMetrics
from easyeditor.associative.solve import Cholesky, NullSpace, closed_form, free_directions
from easyeditor.errors import EditError, HyperParamsError
from easyeditor.methods import METHODS
from easyeditor.methods.resolve import _ridge, resolve
from easyeditor.patches.weight import LowRank
from easyeditor.second_moments import Moments
from easyeditor.second_moments.metric import InverseOfSum
from easyeditor.second_moments.null_space import NullSpaceOfMoment, eigenvectors_of
from support import EDITS, Snapshot, lm, same_bits

QUICK = {
    "v_num_grad_steps": 3,
    "mom2_n_tokens": 200,
    "context_template_length_params": (),
}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def moment(d_in: int, seed: int = 1) -> torch.Tensor:
    keys = random(d_in, 4 * d_in, seed=seed) * torch.linspace(0.01, 2, d_in).double()[:, None]
    return keys @ keys.T / (4 * d_in)


# -- the null space ------------------------------------------------------------------------------


def test_the_small_system_is_the_published_one_of_alphaedit() -> None:
    """``Δ = R KᵀP (KₚKₚᵀP + KKᵀP + L2·I)⁻¹``, which inverts ``d_in × d_in`` (2410.02355)."""
    d_in, d_out, l2 = 24, 8, 0.3
    metric = NullSpace.of(moment(d_in), 0.7)
    keys, earlier, residual = random(d_in, 5), random(d_in, 9, seed=2), random(d_out, 5, seed=3)
    p = metric.solve(torch.eye(d_in, dtype=torch.float64))
    grams = (earlier @ earlier.T + keys @ keys.T) @ p + l2 * torch.eye(d_in, dtype=torch.float64)
    published = torch.linalg.solve(grams.T, (residual @ keys.T @ p).T).T
    u = closed_form(torch.cat([keys, earlier], 1), metric, l2)[:, :5]
    assert (residual @ u.T - published).abs().max() < 1e-6 * published.abs().max()


def test_more_keys_than_inputs_are_solved_by_their_gram() -> None:
    keys, metric = random(12, 30), Cholesky.of(moment(12))
    slack = torch.linspace(0.1, 2, 30, dtype=torch.float64)
    solved = metric.solve(keys)
    wanted = solved @ torch.linalg.inv(keys.T @ solved + torch.diag(slack))
    torch.testing.assert_close(closed_form(keys, metric, slack), wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("share", [0.2, 0.75])
def test_the_projector_frees_the_directions_of_least_energy(share: float) -> None:
    c = moment(24)
    metric = NullSpace.of(c, share)
    p = metric.solve(torch.eye(24, dtype=torch.float64))
    assert metric.dimensions == round(share * 24) == round(float(p.trace()))
    torch.testing.assert_close(p @ p, p)
    values = torch.linalg.eigvalsh(c)
    assert metric.energy == pytest.approx(float(values[: metric.dimensions].sum()))
    assert float((p @ c).trace()) == pytest.approx(metric.energy)


def test_the_projector_keeps_no_more_than_the_thinner_half() -> None:
    values, vectors = torch.linalg.eigh(moment(16))
    metric = NullSpace(values, vectors.T.float().contiguous(), 12)
    assert metric._rows.untyped_storage().nbytes() == 4 * 16 * 4


def test_free_directions_do_not_depend_on_the_scale_of_the_keys() -> None:
    values = torch.linalg.eigvalsh(moment(24))
    for by in ("directions", "trace"):
        assert free_directions(values, 0.3, by) == free_directions(1e6 * values, 0.3, by)
    count = free_directions(values, 0.3, "trace")
    assert values[:count].sum() <= 0.3 * values.sum() < values[: count + 1].sum()


@pytest.mark.parametrize(("share", "by"), [(0.001, "directions"), (1e-9, "trace")])
def test_a_share_that_frees_nothing_is_refused(share: float, by: Any) -> None:
    with pytest.raises(HyperParamsError, match="leaves 0 of 24 directions free"):
        NullSpace.of(moment(24), share, by)


def test_eigenvectors_are_read_from_their_file_with_the_same_bits(tmp_path: Path) -> None:
    made = Moments(moment(24).float(), 100, "self", tmp_path / "m.safetensors")
    first = eigenvectors_of(made, torch.device("cpu"))
    (file,) = tmp_path.iterdir()
    again = eigenvectors_of(made, torch.device("cpu"))
    assert all(same_bits(a, b) for a, b in zip(first, again, strict=True))
    for damage in (b"damaged", file.read_bytes()[:-3] + b"abc"):
        file.write_bytes(damage)
        once_more = eigenvectors_of(made, torch.device("cpu"))
        assert all(same_bits(a, b) for a, b in zip(first, once_more, strict=True))
    NullSpaceOfMoment(0.5).prepare(made, torch.device("cpu"))
    with pytest.raises(HyperParamsError, match="directions free"):
        NullSpaceOfMoment(1e-6).prepare(made, torch.device("cpu"))


@pytest.mark.parametrize(("ridge", "share"), [(0.3, 0.0), (None, 0.2)])
def test_the_metric_of_encore_gives_the_published_solve(ridge: float | None, share: float) -> None:
    """``Δ = R Kᵀ (λC + K₁K₁ᵀ + KKᵀ + μI)⁻¹``, which inverts ``d_in × d_in`` (2502.01636)."""
    d_in, weight, c = 24, 2.5, moment(24).float()
    metric = InverseOfSum(weight, ridge, share).compute(
        Moments(c, 100, "self"), torch.device("cpu")
    )
    keys, earlier, residual = random(d_in, 5), random(d_in, 9, seed=2), random(8, 5, seed=3)
    mu = weight * share * float(c.diagonal().mean()) if ridge is None else ridge
    whole = weight * c.double() + keys @ keys.T + earlier @ earlier.T + mu * torch.eye(d_in)
    published = torch.linalg.solve(whole, keys @ residual.T).T
    u = closed_form(torch.cat([keys, earlier], 1), metric, 1.0)[:, :5]
    assert (residual @ u.T - published).abs().max() < 1e-3 * published.abs().max()
    assert torch.equal(c, moment(24).float())  # the moment is only read


# -- earlier keys --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, BLOCK_KEYS, 5 * BLOCK_KEYS + 7])
@pytest.mark.parametrize("l2", [0.0, 0.4])
def test_held_keys_change_the_solve_as_keys_in_the_system_do(count: int, l2: float) -> None:
    if l2 == 0 and count > 90:
        count = 80  # more exact keys than inputs fix everything
    metric = Cholesky.of(moment(96))
    earlier, keys = random(count, 96, seed=4).float(), random(96, 3)
    whole = torch.cat([keys, earlier.T.double()], 1)
    wanted = closed_form(whole, metric, l2)[:, :3]
    held, rest = ProtectedMetrics().extended("w", metric, earlier, l2)
    assert len(rest) < BLOCK_KEYS
    result = closed_form(torch.cat([keys, rest.T.double()], 1), held, l2)[:, :3]
    torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-8)


def test_held_keys_have_the_bits_of_their_list_however_it_grew() -> None:
    metric, keys = Cholesky.of(moment(96)), random(7 * BLOCK_KEYS + 5, 96, seed=4).float()
    probe, one = random(96, 2), ProtectedMetrics()

    def bits(cache: ProtectedMetrics, listed: torch.Tensor) -> torch.Tensor:
        return cache.extended("w", metric, listed, 0.4)[0].solve(probe)

    for n in (10, 70, 130, 131, 400, len(keys)):
        grown = bits(one, keys[:n])
        assert same_bits(grown, bits(ProtectedMetrics(), keys[:n]))
    # An edit is undone: in the middle, near the end, and taken back again.
    for gone in (300, 90, 440):
        fewer = torch.cat([keys[:gone], keys[gone + 1 :]])
        assert same_bits(bits(one, fewer), bits(ProtectedMetrics(), fewer))
    assert same_bits(bits(one, keys), bits(ProtectedMetrics(), keys))


# -- after the solve -----------------------------------------------------------------------------


def test_rect_leaves_the_largest_relative_changes() -> None:
    change, weight = random(10, 8), random(10, 8, seed=7)
    result = largest_relative(change, weight, 0.4)
    assert int((result != 0).sum()) == 32
    ratio = (change / weight).abs()
    assert float(ratio[result != 0].min()) > float(ratio[result == 0].max())
    assert torch.equal(result[result != 0], change[result != 0])


def test_prune_bounds_singular_values_by_the_original_weights() -> None:
    original, change = random(10, 8), 5 * random(10, 8, seed=7)
    bound = torch.linalg.matrix_norm(original, 2)
    s = torch.linalg.svdvals(change)
    wanted = torch.where(s > bound, bound + (s / bound).log(), s)
    result = torch.linalg.svdvals(bounded_singular_values(change, original))
    torch.testing.assert_close(result, wanted)
    small = 0.01 * change
    torch.testing.assert_close(bounded_singular_values(small, original), small)


def test_sphere_is_the_published_projection() -> None:
    weight, u = random(10, 8), random(10, 3, seed=7)
    rows = torch.nn.functional.normalize(weight.T, dim=1)  # W_hat (d_out, d_in)
    values, vectors = torch.linalg.eigh(rows.T @ rows / 8)
    values, vectors = values.flip(0), vectors.flip(1)
    count = int((values.cumsum(0) < 0.5 * values.sum()).sum()) + 1
    q = vectors[:, :count]
    wanted = u - 0.5 * q @ (q.T @ u)
    torch.testing.assert_close(off_principal_directions(u, weight, 0.5, 0.5), wanted)


# -- all edits again -----------------------------------------------------------------------------


def test_the_recursion_of_simie_is_one_ridge_over_all_edits() -> None:
    d_in, d_out, ridge = 12, 5, 0.7
    inputs = [random(7, d_in, seed=i) for i in range(4)]
    parts = [LowRank(random(d_in, 1, seed=10 + i), random(1, d_out, seed=20 + i)) for i in range(4)]
    p, change = ridge * torch.eye(d_in).double(), torch.zeros(d_out, d_in).double()
    for k, part in zip(inputs, parts, strict=True):
        p = p + k.T @ k
        target = (part.u @ part.v).T
        change = change + (target - change) @ k.T @ k @ torch.linalg.inv(p)
    result = _ridge(inputs, parts, ridge)
    torch.testing.assert_close((result.u.double() @ result.v).T, change, rtol=1e-4, atol=1e-6)


def test_solved_again_order_does_not_matter_and_leaving_one_out_is_exact(method: Any) -> None:
    model = lm("llama")
    before, rome = Snapshot(model.model), method("ROME")
    whole = resolve(model, rome, EDITS, ridge=0.1)
    turned = resolve(model, rome, EDITS[::-1], ridge=0.1)
    torch.testing.assert_close(changes(whole), changes(turned), rtol=1e-3, atol=1e-6)
    first = rome.edit(model, EDITS[:1]).patch
    first.apply(model.model)  # what the model carries plays no part
    fewer = resolve(model, rome, EDITS[1:], ridge=0.1)
    first.revert(model.model)
    assert same_bits(changes(fewer), changes(resolve(model, rome, EDITS[1:], ridge=0.1)))
    assert before.differences(model.model) == []
    assert whole.info.edits == tuple(EDITS)


def test_solving_again_needs_edits_and_low_rank_parts(method: Any) -> None:
    model = lm("llama")
    before = Snapshot(model.model)
    with pytest.raises(EditError, match="nothing to edit"):
        resolve(model, method("ROME"), [])
    with pytest.raises(EditError, match="FT made a WeightPatch of another form"):
        resolve(model, method("FT", num_steps=1), EDITS[:1])
    assert before.differences(model.model) == []


# -- the methods ---------------------------------------------------------------------------------


@pytest.fixture
def method(corpus: str, stats_dir: str) -> Any:
    def build(name: str, **changes: Any) -> Any:
        kind = METHODS.get(name)
        settings = {"layers": [1], **changes}
        if "mom2_dataset" in kind.hyperparams_class.model_fields:
            settings = {**QUICK, "mom2_dataset": corpus, "stats_dir": stats_dir, **settings}
        return kind(kind.hyperparams_class(**settings))

    return build


def column(patch: Any) -> torch.Tensor:
    """The direction ``u`` of a rank-one patch."""
    ((part,),) = patch.entries.values()
    return part.u


def test_emmet_without_slack_is_the_averaged_key_of_rome(method: Any) -> None:
    model = lm("llama")
    emmet = method("EMMET", emmet_lambda=0).edit(model, EDITS[:1]).patch
    rome = method("ROME", key="averaged").edit(model, EDITS[:1]).patch
    torch.testing.assert_close(column(emmet), column(rome), rtol=1e-4, atol=1e-6)


def test_emmet_holds_several_facts_with_its_slack_alone(method: Any) -> None:
    assert EMMETHyperParams().regularization(Cholesky.identity(), 1) == 0
    gpt2 = EMMETHyperParams.preset("gpt2-xl")
    assert gpt2.regularization(Cholesky.identity(), 2) == pytest.approx(100)
    assert len(column(method("EMMET").edit(lm("llama"), EDITS).patch).T) == len(EDITS)


def test_alphaedit_takes_its_regularization_from_the_keys_of_text() -> None:
    metric = NullSpace.of(moment(24), 0.5)
    assert AlphaEditHyperParams(L2=10).regularization(metric, 1) == 10
    relative = AlphaEditHyperParams(L2_relative=3).regularization(metric, 1)
    assert relative == pytest.approx(3 * metric.energy)


def test_alphaedit_computes_no_cholesky_factor(method: Any, monkeypatch: Any) -> None:
    def fails(*_: object, **__: object) -> None:
        raise AssertionError("a factor that nothing reads")

    monkeypatch.setattr(Cholesky, "of", fails)
    method("AlphaEdit").edit(lm("llama"), EDITS[:1])


def test_alphaedit_protects_edits_until_they_are_undone(method: Any) -> None:
    model = lm("llama")
    first = method("AlphaEdit").edit(model, EDITS[:1]).patch
    alone = column(method("AlphaEdit").edit(model, EDITS[2:]).patch)
    first.apply(model.model)
    before = Snapshot(model.model)
    careful = method("AlphaEdit").edit(model, EDITS[2:]).patch
    free = method("AlphaEdit", protect_edits=False).edit(model, EDITS[2:]).patch
    assert before.differences(model.model) == []
    (keys,) = (t for name, t in first.extras.items() if name.startswith("keys:"))
    (rank,) = (t for name, t in first.extras.items() if name.startswith("rank:"))
    assert rank.tolist() == [round(0.75 * keys.shape[1])]
    moved = [float((keys @ column(patch)).norm()) for patch in (careful, free)]
    assert moved[0] < 0.9 * moved[1]
    first.revert(model.model)
    assert same_bits(column(method("AlphaEdit").edit(model, EDITS[2:]).patch), alone)


def test_the_norm_anchor_is_the_mean_of_the_first_values(method: Any) -> None:
    alphaedit, model = method("AlphaEdit", anchor_norm=True), lm("llama")
    state = alphaedit.initial_state(model)
    after = alphaedit.edit(model, EDITS[:2], state).state
    assert (state.anchored, after.anchored) == (0, 2)
    assert after.anchor > 0
    full = after.anchored_with(torch.ones(100, 4))
    assert full.anchored == 50
    assert full.anchored_with(torch.full((3, 4), 9.0)) == full
    assert method("AlphaEdit").edit(model, EDITS[:2], state).state is None


def test_a_share_of_nothing_fails_before_the_search_and_leaves_the_model(method: Any) -> None:
    model = lm("llama")
    before = Snapshot(model.model)
    with pytest.raises(HyperParamsError, match="null_space=1e-06 by directions"):
        method("AlphaEdit", null_space=1e-6).edit(model, EDITS[:1])
    assert before.differences(model.model) == []


# -- UltraEdit -----------------------------------------------------------------------------------


def changes(patch: Any) -> torch.Tensor:
    return torch.cat([part.dense().flatten() for parts in patch.entries.values() for part in parts])


def test_one_edit_with_a_one_token_answer_is_finite(method: Any) -> None:
    model = lm("llama")
    edit = next(e for e in _short() if len(model.text.row(e.prompt, e.target).target) == 1)
    outcome = method("UltraEdit", lr=1e-3).edit(model, [edit])
    change = changes(outcome.patch)
    assert change.isfinite().all()
    assert float(change.norm()) > 0
    (count,) = outcome.state.count.values()
    assert int(count) == 2  # the vector of zeros, and the one answer token
    values, _ = outcome.state.dump()
    assert all(tensor.isfinite().all() for tensor in values.values())


def _short() -> list[Edit]:
    return [Edit(edit.prompt, answer) for edit in EDITS for answer in ("Rome", "the", "a", ".")]


def test_an_edits_gradient_does_not_depend_on_its_batch_mates() -> None:
    from easyeditor.gradients.factors import answer_factors

    model = lm("llama")
    rows = [model.text.row(edit.prompt, edit.target) for edit in EDITS]
    sites = model.projections(1)
    together = answer_factors(model, sites, rows)[sites[0].path]
    alone = [answer_factors(model, sites, [row])[sites[0].path] for row in rows]
    assert len(together[0]) == sum(len(row.target) for row in rows)
    for i in (0, 1):
        parts = torch.cat([pair[i] for pair in alone])
        torch.testing.assert_close(together[i], parts, rtol=1e-4, atol=1e-6)


def test_ultraedit_is_the_published_formula(method: Any) -> None:
    from easyeditor.gradients.factors import answer_factors

    model, lr, ridge = lm("llama"), 1e-3, 0.5
    outcome = method("UltraEdit", lr=lr, ridge=ridge).edit(model, EDITS)
    (site,) = model.projections(1)
    rows = [model.text.row(edit.prompt, edit.target) for edit in EDITS]
    h, g = (t.double() for t in answer_factors(model, [site], rows)[site.path])
    seen = torch.cat([torch.zeros(1, h.shape[1] + g.shape[1]).double(), torch.cat([h, g], 1)])
    deviation = seen.std(0, unbiased=False)
    deviation = deviation.clamp(min=1e-2 * deviation.mean())
    normal = (seen[1:] - seen.mean(0)) / deviation
    h_hat, g_hat = normal[:, : h.shape[1]], normal[:, h.shape[1] :]
    v = -lr * h_hat.square().sum(1, keepdim=True) * g_hat
    gram = h.T @ h + ridge * torch.eye(h.shape[1], dtype=torch.float64)
    wanted = torch.linalg.solve(gram, h.T @ v).float().flatten()
    torch.testing.assert_close(changes(outcome.patch), wanted, rtol=1e-3, atol=1e-7)


def test_statistics_go_on_from_the_state_and_undo_leaves_the_others(method: Any) -> None:
    model, ultraedit = lm("llama"), method("UltraEdit", lr=1e-3)
    first = ultraedit.edit(model, EDITS[:1])
    second = ultraedit.edit(model, EDITS[1:2], first.state)
    assert not torch.equal(changes(second.patch), changes(ultraedit.edit(model, EDITS[1:2]).patch))
    before = Snapshot(model.model)
    second.patch.apply(model.model)
    only = {name: p.detach().clone() for name, p in model.model.named_parameters()}
    second.patch.revert(model.model)
    first.patch.apply(model.model)
    second.patch.apply(model.model)
    first.patch.revert(model.model)
    assert all(same_bits(p, only[name]) for name, p in model.model.named_parameters())
    second.patch.revert(model.model)
    assert before.differences(model.model) == []


def test_classic_names_of_modules_are_weights_and_mistakes_are_named(method: Any) -> None:
    model = lm("llama")
    before = Snapshot(model.model)
    module = model.projections(1)[0].path.removesuffix(".weight")
    patch = method("UltraEdit", inner_params=[module]).edit(model, EDITS[:1]).patch
    assert list(patch.entries) == [f"{module}.weight"]
    with pytest.raises(HyperParamsError, match=r"'model\.layers\.9\.mlp' is no parameter"):
        method("UltraEdit", inner_params=["model.layers.9.mlp"]).edit(model, EDITS[:1])
    assert before.differences(model.model) == []
