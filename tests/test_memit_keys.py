"""A later batch with ``protect_edits`` leaves earlier edits their answers; which keys count."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from easyeditor import Edit
from easyeditor.associative.contexts import context_prefixes
from easyeditor.associative.keys import keys_at, subject_rows
from easyeditor.lm.model import LM
from easyeditor.methods.memit import MEMIT, MEMITHyperParams
from easyeditor.patches.weight import WeightPatch
from support import EDITS, Snapshot, lm, same_bits

FIRST, LATER = EDITS[:2], EDITS[2:]
LAYER = 1


def memit(**changes: Any) -> MEMIT:
    settings = {
        "layers": [LAYER],
        "v_num_grad_steps": 3,
        "mom2_adjustment": False,
        "mom2_update_weight": 1e-4,
        "context_template_length_params": (),
    }
    return MEMIT(MEMITHyperParams(**{**settings, **changes}))


def moved(model: LM, patch: WeightPatch, edits: tuple[Edit, ...]) -> float:
    """How far ``patch`` moves what the layer says about the subjects of ``edits``."""
    rows = [subject_rows(model, edit, [""])[0] for edit in edits]
    change = patch.entries[model.projection(LAYER).path][0].dense()
    return float((keys_at(model, [LAYER], rows)[LAYER] @ change).norm())


def change(patch: WeightPatch) -> torch.Tensor:
    (parts,) = patch.entries.values()
    return parts[0].dense()


@pytest.fixture
def applied() -> tuple[LM, WeightPatch]:
    model = lm("llama")
    first = memit().edit(model, FIRST).patch
    first.apply(model.model)
    return model, first


def test_earlier_edits_keep_what_they_wrote(applied: tuple[LM, WeightPatch]) -> None:
    model, _ = applied
    before = Snapshot(model.model)
    free, careful = (memit(protect_edits=on).edit(model, LATER).patch for on in (False, True))
    assert not before.differences(model.model)
    assert moved(model, careful, FIRST) < 1e-3 * moved(model, free, FIRST)
    assert moved(model, careful, LATER) == pytest.approx(moved(model, free, LATER), rel=1e-3)
    assert careful.info.edits == LATER
    assert careful.entries[model.projection(LAYER).path][0].u.shape[1] == len(LATER)


def test_without_earlier_edits_it_changes_nothing() -> None:
    model = lm("llama")
    assert same_bits(
        *(change(memit(protect_edits=on).edit(model, LATER).patch) for on in (False, True))
    )


def test_an_edit_that_is_undone_is_not_protected(applied: tuple[LM, WeightPatch]) -> None:
    model, first = applied
    first.revert(model.model)
    assert same_bits(
        *(change(memit(protect_edits=on).edit(model, LATER).patch) for on in (False, True))
    )


def test_the_same_subject_edited_anew_gives_way(applied: tuple[LM, WeightPatch]) -> None:
    model, _ = applied
    anew = (Edit(FIRST[0].prompt, "Rome", subject=FIRST[0].subject), *LATER)
    patch = memit(protect_edits=True).edit(model, anew).patch
    assert moved(model, patch, FIRST[:1]) > 1e3 * moved(model, patch, FIRST[1:])


@pytest.mark.parametrize("on", [False, True])
def test_every_context_has_its_own_key(applied: tuple[LM, WeightPatch], on: bool) -> None:
    """With next to no slack the answer is stored under each, and not only under their mean."""
    model, _ = applied
    made = {
        key: memit(key=key, context_template_length_params=[[3, 2]], protect_edits=on)
        .edit(model, LATER)
        .patch
        for key in ("averaged", "ridge")
    }
    contexts = context_prefixes(model, ((3, 2),))
    rows = subject_rows(model, LATER[0], contexts)
    keys = keys_at(model, [LAYER], rows)[LAYER]
    spread = {}
    for key, patch in made.items():
        said = keys @ change(patch)
        spread[key] = float((said - said.mean(0)).norm() / said.norm())
    assert len(rows) == 3
    assert spread["ridge"] < 0.05 < spread["averaged"]
