"""MELO: the router's decision reaches the blocks above it; whose block answers; what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from easyeditor import Edit, MELOHyperParams, Prompt
from easyeditor.errors import HyperParamsError
from easyeditor.lm.forward.context import ForwardContext
from easyeditor.lm.inference import score
from easyeditor.methods.melo.melo import MELO, _number
from easyeditor.methods.melo.router import BlockRouter, RoutedProduct
from easyeditor.patches.patch import merge
from easyeditor.patches.stack import applied
from support import EDITS, Snapshot, lm

QUICK: dict[str, Any] = {"layers": [1], "n_iter": 6, "edit_lr": 0.2, "init_radius": 0.05}


def router(keys: list[list[float]], blocks: list[int]) -> BlockRouter:
    ones = torch.ones(len(keys))
    return BlockRouter(torch.tensor(keys), torch.tensor(blocks), ones, "below")


def product(block: int, value: float) -> RoutedProduct:
    factors = torch.ones(2, 1), torch.full((1, 2), value)
    return RoutedProduct(*factors, torch.tensor(block), "below")


def test_each_row_gets_the_block_of_its_nearest_key_or_none() -> None:
    below = BlockRouter.merge([router([[0.0, 0.0]], [7]), router([[9.0, 0.0]], [8])])
    above = RoutedProduct.merge([product(7, 1.0), product(8, 10.0)])
    hidden = torch.tensor([[[0.5, 0.0]], [[9.0, 0.5]], [[4.0, 4.0]]])
    context = ForwardContext(torch.ones(3, 1), torch.zeros(3, dtype=torch.long))
    x, y = torch.ones(3, 1, 2), torch.zeros(3, 1, 2)
    assert above(x, y, context) is y  # nothing is decided yet
    assert below(hidden, hidden, context) is hidden
    assert above(x, y, context)[:, 0].tolist() == [[2, 2], [20, 20], [0, 0]]
    twice = RoutedProduct.merge([product(7, 1.0), product(7, 3.0)])
    assert twice(x, y, context)[0, 0].tolist() == [6, 6]  # the later of two of one number


def test_a_block_of_several_edits_answers_them_and_comes_off_whole() -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    method = MELO(MELOHyperParams(**QUICK, lora_layers=[2], target_modules=["q_proj", "down_proj"]))
    pairs = [(edit.prompt, edit.target) for edit in EDITS]
    plain = score(target, pairs)
    patch = method.edit(target, EDITS).patch
    assert set(patch.adapters) == {
        "model.layers.1.mlp.down_proj",
        "model.layers.2.mlp.down_proj",
        "model.layers.2.self_attn.q_proj",
    }
    with applied(target.model, merge([patch])):
        edited = score(target, pairs)
    assert all(b.mean_logprob > a.mean_logprob + 0.2 for a, b in zip(plain, edited, strict=True))
    assert before.differences(target.model) == []


def test_a_classic_file_names_the_router_and_whole_modules() -> None:
    data = {
        "alg_name": "MELO",
        "grace": {"num_iter": 3, "init_radius": 0.5, "num_edit_per_block": 4, "edit_lr": 0.1},
        "model": {
            "name": "./hugging_cache/gpt2",
            "grace_layer": "transformer.h[1].mlp.c_fc.weight",
            "target_modules": ["transformer.h.2.mlp.c_fc"],
        },
        "lora": {"lora_r": 64},
    }
    settings = MELOHyperParams(**data)
    assert (settings.n_iter, settings.batch_size, settings.init_radius) == (3, 4, 0.5)
    assert settings.model_name == "./hugging_cache/gpt2"
    patch = MELO(settings).edit(lm("gpt2"), EDITS[:1]).patch
    assert list(patch.adapters) == ["transformer.h.1.mlp.c_fc", "transformer.h.2.mlp.c_fc"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": [2]}, "blocks above it"),
        ({"lora_layers": [0, 2]}, "blocks above it"),
        ({"lora_layers": [9]}, "outside"),
        ({"target_modules": ["wrong_proj"]}, "has a module named"),
        ({"target_modules": ["model.layers.0.mlp.up_proj"]}, "blocks above it"),
        ({"target_modules": ["model.layers.2.mlp.wrong"]}, "wrong"),
    ],
)
def test_layers_below_the_router_or_unknown_are_refused(
    changes: dict[str, Any], words: str
) -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    with pytest.raises(HyperParamsError, match=words):
        MELO(MELOHyperParams(**{**QUICK, **changes})).edit(target, EDITS[:1])
    assert before.differences(target.model) == []


@pytest.mark.parametrize("changes", [{"blocks": [-1]}, {"blocks": [1, 2]}, {"keys": [1.0]}])
def test_tensors_that_are_no_router_are_refused(changes: dict[str, Any]) -> None:
    tensors = {"keys": [[1.0]], "blocks": [1], "initial_radii": [1.0], **changes}
    with pytest.raises(ValueError, match="block"):
        BlockRouter(**{k: torch.tensor(v) for k, v in tensors.items()}, router="below")
    with pytest.raises(ValueError, match="factors"):
        RoutedProduct(torch.ones(2, 1), torch.ones(2, 2), torch.tensor(1), "below")


def test_forms_of_one_sentence_are_blocks_of_their_own() -> None:
    plain, chat = (Edit(Prompt("Rome is in", chat=form), "France") for form in (None, True))
    assert _number([plain]) == _number([Edit("Rome is in", "France")]) != _number([chat])
