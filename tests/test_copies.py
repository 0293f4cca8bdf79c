"""An edited copy and its original are used, and edited again, side by side."""

import pytest

import tiny
from easyeditor.edits import Edit
from easyeditor.lm import LM
from easyeditor.methods import METHODS
from easyeditor.patches.copies import edited_copy
from support import EDITS, Snapshot


def patch_of(lm, layer, edit: Edit = EDITS[0]):
    kind = METHODS.get("FT")
    return kind(kind.hyperparams_class(layers=[layer], num_steps=2)).edit(lm, [edit]).patch


@pytest.mark.parametrize("order", ["original first", "copy first"])
def test_editing_one_layer_of_either_does_not_reach_the_other(order):
    lm = LM(tiny.model("llama"), tiny.tokenizer())
    first, later = patch_of(lm, 0), patch_of(lm, 2)
    untouched = Snapshot(lm.model)
    copy = edited_copy(lm.model, first)
    before = Snapshot(copy)
    one, other, seen = (
        (lm.model, copy, before) if order == "original first" else (copy, lm.model, untouched)
    )
    later.apply(one)
    assert seen.differences(other) == []
    later.revert(one)
    assert untouched.differences(lm.model) == []
    assert before.differences(copy) == []
    first.revert(copy)
    own = dict(copy.named_parameters())
    assert all((p == own[name]).all() for name, p in lm.model.named_parameters())
