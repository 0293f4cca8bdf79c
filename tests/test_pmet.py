"""PMET: two vectors at one layer, each in its own ball; what is written; when the search ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from easyeditor import PMETHyperParams
from easyeditor.associative.keys import subject_rows, values_at
from easyeditor.associative.value_optimization import optimize_values
from easyeditor.errors import UnsupportedModelError
from easyeditor.lm.families import BlockStack
from easyeditor.lm.forward.partial import EditRow, FullForward, Site, open_forward
from easyeditor.methods.pmet import PMET
from support import EDITS, Snapshot, lm

QUICK = {"layers": [0, 1], "context_template_length_params": (), "mom2_adjustment": False}


def both(target_lm: object, layer: int = 1) -> Site:
    site, _, scale = PMET(PMETHyperParams(**QUICK))._where(target_lm, [0, layer])
    assert scale == 1
    return site


@pytest.mark.parametrize("family", ["llama", "gptj", "opt"])
def test_two_vectors_are_added_at_one_layer_and_the_search_resumes_there(family: str) -> None:
    target = lm(family)
    site = both(target)
    row = target.text.row(EDITS[0].prompt, EDITS[0].target, subject=EDITS[0].subject)
    at = row.subject_last
    runs = [EditRow(row.ids[:-1], at, tuple(range(row.prompt_length - 1, len(row.ids) - 1)))]
    width = target.projection(1).d_out
    draw = torch.Generator().manual_seed(0)
    delta, other = (torch.randn(1, width, generator=draw) for _ in range(2))
    with target.at_rest(), torch.no_grad():
        down = FullForward(target, Site(1, "down"), runs).logits(delta)
        zero = torch.zeros_like(other)
        alone = FullForward(target, site, runs).logits(torch.cat([delta, zero], 1))
        plain = FullForward(target, site, runs).logits(torch.cat([delta, other], 1))
        resumed = open_forward(target, site, runs).logits(torch.cat([delta, other], 1))
    assert torch.equal(alone, down)
    assert not torch.allclose(plain, down, atol=1e-2)
    torch.testing.assert_close(resumed, plain, rtol=0, atol=1e-3)


def test_each_vector_stays_in_a_ball_of_its_own() -> None:
    target = lm("llama")
    site = both(target)
    search = PMETHyperParams().search()
    assert (search.argmax_nll_factor, search.argmax_stop_kl) == (0.1, 0.01)
    search = replace(
        search,
        v_num_grad_steps=12,
        v_lr=0.5,
        v_weight_decay=0,
        kl_factor=0,
        clamp_norm_factor=0.3,
        argmax_stop_kl=None,
    )
    result = optimize_values(target, site, EDITS[:2], [""], search)
    rows = [subject_rows(target, edit, [""])[0] for edit in EDITS[:2]]
    width = target.projection(1).d_out
    for part, delta in zip(site.parts(), result.delta.split(width, 1), strict=True):
        longest = 0.3 * values_at(target, part, rows).norm(dim=1)
        assert (delta.norm(dim=1) <= longest * 1.001).all()
        assert (delta.norm(dim=1) > 0).all()
    free = optimize_values(target, site, EDITS[:1], [""], replace(search, clamp_norm_factor=9))
    assert free.losses[0][-1] < result.losses[0][-1]


def test_only_the_vector_at_the_mlp_is_written_and_by_roots() -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    settings = PMETHyperParams(**QUICK, v_num_grad_steps=3)
    assert [settings.share(left) for left in (4, 1)] == [2, 1]
    patch = PMET(settings).edit(target, EDITS).patch
    assert {path.rpartition(".mlp.")[2] for path in patch.entries} == {"down_proj.weight"}
    assert before.differences(target.model) == []


def test_a_block_without_attention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    stack = replace(target.family.decoder, attn_out="")
    assert isinstance(stack, BlockStack)
    target.family = replace(target.family, decoder=stack)
    with pytest.raises(UnsupportedModelError, match="no attention"):
        PMET(PMETHyperParams(**QUICK)).edit(target, EDITS)
    assert before.differences(target.model) == []
