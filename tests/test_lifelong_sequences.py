"""Sequences of edits that are killed and taken up again end with the same bits; undo is exact."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from easyeditor import LM, Edit, load_patch, save_patch
from easyeditor.associative.protected_metric import BLOCK_KEYS
from easyeditor.editors.session import EditSession
from easyeditor.editors.state_file import load_state, save_state
from easyeditor.methods import METHODS
from easyeditor.patches.stack import applied_patches
from support import lm, same_bits

CITIES = ("Rome", "Paris", "Berlin", "Vienna", "Madrid")
SETTINGS = {
    "UltraEdit": {"layers": [1], "lr": 1e-4},
    "AlphaEdit": {
        "layers": [0, 1],
        "v_num_grad_steps": 2,
        "anchor_norm": True,
        "context_template_length_params": (),
        "mom2_n_tokens": 200,
    },
}


def edits(n: int) -> list[Edit]:
    return [
        Edit(f"Person {i} lives in the city of", CITIES[i % 5], subject=f"Person {i}")
        for i in range(n)
    ]


@pytest.fixture
def build(corpus: str, stats_dir: str) -> Callable[[str], Any]:
    def built(name: str) -> Any:
        kind = METHODS.get(name)
        settings = dict(SETTINGS[name])
        if "mom2_n_tokens" in settings:
            settings |= {"mom2_dataset": corpus, "stats_dir": stats_dir}
        return kind(kind.hyperparams_class(**settings))

    return built


def again(session: EditSession, method: Any, folder: Path) -> EditSession:
    """What another process makes of the files of a sequence."""
    patches = list(applied_patches(session.lm.model))
    files = [save_patch(patch, folder / f"{i}.safetensors") for i, patch in enumerate(patches)]
    save_state(session.state, patches[-1], files[-1])
    target = lm("llama")
    loaded = [load_patch(file) for file in files]
    for patch in loaded:
        patch.apply(target.model)
    return EditSession(target, method, load_state(method.state_class, loaded[-1], files[-1]))


def run(
    build: Callable[[str], Any],
    name: str,
    sequence: Sequence[Edit],
    killed: Collection[int],
    folder: Path,
) -> EditSession:
    session = EditSession(lm("llama"), build(name))
    for i, edit in enumerate(sequence):
        if i in killed:
            session = again(session, build(name), folder)
        session.keep(session.attempt([edit]))
    return session


def check(build: Callable[[str], Any], name: str, n: int, kills: int, folder: Path) -> None:
    draw = random.Random(0)
    sequence = edits(n)
    whole = run(build, name, sequence, (), folder)
    broken = run(build, name, sequence, draw.sample(range(1, n), kills), folder)
    assert bits_equal(whole.lm, broken.lm)
    (tensors, data), (others, other_data) = whole.state.dump(), broken.state.dump()
    assert data == other_data
    assert all(same_bits(tensors[key], others[key]) for key in tensors)
    undone = draw.randrange(n)
    patches = list(applied_patches(whole.lm.model))
    patches.pop(undone).revert(whole.lm.model)
    fresh = lm("llama")
    for patch in patches:
        load_patch(save_patch(patch, folder / "one.safetensors")).apply(fresh.model)
    assert bits_equal(whole.lm, fresh)


def bits_equal(one: LM, other: LM) -> bool:
    theirs = dict(other.model.named_parameters())
    return all(torch.equal(p, theirs[name]) for name, p in one.model.named_parameters())


@pytest.mark.parametrize("name", SETTINGS)
def test_a_short_sequence_that_is_killed(name: str, build: Any, tmp_path: Path) -> None:
    check(build, name, 6, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_long_sequence_that_is_killed(name: str, build: Any, tmp_path: Path) -> None:
    length = int(os.environ.get("EASYEDITOR_SEQUENCE", 2 * BLOCK_KEYS + 40))
    check(build, name, length, 3, tmp_path)
