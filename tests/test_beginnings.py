"""Shared prefixes are run once, and the cache is that of the plain pass."""

from __future__ import annotations

import pytest
import torch

import tiny
from easyeditor import LM, Edit
from easyeditor.associative.value_optimization import ValueOptions, optimize_values
from easyeditor.lm.forward import shared_prefix as module
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.forward.shared_prefix import past_of, shared_prefixes
from support import lm, shared_lm
from tiers import tiered

FRONTS = ("Therefore we went home. ", "Because it rained, I stayed inside. ")
EDITS = tuple(
    Edit(f"{start}{name} is the", answer, subject=name)
    for start, answer in (("The mother tongue of ", "Rome"), ("", "capital"), ("You can see ", "I"))
    for name in ("Anna Lind", "Berlin", "Germany")
)
WINDOWS = {"mistral", "qwen2", "gemma2", "gemma3_text"}
every_family = pytest.mark.parametrize("family", tiered(tiny.CAUSAL))


def sequences(target: LM) -> list[tuple[int, ...]]:
    """What stands before the subjects' last tokens; one has nothing before it."""
    rows = [
        target.text.row(edit.prompt, subject=edit.subject, prefix=front)
        for front in FRONTS
        for edit in EDITS
    ]
    return [row.ids[: row.subject_last] for row in rows] + [()]


def plain(target: LM, ids: list[tuple[int, ...]]) -> object:
    return target.call(target.pad(ids, left=True), use_cache=True).past_key_values


@every_family
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)], ids=str
)
def test_the_past_is_that_of_the_plain_pass(
    family: str, dtype: torch.dtype, tolerance: float
) -> None:
    target = lm(family, dtype)
    ids = sequences(target)
    real = target.pad(ids, left=True).mask.bool()
    with target.at_rest(), torch.no_grad():
        found, whole = past_of(target, ids), plain(target, ids)
    assert module.SHARES_PREFIXES(target)[()] is (family not in WINDOWS)
    for mine, its in zip(found.layers, whole.layers, strict=True):
        assert type(mine) is type(its)
        for name in ("keys", "values"):
            a, b = getattr(mine, name), getattr(its, name)
            assert a.shape == b.shape
            if family not in WINDOWS:  # which keep the last tokens alone
                a, b = (each.transpose(1, 2)[real] for each in (a, b))
            assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neo", "bloom", "mpt"])
def test_a_search_that_shares_finds_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    search = ValueOptions(4, v_lr=0.3, v_weight_decay=0.5, clamp_norm_factor=4.0, kl_factor=0.0625)
    target, site = shared_lm(family), Site(1, "block")
    shared: list[int] = []
    once = module._shared
    monkeypatch.setattr(
        module, "_shared", lambda *given: shared.append(len(given[1])) or once(*given)
    )
    found = optimize_values(target, site, EDITS, ("", *FRONTS), search, memory=2**30)
    assert max(shared) >= len(EDITS) * (1 + len(FRONTS))
    slow = optimize_values(target, site, EDITS, ("", *FRONTS), search, resume=False)
    for mine, its in zip(found.losses, slow.losses, strict=True):
        assert mine == pytest.approx(its, rel=1e-4)


def test_what_is_shared_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    target, seen = lm("llama"), []
    ids = sequences(target)
    past_of(target, ids)  # which also compares the two ways
    call = LM.call
    monkeypatch.setattr(
        LM,
        "call",
        lambda self, batch, **more: seen.append(batch.ids.shape) or call(self, batch, **more),
    )
    past_of(target, ids)
    heads, _ = shared_prefixes(ids)
    assert [shape[0] for shape in seen] == [len(heads), len(ids)]
    assert sum(a * b for a, b in seen) < 0.75 * len(ids) * max(map(len, ids))
    seen.clear()
    past_of(target, ids[:1])  # nothing to share
    past_of(target, [ids[0], ids[9]])  # two fronts
    assert [shape[0] for shape in seen] == [1, 2]


def test_a_batch_without_padding_proves_nothing() -> None:
    target = lm("llama")
    same = [(5, 6, 7, 8, 9, 10, 11, last) for last in range(12, 18)]
    with torch.no_grad():
        past_of(target, same)
        assert not module.SHARES_PREFIXES(target)
        past_of(target, [*same, same[0] + (1, 2), (3, 4)])
    assert module.SHARES_PREFIXES(target)[()] is True


def test_a_model_that_disagrees_runs_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    target = lm("llama")
    ids = sequences(target)
    whole = plain(target, ids)
    honest = module._shared

    def wrong(*given: object) -> object:
        cache = honest(*given)
        cache.layers[1].values = cache.layers[1].values.roll(1, 2)
        return cache

    monkeypatch.setattr(module, "_shared", wrong)
    with torch.no_grad():
        found = past_of(target, ids)
    assert module.SHARES_PREFIXES(target)[()] is False
    for mine, its in zip(found.layers, whole.layers, strict=True):
        assert torch.equal(mine.values, its.values)


@pytest.mark.parametrize(
    ("ids", "heads", "whose"),
    [
        ([(1, 2, 3, 4, 5), (1, 2, 3, 4, 6, 7)], [(1, 2, 3, 4)], [0, 0]),
        ([(1, 2, 3, 4, 5), (1, 2, 3, 4, 5)], [(1, 2, 3, 4)], [0, 0]),  # something must follow
        ([(1, 2, 3, 4, 5, 6), (1, 2, 3, 4)], [(1, 2, 3, 4)], [0, 0]),  # the shorter is all of it
        ([(1, 2, 3, 4), (1, 2, 3, 9)], [(1, 2, 3, 4), (1, 2, 3, 9)], [0, 1]),  # too little
        ([(), (5,), ()], [(), (), (5,)], [0, 2, 1]),
        (
            [(9, 1, 2, 3, 4), (1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 5, 7), (1, 2, 3, 4, 8)],
            [(1, 2, 3, 4), (9, 1, 2, 3, 4)],
            [1, 0, 0, 0],
        ),
        (
            [(1, 2, 3, 4, *range(10, 20), 5), (1, 2, 3, 4, *range(10, 20), 6), (1, 2, 3, 4, 7, 8)],
            [(1, 2, 3, 4, 7, 8), (1, 2, 3, 4, *range(10, 20))],
            [1, 1, 0],
        ),
    ],
    ids=["two", "equal", "contained", "too short", "empty", "several", "opening alike"],
)
def test_beginnings(
    ids: list[tuple[int, ...]], heads: list[tuple[int, ...]], whose: list[int]
) -> None:
    assert shared_prefixes(ids) == (heads, whose)
