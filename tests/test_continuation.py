"""The divergence term behind the target, which a value search may take."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from easyeditor import Edit, ROMEHyperParams
from easyeditor.associative.continuation import continuation_rows
from easyeditor.associative.value_optimization import ValueOptions, optimize_values
from easyeditor.lm.forward.partial import FullForward, Site
from easyeditor.lm.sampling import greedy_tokens
from support import CONTEXTS, EDITS, shared_lm

SITE = Site(1, "down")
SEARCH = ValueOptions(4, v_lr=0.3, v_weight_decay=0.0, clamp_norm_factor=4.0, kl_factor=0.0625)
KEEPING = replace(SEARCH, continuation_kl_factor=0.5, continuation_tokens=3)


def divergence(target, edit: Edit, delta: torch.Tensor) -> float:
    """Mean KL behind the target by whole passes, without and with δ."""
    (row,) = continuation_rows(target, [edit], 1.0, 3)
    forward = FullForward(target, SITE, [row.run])
    with target.at_rest(), torch.no_grad():
        first, now = (forward.logits(d[None]).log_softmax(-1) for d in (0 * delta, delta))
    return float((first.exp() * (first - now)).sum(-1).mean())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_rows_read_the_target_and_what_the_model_goes_on_with(family: str) -> None:
    target = shared_lm(family)
    rows = continuation_rows(target, EDITS, 0.5, 3)
    for i, (row, edit) in enumerate(zip(rows, EDITS, strict=True)):
        joined = target.text.row(edit.prompt, edit.target).ids
        (written,) = greedy_tokens(target, [joined], 2)
        assert row.run.ids == joined + written
        assert row.run.reads == tuple(range(len(joined) - 1, len(joined) + len(written)))
        assert (row.edit, row.target, row.weight) == (i, (), 0.5 / len(row.run.reads))
        logits = target.model(torch.tensor([row.run.ids])).logits[0]
        best = logits[list(row.run.reads[:-1])].argmax(-1)
        assert tuple(best.tolist()) == written


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_loss_holds_the_divergence_behind_the_target(family: str) -> None:
    target, edit = shared_lm(family), EDITS[0]
    short = replace(SEARCH, v_num_grad_steps=2)
    plain = optimize_values(target, SITE, [edit], CONTEXTS, short)
    wide = replace(short, continuation_kl_factor=0.5, continuation_tokens=3)
    keeping = optimize_values(target, SITE, [edit], CONTEXTS, wide)
    assert keeping.losses[0][0] == pytest.approx(plain.losses[0][0], rel=1e-5)
    more = keeping.losses[0][1] - plain.losses[0][1]  # Adam's first step has the gradient's sign
    assert more == pytest.approx(0.5 * divergence(target, edit, keeping.delta[0]), rel=0.05)


def test_the_text_behind_the_target_changes_less() -> None:
    target = shared_lm("llama")
    strong = replace(SEARCH, v_num_grad_steps=12)
    plain = optimize_values(target, SITE, EDITS[:2], CONTEXTS, strong)
    keeping = replace(strong, continuation_kl_factor=100.0, continuation_tokens=3)
    less = optimize_values(target, SITE, EDITS[:2], CONTEXTS, keeping)
    for edit, loose, held in zip(EDITS, plain.delta, less.delta, strict=False):
        assert divergence(target, edit, held) < 0.8 * divergence(target, edit, loose)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_resumed_and_batched_searches_agree_with_plain_ones(family: str) -> None:
    target = shared_lm(family).encoder_side()
    together = optimize_values(target, SITE, EDITS, CONTEXTS, KEEPING)
    plain = optimize_values(target, SITE, EDITS, CONTEXTS, KEEPING, resume=False)
    assert (together.delta - plain.delta).norm() < 1e-3 * plain.delta.norm()


def test_edits_that_stop_early_leave_the_batch() -> None:
    target = shared_lm("llama")
    stopping = replace(KEEPING, v_num_grad_steps=8, v_stop_argmax=True)
    together = optimize_values(target, SITE, EDITS, CONTEXTS, stopping)
    steps = [len(losses) for losses in together.losses]
    for i, edit in enumerate(EDITS):
        alone = optimize_values(target, SITE, [edit], CONTEXTS, stopping)
        assert len(alone.losses[0]) == steps[i]
        assert (together.delta[i] - alone.delta[0]).norm() < 1e-3 * alone.delta[0].norm()


def test_the_settings_reach_the_search_and_are_off_by_default() -> None:
    assert ROMEHyperParams().search().continuation_kl_factor == 0
    search = ROMEHyperParams(continuation_kl_factor=0.25, continuation_tokens=5).search()
    assert (search.continuation_kl_factor, search.continuation_tokens) == (0.25, 5)
