"""MEND: exact gradients, each row's own, and the networks they go through."""

from __future__ import annotations

import pytest
import torch

import tiny
from easyeditor.gradients.factors import differentiable_per_row, factors_of
from easyeditor.gradients.losses import target_nll
from easyeditor.gradients.normalizer import RunningNormalizer
from easyeditor.lm.hooks import substituting
from easyeditor.methods.mend.nets import Network
from easyeditor.methods.mend.settings import sites_of
from mending import every, rows_of
from support import Snapshot, lm, shared_lm, unsettle
from tiers import tiered

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
            loss = target_nll(target.target_logits([row]), [row])[0]
            gradients = torch.autograd.grad(loss, parameters)
        for site, gradient in zip(sites, gradients, strict=True):
            own = found[site.path]
            mine = own.x[own.row == i].T @ own.delta[own.row == i]
            wanted = (gradient.T if site.transposed else gradient).float()
            loose = 1e-4 if dtype == torch.float32 else 0.05
            assert (mine - wanted).norm() <= loose * wanted.norm() + 1e-9
            assert wanted.norm() > 0


@pytest.mark.parametrize("family", tiered(tiny.CONFIGS))
def test_rows_see_their_own_change_as_if_the_weights_carried_it(family):
    target = shared_lm(family)
    sites, rows = sites_of(target, (1, 2), ()), rows_of(target)
    generator = torch.Generator().manual_seed(1)

    def some(width):
        return (torch.randn(2, 4, width, generator=generator) * 0.2).requires_grad_()

    changes = {site.path: (some(site.d_in), some(site.d_out)) for site in sites}
    leaves = [tensor for pair in changes.values() for tensor in pair]
    owners = [1, 0, 1]
    with target.at_rest(), differentiable_per_row(target, changes, owners):
        mine = target_nll(target.target_logits(rows), rows)
    gradients = torch.autograd.grad(mine.sum(), leaves)
    wanted = []
    for row, owner in zip(rows, owners, strict=True):
        weights = {}
        for site in sites:
            u, v = (tensor[owner] for tensor in changes[site.path])
            change = u.T @ v
            weights[site.path] = site.parameter.detach() + (change.T if site.transposed else change)
        with target.at_rest(), substituting(target.model, weights):
            wanted.append(target_nll(target.target_logits([row]), [row])[0])
    assert torch.allclose(mine, torch.stack(wanted), atol=2e-4)
    assert (mine - target_nll(target.target_logits(rows), rows)).abs().min() > 1e-3
    for a, b in zip(gradients, torch.autograd.grad(sum(wanted), leaves), strict=True):
        assert (a - b).norm() <= 1e-3 * b.norm() + 1e-6


# -- the networks -----------------------------------------------------------------------------


def test_running_statistics_are_those_of_everything_seen():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, 5, generator=generator) * 3 + 2 for n in (1, 7, 0, 30)]
    other = torch.randn(9, 5, generator=generator)
    running = RunningNormalizer(5, 2)
    for part in parts:
        running.update(1, part)
    running.update(0, other)
    whole = torch.cat(parts)
    assert torch.allclose(running.mean[1], whole.mean(0), atol=1e-5)
    normal = running(1, whole)
    assert torch.allclose(normal, (whole - whole.mean(0)) / whole.std(0), atol=1e-4)
    assert torch.allclose(running.mean[0], other.mean(0), atol=1e-6)


def test_a_dimension_that_never_varies_stays_finite():
    running = RunningNormalizer(3, 1)
    running.update(0, torch.tensor([[1.0, 5.0, 0.0], [2.0, 5.0, 0.0]]))
    assert running(0, torch.tensor([[1.5, 5.5, -9.0]])).tolist()[0] == pytest.approx([0.0, 4, -4])
    still = RunningNormalizer(2, 1)
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
