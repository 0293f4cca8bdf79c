"""SERAC: what an archive holds, and archives that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import serac_training
from easyeditor import SERACHyperParams, SERACTrainingHparams
from easyeditor.errors import ArchiveError, HyperParamsError
from easyeditor.methods.archive import KEY, NAME, read_archive
from easyeditor.methods.serac.patch import TEMPLATE
from easyeditor.methods.serac.serac import SERAC
from easyeditor.methods.training import learner_of
from easyeditor.patches.stack import is_patched
from support import EDITS, Snapshot, lm, same_bits

archives, encoder = serac_training.archives, serac_training.encoder


def test_an_archive_says_what_it_holds(archives: dict[str, Path]) -> None:
    found = read_archive(archives["gpt2"], "SERAC")
    assert found.hyperparams["template"] == TEMPLATE
    assert set(found.more) == {"classifier", "counterfactual", "digest", "tokenizer"}


def test_without_an_archive() -> None:
    target = lm("gpt2")
    before = Snapshot(target.model)
    with pytest.raises(HyperParamsError, match=r"no archive=.*easyedit train --method serac"):
        SERAC(SERACHyperParams()).edit(target, EDITS)
    with pytest.raises(HyperParamsError, match="no archive="):
        SERAC(SERACHyperParams()).initial_state(target)
    assert before.differences(target.model) == []


def copied(archive: Path, folder: Path, *, more=None, header=None, tensors=None) -> Path:
    """A copy of an archive with changes."""
    with safe_open(archive, "pt") as opened:
        told_ = json.loads(opened.metadata()[KEY])
    told_ |= header or {}
    told_["more"] |= more or {}
    file = folder / NAME
    kept = {**load_file(archive), **(tensors or {})}
    save_file(kept, file, metadata={KEY: json.dumps(told_)})
    return file


FOREIGN = {
    "another method": ({"header": {"method": "MEND"}}, "trained for MEND"),
    "no networks": ({"more": {"counterfactual": {"model_type": "none"}}}, "does not describe"),
    "half a classifier": ({"more": {"classifier": {"config": {}}}}, "does not describe"),
    "other settings": ({"header": {"hyperparams": {"lr": "fast"}}}, "cannot be used"),
    "another tokenizer": ({"more": {"tokenizer": "0123"}}, "another tokenizer than"),
    "a tensor more": ({"tensors": {"extra": torch.zeros(1)}}, "extra"),
    "not a number": (
        {"tensors": {"classifier.head.bias": torch.full((32,), torch.nan)}},
        "not finite",
    ),
    "other shapes": ({"tensors": {"classifier.head.bias": torch.zeros(3)}}, r"\(3,\) instead of"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_archive(name: str, archives: dict[str, Path], tmp_path: Path) -> None:
    changes, match = FOREIGN[name]
    file = copied(archives["gpt2"], tmp_path, **changes)
    target = lm("gpt2")
    before = Snapshot(target.model)
    with pytest.raises(ArchiveError, match=match):
        SERAC(SERACHyperParams(archive=str(file))).edit(target, EDITS)
    assert before.differences(target.model) == []


def test_an_unreadable_archive(archives: dict[str, Path], tmp_path: Path) -> None:
    target = lm("gpt2")
    whole = archives["gpt2"].read_bytes()
    file = tmp_path / NAME
    with pytest.raises(ArchiveError, match=r"no archive.*train --method serac"):
        SERAC(SERACHyperParams(archive=str(file))).edit(target, EDITS)
    for content in (whole[: len(whole) // 2], b"text", b""):
        file.write_bytes(content)
        with pytest.raises(ArchiveError, match="cannot be read"):
            SERAC(SERACHyperParams(archive=str(file))).edit(target, EDITS)
    with pytest.raises(ArchiveError, match="another tokenizer"):  # of an encoder-decoder
        SERAC(SERACHyperParams(archive=str(archives["t5"]))).edit(target, EDITS)
    assert not is_patched(target.model)


def test_networks_that_are_named_are_held_against_the_archive(archives: dict[str, Path]) -> None:
    target, archive = lm("gpt2"), str(archives["gpt2"])
    SERAC(SERACHyperParams(archive=archive, cls_name="./cache/Tiny-GPT2/")).initial_state(target)
    wrong = SERACHyperParams(archive=archive, cls_name="distilbert-base-cased")
    with pytest.raises(HyperParamsError, match=r"tiny-gpt2.*not 'distilbert-base-cased'"):
        SERAC(wrong).initial_state(target)


def test_learning_goes_on_only_from_what_fits(archives: dict[str, Path], encoder: str) -> None:
    learner = learner_of(lm("gpt2"), SERACTrainingHparams(cls_name=encoder))
    before = {name: t.clone() for name, t in learner.module.state_dict().items()}
    with pytest.raises(ArchiveError):
        learner.load(archives["t5"])
    after = learner.module.state_dict()
    assert all(same_bits(after[name], tensor) for name, tensor in before.items())
