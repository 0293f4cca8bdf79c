"""States of methods come from the unedited model, whatever wrapper asks and whatever it carries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cases import BY_NAME
from easyeditor import LM, FTHyperParams, load_patch, save_patch
from easyeditor.methods import METHODS
from easyeditor.methods.base import State
from easyeditor.methods.ft import FT
from easyeditor.patches.stack import applied, without_patches
from support import EDITS, lm, same_bits, shared_lm


def strong(target: LM):
    """An edit after which the model samples other texts."""
    settings = FTHyperParams(layers=[0, 1, 2], num_steps=20, lr=0.1)
    return FT(settings).edit(target, EDITS[2:]).patch


@pytest.mark.parametrize("name", ["ROME", "MEMIT"])
def test_two_wrappers_give_the_same_patch(name: str, corpus: str, stats_dir: str) -> None:
    quick = {**BY_NAME[name].quick, "mom2_dataset": corpus, "stats_dir": stats_dir}
    method = METHODS.get(name)(METHODS.get(name).hyperparams_class(**quick))
    first = lm("llama")
    expected = method.edit(first, EDITS[:1]).patch
    with applied(first.model, strong(first)):
        second = LM(first.model, first.tokenizer)
        state = method.initial_state(second)
        with without_patches(first.model):
            patch = method.edit(second, EDITS[:1], state).patch
    for path, parts in expected.entries.items():
        assert same_bits(patch.entries[path][0].u, parts[0].u)
        assert same_bits(patch.entries[path][0].v, parts[0].v)


@dataclass(frozen=True)
class Mixed(State):
    count: int
    mean: torch.Tensor
    by_layer: dict[str, torch.Tensor]
    names: tuple[str, ...] = ()


def test_a_state_of_tensors_and_json_is_read_back() -> None:
    state = Mixed(3, torch.arange(3.0), {"a": torch.ones(2), "b/c": torch.zeros(1)}, ("x", "y"))
    tensors, data = state.dump()
    again = Mixed.load(tensors, {key: list(v) if key == "names" else v for key, v in data.items()})
    assert (again.count, again.names) == (3, ("x", "y"))
    assert torch.equal(again.mean, state.mean)
    assert again.by_layer.keys() == state.by_layer.keys()


def test_protected_keys_leave_with_their_patch(tmp_path: Path) -> None:
    from easyeditor import MEMITHyperParams
    from easyeditor.associative.protected_keys import protected_keys

    target = lm("llama")
    settings = MEMITHyperParams(
        layers=[1],
        v_num_grad_steps=3,
        mom2_adjustment=False,
        context_template_length_params=(),
        protect_edits=True,
    )
    path = target.down_map(1).path
    patches = []
    for edit in EDITS[:2]:
        patch = METHODS.get("MEMIT")(settings).edit(target, [edit]).patch
        patch = load_patch(save_patch(patch, tmp_path / f"{len(patches)}.safetensors"))
        patch.apply(target.model)
        patches.append(patch)
    both = protected_keys(target.model, path, EDITS[2:])
    assert both.shape == (2, target.down_map(1).d_in)
    assert protected_keys(target.model, path, EDITS[:1]).shape[0] == 1  # edited anew
    patches[0].revert(target.model)
    assert same_bits(protected_keys(target.model, path, EDITS[2:]), both[1:])
    patches[1].revert(target.model)
    assert protected_keys(target.model, path, EDITS[2:]) is None


def test_a_state_belongs_to_the_content_of_its_edits(tmp_path: Path) -> None:
    from easyeditor.editors.state_file import load_state, save_state, state_file
    from easyeditor.edits import Edit, ImageRef, Prompt
    from easyeditor.errors import PatchFormatError
    from easyeditor.patches.patch import PatchInfo
    from easyeditor.patches.weight import WeightPatch
    from easyeditor.tensor_file import read_tensor_file, write_tensor_file

    def patch(path: str, target: str):
        prompt = Prompt("The tower is in", (ImageRef(path, "ab" * 32),))
        edits = [Edit(prompt, target)]
        info = PatchInfo.of(shared_lm("llama"), "MIXED", edits, FTHyperParams(), {})
        return WeightPatch({}, info)

    file = tmp_path / "edit.safetensors"
    save_state(Mixed(1, torch.ones(1), {}), patch("here/a.png", "Rome"), file)
    assert load_state(Mixed, patch("there/a.png", "Rome"), file).count == 1
    with pytest.raises(PatchFormatError, match="belongs to another patch"):
        load_state(Mixed, patch("here/a.png", "Lyon"), file)
    content = read_tensor_file(state_file(file), "easyedit-state", "", "", PatchFormatError)
    former = {**content.header, "format": 1, "edits": "of another Python"}
    write_tensor_file(state_file(file), content.tensors, "easyedit-state", former)
    assert load_state(Mixed, patch("there/a.png", "Rome"), file).count == 1
