"""Sums of outer products: half the work, all the digits."""

from __future__ import annotations

import pytest
import torch

from easyeditor.second_moments import running_sum as module
from easyeditor.second_moments.running_sum import RunningSums, add_products, strips, whole
from support import same_bits

CPU = torch.device("cpu")


def keys(tokens: int, d_in: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, d_in, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("d_in", [1, 4, 10, 16])
def test_the_strips_are_the_full_product(d_in: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRIP_ROWS", 4)
    total, wanted = strips(d_in), torch.zeros(d_in, d_in, dtype=torch.float64)
    for seed in range(3):
        own = keys(20, d_in, seed)
        add_products(total, own)
        wanted += own.double().T @ own.double()
    found = whole(total, d_in)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(found, found.T)


def test_what_lies_left_of_the_strips_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRIP_ROWS", 4)
    assert [tuple(strip.shape) for strip in strips(10)] == [(4, 10), (4, 6), (2, 2)]
    sums = RunningSums([10], [CPU])
    sums.add([keys(20, 10)])
    assert sum(t.numel() for t in sums.state()[0].values()) == 68


def test_a_narrow_layer_is_one_plain_product() -> None:
    own, total = keys(50, 64), strips(64)
    add_products(total, own)
    assert same_bits(total[0], torch.zeros(64, 64).addmm_(own.T, own))


def ones_after_a_large_one(fold: int, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(module, "MAX_FLOAT32_TOKENS", fold)
    sums = RunningSums([1], [CPU])
    sums.add([torch.tensor([[4096.0]])])  # its square is 2²⁴: in float32, one more is no more
    for _ in range(999):
        sums.add([torch.tensor([[1.0]])])
    assert sums.seen == 1000
    return float(sums.mean(0)) * 1000


def test_many_tokens_lose_no_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ones_after_a_large_one(1, monkeypatch) == pytest.approx(2**24 + 999, abs=2)
    assert ones_after_a_large_one(10**6, monkeypatch) == pytest.approx(2**24, abs=2)


@pytest.mark.parametrize("fold", [30, 1000])
def test_sums_go_on_from_their_state_with_the_same_bits(
    fold: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FLOAT32_TOKENS", fold)
    whole, first = RunningSums([8, 4], [CPU, CPU]), RunningSums([8, 4], [CPU, CPU])
    for seed in range(6):
        whole.add([keys(20, 8, seed), keys(20, 4, seed)])
    for seed in range(3):
        first.add([keys(20, 8, seed), keys(20, 4, seed)])
    tensors, numbers = first.state()
    second = RunningSums([8, 4], [CPU, CPU])
    second.restore({name: t.clone() for name, t in tensors.items()}, numbers)
    for seed in range(3, 6):
        second.add([keys(20, 8, seed), keys(20, 4, seed)])
    assert second.seen == whole.seen == 120
    for i in range(2):
        assert same_bits(second.mean(i), whole.mean(i))
        assert torch.equal(whole.mean(i), whole.mean(i).T)


@pytest.mark.parametrize("fold", [30, 1000])
def test_the_last_mean_gives_the_sums_back(fold: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FLOAT32_TOKENS", fold)
    monkeypatch.setattr(module, "STRIP_ROWS", 4)
    sums = RunningSums([10, 6], [CPU, CPU])
    for seed in range(3):
        sums.add([keys(20, 10, seed), keys(20, 6, seed)])
    first = sums.mean(0)
    assert same_bits(sums.mean(0, last=True), first)
    left = {name: t.untyped_storage().nbytes() for name, t in sums.state()[0].items()}
    assert not any(size for name, size in left.items() if name.split(".")[1] == "0")
    assert all(size for name, size in left.items() if name.split(".")[1] == "1")


@pytest.mark.parametrize("wrong", ["narrower", "another precision", "fewer layers", "no numbers"])
def test_a_state_of_other_sums_is_refused(wrong: str) -> None:
    sums = RunningSums([4, 4], [CPU, CPU])
    sums.add([keys(9, 4), keys(9, 4)])
    before = sums.mean(0)
    tensors, numbers = sums.state()
    tensors = {name: t.clone() for name, t in tensors.items()}
    if wrong == "narrower":
        tensors["recent.1.0"] = torch.zeros(3, 3)
    elif wrong == "another precision":
        tensors["recent.1.0"] = tensors["recent.1.0"].double()
    elif wrong == "fewer layers":
        del tensors["recent.1.0"]
    else:
        numbers = {"unfolded": "9"}
    with pytest.raises((KeyError, ValueError)):
        sums.restore(tensors, numbers)
    assert sums.seen == 9
    assert same_bits(sums.mean(0), before)


def test_torchs_defaults_change_nothing() -> None:
    own = torch.ones(20, 6, dtype=torch.bfloat16)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            sums = RunningSums([6], [CPU])
            sums.add([own])
            found = sums.mean(0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert same_bits(found, torch.ones(6, 6))
