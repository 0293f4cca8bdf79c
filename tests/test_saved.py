"""A pass may keep less for its backward pass: no bit of a gradient changes for it."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator

import pytest
import torch

import tiny
from easyeditor import LM
from easyeditor.associative.microbatches import ContextRow, MemoryModel, groups, micro_batches
from easyeditor.gradients.losses import FIRST, nll_and_kl
from easyeditor.lm.forward import activation_memory as module
from easyeditor.lm.forward import partial as resume
from easyeditor.lm.forward.activation_memory import BufferPool, SavedTensors, low_memory_autograd
from easyeditor.lm.forward.partial import EditRow, FullForward, PartialForward, Site
from support import noise, shared_lm
from tiers import tiered

SITE = Site(0, "down")
RUNS = [EditRow(tuple(range(3, 3 + n)), at, (n - 1,)) for n, at in ((9, 5), (7, 3), (9, 0), (4, 3))]


@contextlib.contextmanager
def everything(*_given: object) -> Iterator[SavedTensors]:
    yield SavedTensors(set(), BufferPool())


def gradient(opened: FullForward | PartialForward) -> tuple[torch.Tensor, torch.Tensor]:
    delta = noise(len(RUNS), 32).requires_grad_()
    logits = opened.logits(delta)
    (logits.log_softmax(-1) * noise(*logits.shape)).sum().backward()
    assert delta.grad is not None
    return logits.detach(), delta.grad


@pytest.mark.parametrize("kind", [PartialForward, FullForward])
@pytest.mark.parametrize("family", tiered(tiny.CAUSAL))
def test_every_gradient_keeps_its_bits(
    family: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = shared_lm(family)
    with target.at_rest():
        opened = kind(target, SITE, RUNS)
        slimmed = [gradient(opened) for _ in range(2)]  # the second time over the first's memory
        monkeypatch.setattr(resume, "low_memory_autograd", everything)
        whole = gradient(opened)
    for logits, grad in slimmed:
        assert torch.equal(logits, whole[0])
        assert torch.equal(grad, whole[1])


def saved_bytes(
    opened: FullForward | PartialForward, delta: torch.Tensor, weights: set[int]
) -> int:
    """What autograd itself keeps, each storage once."""
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = opened.logits(delta)
    del held
    return sum(seen.values())


@pytest.mark.parametrize(("family", "share"), [("llama", 0.75), ("gemma", 0.75), ("gpt2", 1.0)])
def test_less_is_kept(family: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    target, delta = shared_lm(family), noise(len(RUNS), 32).requires_grad_()
    weights = {p.untyped_storage().data_ptr() for p in target.model.parameters()}
    with target.at_rest():
        opened = PartialForward(target, SITE, RUNS)
        opened.logits(delta)
        left = opened.left
        monkeypatch.setattr(resume, "low_memory_autograd", everything)
        assert 0 < left <= share * saved_bytes(opened, delta, weights)


def test_this_version_of_torch_recomputes_exactly() -> None:
    """If it fails after an update of torch, searches take more memory, and no bit changes."""
    assert module.recomputation_is_exact()


@pytest.mark.parametrize("kind", [PartialForward, FullForward])
def test_plain_autograd_is_used_where_recomputing_is_not_exact(
    kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = shared_lm("llama")
    with target.at_rest():
        opened = kind(target, SITE, RUNS)
        logits, grad = gradient(opened)
        less = opened.left
        monkeypatch.setattr(module, "recomputation_is_exact", lambda: False)
        plain_logits, plain_grad = gradient(opened)
    assert torch.equal(logits, plain_logits)
    assert torch.equal(grad, plain_grad)
    assert opened.left > less


@pytest.mark.parametrize("missing", ["_repeats", "_activation"])
def test_attributes_that_torch_no_longer_has_are_noticed(
    missing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(_tensor: torch.Tensor) -> None:
        raise AttributeError("_saved_self")

    monkeypatch.setattr(module, missing, gone)
    assert module.recomputation_is_exact.__wrapped__() is False
    assert "take more memory" in caplog.text


def test_passes_that_wait_for_each_other_do_not_disturb_each_other() -> None:
    target, pool = shared_lm("llama"), BufferPool()
    with target.at_rest():
        opened = [PartialForward(target, SITE, RUNS, pool) for _ in range(2)]
        alone = gradient(opened[0])[1]
        first, second = (noise(len(RUNS), 32).requires_grad_() for _ in range(2))
        losses = [
            (one.logits(delta).log_softmax(-1) * noise(len(RUNS), 398)).sum()
            for one, delta in zip(opened, (first, second * 2), strict=True)
        ]
        for loss in losses:
            loss.backward()
    assert torch.equal(first.grad, alone)


def test_nothing_holds_a_graph_that_is_no_longer_wanted() -> None:
    target = shared_lm("llama")
    gc.disable()
    try:
        with target.at_rest():
            delta = noise(len(RUNS), 32).requires_grad_()
            logits = PartialForward(target, SITE, RUNS).logits(delta)
        start = weakref.ref(delta)
        del delta, logits
        assert start() is None
    finally:
        gc.enable()


def test_a_tensor_changed_in_place_is_another() -> None:
    kept = SavedTensors(set(), BufferPool())
    tensor = noise(4)
    first = kept.keep(tensor)
    assert kept.keep(tensor) is first
    tensor.add_(1)
    assert torch.equal(kept.keep(tensor), first + 1)
    assert kept.bytes == 2 * 4 * 4


def test_outside_autograd_nothing_is_kept() -> None:
    target = shared_lm("llama")
    with target.at_rest(), torch.no_grad(), low_memory_autograd(target, BufferPool()) as kept:
        target.model(input_ids=torch.tensor([[5, 6, 7]]))
    assert kept.bytes == 0


# -- surprise ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_surprise_is_what_autograd_makes_of_it(dtype: torch.dtype) -> None:
    before, logits = (3 * noise(5, 11)).to(dtype), (3 * noise(5, 11).flip(0)).to(dtype)
    targets = torch.tensor([4, FIRST, 0, FIRST, 10])
    again = targets == FIRST
    _, first = nll_and_kl(before, targets, None)
    assert torch.equal(first, before[again].float().log_softmax(-1))
    gradients, values = [], []
    for written in (True, False):
        leaf = logits.clone().requires_grad_()
        if written:
            value, same = nll_and_kl(leaf, targets, first)
            assert torch.equal(same, first)
        else:
            now = leaf.float().log_softmax(-1)
            divergence = (first.exp() * (first - now[again])).sum(-1)
            value = -now.gather(1, targets.clamp(min=0)[:, None])[:, 0]
            value = value.masked_scatter(again, divergence)
        (value * torch.arange(1, 6)).sum().backward()
        gradients.append(leaf.grad)
        values.append(value.detach())
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_first_time_nothing_diverges() -> None:
    value, _ = nll_and_kl(noise(2, 9), torch.tensor([FIRST, FIRST]), None)
    assert torch.equal(value, torch.zeros(2))


# -- micro-batches -------------------------------------------------------------------------------


def line(edit: int, length: int, at: int) -> ContextRow:
    return ContextRow(edit, EditRow(tuple(range(3, 3 + length)), at, (length - 1,)), (5,), 1.0)


COSTS = MemoryModel(stored=1.0, left=10.0, read=5.0, resume=True)


def test_micro_batches_are_equal_and_fit() -> None:
    target: LM = shared_lm("llama")
    lines = [line(0, 9, 2) for _ in range(21)]
    with target.at_rest():
        made = micro_batches(target, SITE, lines, COSTS, 900)
    assert [len(batch.rows) for batch in made] == [10, 11]  # 42 are stored, a line steps with 75
    assert max(COSTS.stepping(batch.rows) for batch in made) + COSTS.storing(lines) <= 900


def test_edits_of_like_length_are_searched_together() -> None:
    lengths = [9, 3, 9, 3, 30]
    edits = [[line(i, length, 1) for _ in range(2)] for i, length in enumerate(lengths)]
    found = [[own[0].edit for own in group] for group in groups(edits, COSTS, 400)]
    assert found == [[1, 3], [0, 2], [4]]
