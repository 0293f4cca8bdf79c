"""Resuming a forward pass gives the numbers of the whole pass; what cannot be resumed is not."""

from __future__ import annotations

import logging

import pytest
import torch

import tiny
import zoo
from easyeditor import LM, Edit
from easyeditor.associative import value_optimization as values
from easyeditor.associative.microbatches import MicroBatch, micro_batches
from easyeditor.associative.value_optimization import OptimizedValues, ValueOptions, optimize_values
from easyeditor.errors import DivergedError
from easyeditor.lm.forward.partial import (
    RESUMABLE,
    EditRow,
    FullForward,
    NotResumable,
    PartialForward,
    Site,
    open_forward,
    stubbed,
)
from support import CONTEXTS, Interrupt, Snapshot, failing_at, lm, noise, shared_lm
from tiers import STRUCTURAL, tiered

# Subjects near the answer (a window of 6 tokens must reach it); the last one opens its prompt.
NEAR = (
    Edit("The mother tongue of Anna Lind is", "Italy well", subject="Anna Lind"),
    Edit("You can see Berlin in", "Rome", subject="Berlin"),
    Edit("The river is the", "city of Paris", subject="The"),
)
SEARCH = ValueOptions(5, v_lr=0.3, v_weight_decay=0.5, clamp_norm_factor=4.0, kl_factor=0.0625)
SITES = [Site(0, "down"), Site(1, "down"), Site(0, "block"), Site(1, "block")]
every_family = pytest.mark.parametrize("family", tiered(tiny.CAUSAL))
every_site = pytest.mark.parametrize("site", SITES, ids=lambda site: f"{site.kind}{site.layer}")
some_families = pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom"])


def runs(target: LM, *, twice: bool = False) -> list[EditRow]:
    """Of different lengths, places and numbers of reads; one starts at the very first token.

    With ``twice`` the vector is added to some a second time, where the answer begins.
    """
    found = []
    for edit in NEAR:
        for context in CONTEXTS:
            row = target.text.row(edit.prompt, edit.target, subject=edit.subject, prefix=context)
            reads = tuple(range(row.prompt_length - 1, len(row.ids) - 1))
            also = reads[:1] if twice and context and reads[0] > row.subject_last else ()
            found.append(EditRow(row.ids[:-1], row.subject_last, reads, also=also))
    assert {len(run.also) for run in found} == ({0, 1} if twice else {0})
    assert min(run.at for run in found) == 0
    return found


def assert_near(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> None:
    assert (a - b).norm() <= tolerance * b.norm()


def assert_same_search(a: OptimizedValues, b: OptimizedValues) -> None:
    assert [len(own) for own in a.losses] == [len(own) for own in b.losses]
    for mine, its in zip(a.losses, b.losses, strict=True):
        assert mine == pytest.approx(its, rel=1e-4)
    for mine, its in zip(a.delta, b.delta, strict=True):
        assert_near(mine, its, 1e-3)


# -- the same numbers ----------------------------------------------------------------------------


@every_site
@every_family
def test_the_search_finds_the_same(family: str, site: Site) -> None:
    # Gemma's loss climbs here from 5.9 to 10.4 in a step, which turns float32's rounding into 1e-3.
    target = lm(family, torch.float64) if family == "gemma" else shared_lm(family)
    found = optimize_values(target, site, NEAR, CONTEXTS, SEARCH)
    assert RESUMABLE(target)[site, True, False, False]
    plain = optimize_values(target, site, NEAR, CONTEXTS, SEARCH, resume=False)
    assert found.delta.norm(dim=1).min() > 0.1
    assert_same_search(found, plain)


@every_site
@every_family
def test_gradients_are_those_of_the_whole_pass(family: str, site: Site) -> None:
    target, seen = shared_lm(family), []
    for kind in (PartialForward, FullForward):
        delta = noise(9, 32).requires_grad_()
        with target.at_rest():
            logits = kind(target, site, runs(target, twice=True)).logits(delta)
        (logits.log_softmax(-1) * noise(*logits.shape)).sum().backward()
        seen.append((logits.detach(), delta.grad))
    (fast, fast_gradient), (whole, gradient) = seen
    assert_near(fast, whole, 1e-5)
    assert gradient.norm(dim=1).min() > 1e-3
    assert_near(fast_gradient, gradient, 1e-4)


@every_site
@every_family
@pytest.mark.parametrize("kind", [PartialForward, FullForward])
def test_keeping_some_runs_is_opening_only_them(family: str, site: Site, kind: type) -> None:
    target = shared_lm(family)
    delta, all_runs = noise(9, 32), runs(target, twice=True)
    with target.at_rest(), torch.no_grad():
        opened = kind(target, site, all_runs)
        whole = opened.logits(delta)
        few = opened.keep(torch.tensor([0, 2, 3, 7]))
        fewer = few.keep(torch.tensor([1, 3]))
        for kept, rows in ((few, [0, 2, 3, 7]), (fewer, [2, 7])):
            fresh = kind(target, site, [all_runs[i] for i in rows]).logits(delta[rows])
            assert_near(kept.logits(delta[rows]), fresh, 1e-5)
        assert torch.equal(opened.logits(delta), whole)  # the one kept from is as it was


def first_losses(target: LM) -> list[float]:
    """The loss at δ = 0: one unpadded pass per context, no code of the search."""
    losses = []
    for edit in NEAR:
        each = []
        for context in CONTEXTS:
            prompt = target.tokenizer(context + edit.prompt.text)["input_ids"]
            answer = target.tokenizer(" " + edit.target)["input_ids"]
            with torch.no_grad():
                said = target.model(input_ids=torch.tensor([prompt + answer])).logits[0].float()
            at = said[len(prompt) - 1 : -1].log_softmax(-1)
            each.append(float(-at[range(len(answer)), answer].mean()))
        mean = sum(each) / len(each)
        if edit.subject == "The":  # opens the prompt: the bare prompt is half of the mean
            mean = (each[0] + sum(each[1:]) / len(each[1:])) / 2
        losses.append(mean)
    return losses


@pytest.mark.parametrize("family", tiered([*tiny.CAUSAL, "lfm2"], {*STRUCTURAL, "lfm2"}))
@pytest.mark.parametrize("resume", [True, False])
def test_the_first_loss_is_that_of_the_unedited_model(family: str, resume: bool) -> None:
    target = shared_lm(family)
    found = optimize_values(target, Site(1, "down"), NEAR, CONTEXTS, SEARCH, resume=resume)
    assert [own[0] for own in found.losses] == pytest.approx(first_losses(target), rel=1e-4)


@some_families
def test_the_loss_is_answer_plus_divergence_plus_decay(family: str) -> None:
    target, site, edit = shared_lm(family), Site(1, "down"), NEAR[0]
    search = ValueOptions(2, v_lr=0.3, v_weight_decay=0.7, clamp_norm_factor=4.0, kl_factor=0.5)
    found = optimize_values(target, site, [edit], CONTEXTS, search)
    delta = found.delta[0]
    ids = target.tokenizer(edit.subject)["input_ids"]  # of "{subject} is a" nothing later is read
    subject = FullForward(target, site, [EditRow(tuple(ids), len(ids) - 1, (len(ids) - 1,))])
    answers = target.tokenizer(" " + edit.target)["input_ids"] * len(CONTEXTS)
    with target.at_rest(), torch.no_grad():
        first = subject.logits(0 * delta[None]).log_softmax(-1)[0]
        now = subject.logits(delta[None]).log_softmax(-1)[0]
        said = (
            FullForward(target, site, runs(target)[:3]).logits(delta.expand(3, -1)).log_softmax(-1)
        )
    loss = (
        -said[range(len(answers)), answers].mean()
        + 0.5 * (first.exp() * (first - now)).sum()
        + 0.7 * delta.norm() / found.origin[0].norm() ** 2
    )
    assert found.losses[0][1] == pytest.approx(float(loss), rel=1e-4)
    assert found.losses[0][1] != pytest.approx(found.losses[0][0], rel=1e-2)


def test_the_vector_stays_inside_its_ball() -> None:
    target, site = shared_lm("llama"), Site(1, "down")
    search = ValueOptions(4, v_lr=50.0, v_weight_decay=0.0, clamp_norm_factor=0.75, kl_factor=0.0)
    found = optimize_values(target, site, NEAR[:2], CONTEXTS, search)
    torch.testing.assert_close(found.delta.norm(dim=1), 0.75 * found.origin.norm(dim=1))


def test_a_loss_that_is_no_number_is_an_error_and_changes_nothing() -> None:
    target = lm("llama")
    with torch.no_grad():
        target.blocks[2].mlp.down_proj.weight[0, 0] = torch.nan
    before = Snapshot(target.model)
    with pytest.raises(DivergedError, match="nan at step 0"):
        optimize_values(target, Site(1, "down"), NEAR, CONTEXTS, SEARCH)
    assert before.differences(target.model) == []


# -- what cannot be resumed ----------------------------------------------------------------------


@pytest.mark.parametrize("site", [Site(1, "down"), Site(1, "block")], ids=str)
def test_a_hybrid_cache_is_not_resumed(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    target = lm("lfm2")  # short convolutions keep a state that is not keys and values
    with pytest.raises(NotResumable), target.at_rest():
        PartialForward(target, site, runs(target))
    with caplog.at_level(logging.WARNING):
        found = optimize_values(target, site, NEAR, CONTEXTS, SEARCH)
    assert "cannot be resumed" in caplog.text
    assert isinstance(open_forward(target, site, runs(target)), FullForward)
    plain = optimize_values(target, site, NEAR, CONTEXTS, SEARCH, resume=False)
    assert_same_search(found, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mistake", ["tokens", "rows", "nothing finite"])
def test_what_does_not_agree_with_the_whole_pass_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, mistake: str
) -> None:
    wrong = {
        "tokens": lambda logits: logits.flip(-1),
        "rows": lambda logits: logits.roll(1, 0),
        "nothing finite": lambda logits: logits * float("nan"),
    }[mistake]
    target, site = lm("llama", dtype), Site(1, "down")
    honest = PartialForward.logits
    monkeypatch.setattr(PartialForward, "logits", lambda self, delta: wrong(honest(self, delta)))
    with target.at_rest():
        assert isinstance(open_forward(target, site, runs(target)), FullForward)
    monkeypatch.setattr(PartialForward, "logits", honest)
    assert isinstance(
        open_forward(target, site, runs(target)), FullForward
    )  # judged once per model
    assert isinstance(open_forward(lm("llama", dtype), site, runs(target)), PartialForward)
    assert isinstance(
        open_forward(lm("llama", dtype), site, runs(target), resume=False), FullForward
    )


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.float32, FullForward), (torch.bfloat16, PartialForward)], ids=str
)
def test_rounding_is_forgiven_in_half_precision_alone(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, kind: type
) -> None:
    """One of many logits may be far off where all are a little off."""
    target, site = lm("llama", dtype), Site(1, "down")
    honest = PartialForward.logits

    def rounded(self: PartialForward, delta: torch.Tensor) -> torch.Tensor:
        logits = honest(self, delta)
        noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
        return logits + 0.05 * logits.float().std() * noise

    monkeypatch.setattr(PartialForward, "logits", rounded)
    with target.at_rest():
        assert isinstance(open_forward(target, site, runs(target)), kind)


# -- the stubs -----------------------------------------------------------------------------------


@every_family
def test_a_failing_pass_puts_the_blocks_back(family: str) -> None:
    target = lm(family)
    with target.at_rest():
        opened = PartialForward(target, Site(1, "block"), runs(target))
        before = Snapshot(target.model)
        opened.logits(noise(9, 32))
        assert before.differences(target.model) == []
        failing_at(target.blocks[2], 1)
        before = Snapshot(target.model)
        with pytest.raises(Interrupt):
            opened.logits(noise(9, 32))
        assert before.differences(target.model) == []


def test_stubs_hand_on_what_was_stored_and_leave() -> None:
    blocks = shared_lm("llama").blocks
    originals = list(blocks)
    with stubbed(blocks, 2, "stored"):
        assert [blocks[i](object()) for i in (0, 1)] == ["stored", "stored"]
        assert [a is b for a, b in zip(blocks, originals, strict=True)] == [False, False, True]
    assert [a is b for a, b in zip(blocks, originals, strict=True)] == [True] * 3


# -- batching ------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", [True, False])
@some_families
def test_memory_changes_the_batches_and_no_result(
    family: str, resume: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, site, sizes = shared_lm(family), Site(1, "down"), []

    def counted(*given: object) -> list[MicroBatch]:
        made = micro_batches(*given)
        sizes.extend(len(batch.rows) for batch in made)
        return made

    monkeypatch.setattr(values, "micro_batches", counted)
    found, batches = [], []
    for memory in (1, 150_000, None):
        sizes.clear()
        found.append(
            optimize_values(target, site, NEAR, CONTEXTS, SEARCH, resume=resume, memory=memory)
        )
        batches.append(list(sizes))
        assert sum(sizes) == len(NEAR) * (len(CONTEXTS) + 1)  # one KL prompt per edit
    assert batches[0] == [1] * 12
    assert 12 > len(batches[1]) > len(batches[2]) >= 1
    for other in found[1:]:
        assert_same_search(found[0], other)


@some_families
def test_edits_searched_together_are_those_searched_alone(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, site = shared_lm(family), Site(1, "down")
    search = ValueOptions(5, v_lr=0.1, v_weight_decay=0.0, clamp_norm_factor=4.0, kl_factor=0.0625)
    alone = [optimize_values(target, site, [edit], CONTEXTS, search) for edit in NEAR]
    # The edit that is nearest to its answer finishes at its third loss, the others later or never.
    monkeypatch.setattr(values, "STOP_LOSS", min(f.losses[0][2] for f in alone) + 1e-4)
    alone = [optimize_values(target, site, [edit], CONTEXTS, search) for edit in NEAR]
    steps = [len(found.losses[0]) for found in alone]
    assert min(steps) == 3 < max(steps)
    together = optimize_values(target, site, NEAR, CONTEXTS, search)
    delta, origin = (torch.cat([getattr(f, name) for f in alone]) for name in ("delta", "origin"))
    assert_same_search(together, OptimizedValues(delta, origin, [f.losses[0] for f in alone]))


# -- when a search ends ---------------------------------------------------------------------------


def test_a_search_may_end_as_soon_as_the_target_is_said() -> None:
    """On a model that knows something: a random one hears nothing from another token."""
    target, site = zoo.load("gpt2"), Site(2, "down")
    edits = [case.edit for case in zoo.world.cases("train")[:3]]
    usual = {"v_lr": 0.5, "v_weight_decay": 1e-3, "clamp_norm_factor": 10.0, "kl_factor": 0.0625}

    def missed(edit: Edit, delta: torch.Tensor) -> int:
        wrong = 0
        for context in CONTEXTS:  # whole passes, one by one
            row = target.text.row(edit.prompt, edit.target, subject=edit.subject, prefix=context)
            reads = tuple(range(row.prompt_length - 1, len(row.ids) - 1))
            run = EditRow(row.ids[:-1], row.subject_last, reads)
            with target.at_rest(), torch.no_grad():
                best = FullForward(target, site, [run]).logits(delta[None]).argmax(-1)
            wrong += int((best != torch.tensor(row.target)).sum())
        return wrong

    found = optimize_values(
        target, site, edits, CONTEXTS, ValueOptions(40, **usual, v_stop_argmax=True)
    )
    full = optimize_values(target, site, edits, CONTEXTS, ValueOptions(40, **usual))
    steps = [len(losses) for losses in found.losses]
    assert 1 < max(steps) < 40
    assert steps < [len(losses) for losses in full.losses]
    for i, edit in enumerate(edits):
        assert missed(edit, found.delta[i]) == 0
        earlier = optimize_values(
            target, site, [edit], CONTEXTS, ValueOptions(steps[i] - 1, **usual)
        )
        assert missed(edit, earlier.delta[0]) > 0
