"""Locate-and-edit methods on a model with an encoder: where a fact is read and written."""

from __future__ import annotations

import pytest
import torch

import outer
from easyeditor import LM, BaseEditor, Edit, MEMITHyperParams, ROMEHyperParams
from easyeditor.associative.contexts import context_prefixes
from easyeditor.associative.keys import keys_at, subject_rows, values_at, write_scale
from easyeditor.associative.value_optimization import ValueOptions, optimize_values
from easyeditor.data.corpus import own_texts
from easyeditor.errors import HyperParamsError
from easyeditor.lm.forward.partial import RESUMABLE, EditRow, FullForward, PartialForward, Site
from easyeditor.second_moments import moments
from support import CONTEXTS, lm

EDITS = (
    Edit("The mother tongue of Anna Lind is", "Italy well", subject="Anna Lind"),
    Edit("You can see Berlin in", "Rome", subject="Berlin"),
)
SEARCH = ValueOptions(5, v_lr=0.3, v_weight_decay=0.5, clamp_norm_factor=4.0, kl_factor=0.0625)
SITES = [Site(0, "down"), Site(1, "down"), Site(0, "block"), Site(1, "block")]
every_site = pytest.mark.parametrize("site", SITES, ids=lambda site: f"{site.kind}{site.layer}")
both_columns = pytest.mark.parametrize("encoder", [True, False], ids=["encoder", "decoder"])


def column(encoder: bool) -> LM:
    target = lm("t5")
    return target.encoder_side() if encoder else target


def runs(target: LM) -> list[EditRow]:
    found = []
    for edit in EDITS:
        for context in CONTEXTS:
            row = target.text.row(edit.prompt, edit.target, subject=edit.subject, prefix=context)
            at = row.subject_last if target.in_encoder else 0
            found.append(EditRow(row.ids, at, tuple(range(len(row.target))), row.target))
    return found


def test_the_encoders_view_is_the_same_model() -> None:
    target = lm("t5", num_layers=4, num_decoder_layers=2)
    view = target.encoder_side()
    assert (view.n_layers, target.n_layers) == (4, 2)
    assert view.model is target.model
    assert view.projection(3).path.startswith("encoder.block.3")
    assert target.projection(1).path.startswith("decoder.block.1")
    assert view.caches is target.encoder_side().caches
    assert view.caches is not target.caches
    assert lm("gpt2").encoder_side().in_encoder is False


@both_columns
@every_site
def test_resumed_logits_and_gradients_are_the_plain_ones(site: Site, encoder: bool) -> None:
    target, seen = column(encoder), []
    noise = torch.randn(len(runs(target)), 32, generator=torch.Generator().manual_seed(3))
    for kind in (PartialForward, FullForward):
        delta = noise.clone().requires_grad_()
        with target.at_rest():
            opened = kind(target, site, runs(target))
            logits = opened.logits(delta)
            kept = opened.keep(torch.tensor([0, 3])).logits(delta[[0, 3]])
        logits.log_softmax(-1).square().sum().backward()
        seen.append((logits.detach(), kept.detach(), delta.grad))
    for fast, plain in zip(*seen, strict=True):
        assert plain.norm() > 1e-3
        assert (fast - plain).norm() <= 1e-4 * plain.norm()


@both_columns
@every_site
def test_the_search_finds_the_same(site: Site, encoder: bool) -> None:
    target = column(encoder)
    found = optimize_values(target, site, EDITS, CONTEXTS, SEARCH)
    assert RESUMABLE(target)[site, False, False, False]
    plain = optimize_values(target, site, EDITS, CONTEXTS, SEARCH, resume=False)
    assert found.delta.norm(dim=1).min() > 0.1
    for mine, its in zip(found.losses, plain.losses, strict=True):
        assert mine == pytest.approx(its, rel=1e-4)
        assert mine[-1] < mine[0]


@both_columns
def test_keys_and_values_are_what_a_whole_pass_shows(encoder: bool) -> None:
    """Read by hooks of the test's own, row by row, with nothing of ours in between."""
    target = column(encoder)
    rows = [subject_rows(target, edit, [""])[0] for edit in EDITS]
    keys = keys_at(target, [0, 1], rows)
    values = values_at(target, Site(1, "block"), rows)
    blocks = target.model.encoder.block if encoder else target.model.decoder.block
    down = blocks[1].layer[-1].DenseReluDense.wo
    for i, edit in enumerate(EDITS):
        seen: dict[str, torch.Tensor] = {}
        hooks = [
            down.register_forward_pre_hook(lambda _m, a, seen=seen: seen.update(key=a[0])),
            blocks[1].register_forward_hook(lambda _m, _a, o, seen=seen: seen.update(value=o[0])),
        ]
        ids = target.tokenizer(edit.prompt.text)["input_ids"]
        with torch.no_grad():
            target.model(torch.tensor([ids]), decoder_input_ids=torch.tensor([[0]]))
        for hook in hooks:
            hook.remove()
        at = rows[i].subject_last if encoder else 0
        assert torch.allclose(keys[1][i], seen["key"][0, at], atol=1e-5)
        assert torch.allclose(values[i], seen["value"][0, at], atol=1e-5)
    assert write_scale(target, 1) == pytest.approx(1.0, abs=1e-3)


def test_prefixes_and_statistics_need_nothing_from_outside() -> None:
    target = lm("t5").encoder_side()
    prefixes = context_prefixes(target, ((5, 2), (10, 3)))
    assert prefixes[0] == ""
    assert len(set(prefixes)) == 6
    assert sum(len(text.split()) for text in own_texts()) > 15_000
    encoder = moments(target, [0, 2], tokens=300)
    decoder = moments(lm("t5"), [2], tokens=300)
    assert encoder[2].tokens == 300
    assert decoder[2].tokens > 100  # half of the text goes to the encoder
    assert not torch.allclose(encoder[2].matrix, decoder[2].matrix)


@pytest.mark.parametrize("place", ["subject_last", "decoder_first"])
@pytest.mark.parametrize("kind", [ROMEHyperParams, MEMITHyperParams])
def test_an_edit_takes_and_is_undone(kind: type, place: str) -> None:
    settings = kind(
        layers=[1] if kind is ROMEHyperParams else [0, 1],
        fact_token=place,
        mom2_n_tokens=400,
        v_num_grad_steps=40,
        clamp_norm_factor=20,
        v_weight_decay=1e-3,
        **({} if kind is ROMEHyperParams else {"mom2_update_weight": 1}),
    )
    editor = BaseEditor(lm("t5"), settings)
    before = outer.bits(editor.model)
    result = editor.edit(EDITS[1].prompt, EDITS[1].target, subject=EDITS[1].subject)
    column_name = "encoder" if place == "subject_last" else "decoder"
    assert all(path.startswith(column_name) for path in result.patch.entries)
    chance = [result.metrics[0][when]["rewrite_prob"]["target_new"] for when in ("pre", "post")]
    assert chance[1] > 2 * chance[0]  # random weights; on what a model knows: the zoo
    editor.undo(result.patch)
    assert outer.changed(editor.model, before) == []


def test_a_decoders_place_in_a_model_without_encoder() -> None:
    settings = ROMEHyperParams(layers=[1], fact_token="decoder_first")
    editor = BaseEditor(lm("gpt2"), settings)
    before = outer.bits(editor.model)
    with pytest.raises(HyperParamsError, match=r"no encoder.*subject_last"):
        editor.edit(EDITS[1].prompt, EDITS[1].target, subject=EDITS[1].subject)
    assert outer.changed(editor.model, before) == []


def test_more_layers_than_the_encoder_has() -> None:
    model = lm("t5", num_layers=2, num_decoder_layers=4)
    with pytest.raises(HyperParamsError, match="2 layers"):
        BaseEditor(model, ROMEHyperParams(layers=[3])).edit(
            EDITS[1].prompt, EDITS[1].target, subject=EDITS[1].subject
        )
