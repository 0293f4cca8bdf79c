"""What may come between a patch and a model: interrupts, threads, changed weights, old files."""

from __future__ import annotations

import copy
import hashlib
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import outer
from easyeditor import BaseEditor, Edit, FTHyperParams, load_patch
from easyeditor.errors import PatchStateError
from easyeditor.lm.forward.context import has_adapters
from easyeditor.lm.forward.stubs import stubbed
from easyeditor.lm.hooks import adding, gathering, reading_output, substituting
from easyeditor.patches.adapter import AddVector
from easyeditor.patches.batched import applied_per_row
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.outside import adopt_weights, discard_changes
from easyeditor.patches.parts import LowRank
from easyeditor.patches.stack import applied, is_patched, stack_of, without_patches
from easyeditor.patches.weight import WeightPatch
from easyeditor.patches.weight_sum import FEW
from support import EDITS, Snapshot, lm, unsettle
from synthetic import differing, info, patch, weights

DATA = Path(__file__).parent / "data"
WATCHED = tuple(
    str(outer.SOURCE / f"{name}.py")
    for name in (
        "patches/stack",
        "patches/weight",
        "patches/weight_sum",
        "patches/module",
        "patches/batched",
        "patches/route",
        "lm/originals",
        "lm/hooks",
        "lm/restoring",
        "lm/model",
        "lm/routing",
        "lm/forward/context",
        "lm/forward/partial",
    )
)


@contextmanager
def interrupted_at(line: int) -> Iterator[list[int]]:
    """Raise ``KeyboardInterrupt`` before the n-th line that runs in watched files (0: never)."""
    count = [0]

    def trace(frame: FrameType, event: str, _arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(WATCHED):
            return None
        if event == "line":
            count[0] += 1
            if count[0] == line:
                raise KeyboardInterrupt
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(former)


def at_every_line(change: Callable[[], None], check: Callable[[], None], most: int = 400) -> int:
    """Interrupt ``change`` at (``most``) lines, and ``check`` after each; returns their number."""
    with interrupted_at(0) as count:
        change()
    check()
    for line in range(1, count[0] + 1, 1 + count[0] // most):
        with interrupted_at(line), suppress(KeyboardInterrupt):
            change()
        check()
    return count[0]


@pytest.mark.parametrize("count", [1, FEW + 1])
def test_an_interrupt_at_any_line_of_a_short_change_leaves_nothing(count: int) -> None:
    target = lm("llama", num_hidden_layers=1)
    patches = [patch(target, "low", seed, (0,)) for seed in range(count)]
    for one in patches:
        one.apply(target.model)
    before, more = Snapshot(target.model), patch(target, "low", 90, (0,))

    def change() -> None:
        with applied(target.model, more):
            pass
        with without_patches(target.model):
            pass

    def check() -> None:
        assert stack_of(target.model).patches == tuple(patches)
        assert before.differences(target.model) == []

    assert at_every_line(change, check) > 100


@pytest.mark.parametrize("count", [1, FEW + 1])
def test_an_interrupt_at_any_line_leaves_what_the_stack_says(count: int) -> None:
    target, fresh = lm("gpt2"), lm("gpt2")
    patches = [patch(target, "low", seed, (0,)) for seed in range(count)]
    more = patch(target, "low", 90, (0,))
    for one in patches:
        one.apply(target.model)
        one.apply(fresh.model)
    without = weights(fresh)
    more.apply(fresh.model)
    with_more = weights(fresh)

    def change() -> None:
        if is_patched(target.model) and more in stack_of(target.model).patches:
            more.revert(target.model)
        more.apply(target.model, force=True)

    def check() -> None:
        carried = more in stack_of(target.model).patches
        assert differing(with_more if carried else without, weights(target)) == []

    assert at_every_line(change, check) > 100
    assert all(p.requires_grad for p in target.model.parameters())


@pytest.mark.parametrize("name", ["rest", "hooks", "weights", "blocks", "adapters", "rows"])
def test_an_interrupt_leaves_no_hook_flag_or_stub(name: str) -> None:
    target = lm("llama")
    unsettle(target.model)
    before = Snapshot(target.model)
    place, row = target.projection(0), torch.tensor([0])
    vector = torch.ones(place.d_out)
    steering = ModulePatch({"model.layers.0.mlp": (AddVector(vector),)}, info(target))

    def change() -> None:
        with ExitStack() as inside:
            if name == "rest":
                inside.enter_context(target.at_rest())
            elif name == "hooks":
                inside.enter_context(adding(place.module, row, vector[None]))
                inside.enter_context(gathering(target.head, row, row))
                inside.enter_context(reading_output(place.module, stop=False))
            elif name == "weights":
                weight = {place.path: target.model.get_parameter(place.path).detach() * 2}
                inside.enter_context(substituting(target.model, weight))
            elif name == "blocks":
                inside.enter_context(stubbed(target.blocks, 1, None))
            elif name == "adapters":
                inside.enter_context(applied(target.model, steering))
            else:
                inside.enter_context(applied_per_row(target, [steering, None]))

    def check() -> None:
        assert before.differences(target.model) == []
        assert "generate" not in vars(target.model)
        assert not has_adapters(target.model)
        assert stack_of(target.model).patches == ()

    assert at_every_line(change, check, 60) > 4


def test_two_threads_wait_for_each_other() -> None:
    target, fresh = lm("llama"), lm("llama")
    before = weights(target)
    patches = [patch(target, "low", seed) for seed in range(40)]
    errors: list[BaseException] = []

    def work(some: list[WeightPatch]) -> None:
        try:
            for one in some:
                one.apply(target.model, force=True)
                with applied(target.model, patch(target, "low", 99)):
                    time.sleep(0)
            for one in some[1:]:
                one.revert(target.model)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(patches[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    left = stack_of(target.model).patches
    assert set(left) == set(patches[:4])
    for one in left:
        one.apply(fresh.model)
    assert differing(weights(target), weights(fresh)) == []
    for one in left:
        one.revert(target.model)
    assert differing(weights(target), before) == []


def test_two_threads_edit_one_model_one_after_the_other() -> None:
    target, fresh = lm("llama"), lm("llama")
    settings = FTHyperParams(layers=[0], num_steps=2)
    editor, patches = BaseEditor(target, settings), []
    errors: list[BaseException] = []

    def work(edit: Edit) -> None:
        try:
            patches.append(editor.edit(edit.prompt, edit.target, verbose=False).patch)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(edit,)) for edit in EDITS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert set(stack_of(target.model).patches) == set(patches)
    for one in patches:
        one.revert(target.model)
    assert differing(weights(target), weights(fresh)) == []


# -- weights that somebody else changes ---------------------------------------------------------


def train(target: Any, path: str) -> None:
    """One optimiser's step on one weight."""
    parameter = target.model.get_parameter(path)
    parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD([parameter], lr=0.1).step()
    parameter.grad = None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_changed_outside_is_never_lost_silently(dtype: torch.dtype) -> None:
    target = lm("llama", dtype)
    one, other = patch(target, "low", 0, (0,)), patch(target, "low", 1, (0,))
    path = next(iter(one.entries))
    one.apply(target.model)
    edited = weights(target)
    train(target, path)
    trained = weights(target)
    for change in (one.revert, other.apply, lambda model: applied(model, other).__enter__()):
        with pytest.raises(PatchStateError, match="changed outside"):
            change(target.model)
        assert differing(trained, weights(target)) == []
        assert stack_of(target.model).patches == (one,)
    assert discard_changes(target.model) == [path]
    assert differing(edited, weights(target)) == []
    train(target, path)
    adopt_weights(target.model)
    assert not is_patched(target.model)
    assert differing(trained, weights(target)) == []
    other.apply(target.model, force=True)
    other.revert(target.model)
    assert differing(trained, weights(target)) == []


@pytest.mark.parametrize("kind", ["low", "rows", "vector"])
@pytest.mark.parametrize("how", ["rows change places", "one sample", "reversed"])
def test_a_change_that_leaves_the_sum_is_noticed(kind: str, how: str) -> None:
    """What was written is kept as copies: a view of the weight would always equal it."""
    target = lm("llama")
    one = patch(target, kind, 0, (0,))
    weight = target.model.get_parameter(next(iter(one.entries)))
    with torch.no_grad():
        weight += torch.arange(float(weight.numel())).view_as(weight) / 1e3  # a norm's are all 1
        one.apply(target.model, force=True)
        if how == "rows change places":
            weight[[0, 1]] = weight[[1, 0]]
        elif how == "one sample":
            weight.view(-1)[0] += 1
        else:
            weight.view(-1).copy_(weight.view(-1).flip(0).clone())
    changed = weights(target)
    with pytest.raises(PatchStateError, match="changed outside"):
        one.revert(target.model)
    assert differing(changed, weights(target)) == []


def test_loading_another_state_is_noticed_and_moving_the_model_is_not_a_change() -> None:
    target = lm("llama")
    one = patch(target, "low", 0)
    clean = copy.deepcopy(target.model.state_dict())
    one.apply(target.model)
    target.model.to(torch.bfloat16).to("cpu")
    one.revert(target.model)
    halves = {name: t.to(torch.bfloat16) for name, t in clean.items()}
    assert differing(dict(target.model.named_parameters()), halves) == []
    one.apply(target.model, force=True)
    target.model.load_state_dict(halves)
    with pytest.raises(PatchStateError, match="changed outside"):
        one.revert(target.model)


# -- files from before ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "digest"),
    [
        ("llama", "fc9850f1676a0fe032438c1923a3601923d7c1dbcf3016e08292a6fee50db04e"),
        ("gpt2", "c8c4e0eb7c5f39b0e75378575fee24f4d83e13b632f1ed3c092c6701e3c7fd14"),
    ],
)
def test_a_file_of_format_1_has_the_bits_it_had(family: str, digest: str) -> None:
    target = lm(family)
    before = Snapshot(target.model)
    old = load_patch(DATA / f"format1_{family}.safetensors")
    assert isinstance(old, WeightPatch)
    assert (old.info.method, old.info.edits[0].target) == ("ROME", "Rome")
    assert old.in_out == (frozenset(old.entries) if family == "gpt2" else frozenset())
    old.apply(target.model)
    with pytest.raises(PatchStateError, match="same file"):
        load_patch(DATA / f"format1_{family}.safetensors").apply(target.model)
    paths = sorted(old.entries)
    bits = b"".join(target.model.get_parameter(p).detach().numpy().tobytes() for p in paths)
    assert hashlib.sha256(bits).hexdigest() == digest
    old.revert(target.model)
    assert before.differences(target.model) == []


# -- many -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ten_thousand_patches_undone_in_any_order(dtype: torch.dtype) -> None:
    target, fresh = lm("llama", dtype), lm("llama", dtype)
    before, description = Snapshot(target.model), info(target)
    generator = torch.Generator().manual_seed(0)
    place = target.projection(0)

    def one() -> WeightPatch:
        u = torch.randn(place.d_in, 1, generator=generator)
        v = torch.randn(1, place.d_out, generator=generator) * 0.01
        return WeightPatch({place.path: (LowRank(u, v),)}, description)

    start = time.perf_counter()
    patches = [one() for _ in range(10_000)]
    for each in patches:
        each.apply(target.model, force=True)
    order = random.Random(0).sample(patches, len(patches))
    for i, each in enumerate(order):
        each.revert(target.model)
        if i in {4_000, 9_900, 9_995}:
            left = stack_of(target.model).patches
            for rest in left:
                rest.apply(fresh.model, force=True)
            assert differing(weights(target), weights(fresh)) == []
            for rest in left:
                rest.revert(fresh.model)
    assert before.differences(target.model) == []
    assert time.perf_counter() - start < 120
