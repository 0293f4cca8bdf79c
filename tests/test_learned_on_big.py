"""What was learnt beside a plain model edits it offloaded and quantized as well."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from easyeditor import LM, IKEHyperParams, MENDHyperParams, SERACHyperParams, load
from easyeditor.lm.inference import score
from easyeditor.lm.weights import weight_handle
from easyeditor.methods.archive import Archive
from easyeditor.methods.ike.ike import IKE
from easyeditor.methods.mend.mend import MEND
from easyeditor.methods.serac.serac import SERAC
from learning_cases import AGAIN, NEAR
from mending import stirred
from serac_training import train
from support import EDITS, logits, same_bits
from test_offloaded import maps, offload, weights
from test_quantized import WIDE, packed, same, unquantized
from tiers import tiered

PLACES = tiered(("cpu", "disk", "8bit", "4bit"), {"disk", "4bit"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk, wide enough to be quantized."""
    place = tmp_path_factory.mktemp("whole") / "llama"
    tiny.model("llama", **WIDE).save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def archives(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of MEND and SERAC, beside the plain model."""
    place, plain = tmp_path_factory.mktemp("archives"), load(str(folder), device="cpu")
    encoder = place / "tiny-gpt2"
    tiny.model("gpt2", seed=2).save_pretrained(encoder)
    tiny.tokenizer().save_pretrained(encoder)
    trained = train(plain, place / "serac", str(encoder)).path
    return {"MEND": str(stirred(plain).save(place / "mend")), "SERAC": str(trained)}


def big(where: str, folder: Path, scratch: Path) -> LM:
    if where in {"cpu", "disk"}:
        return LM(offload(load(str(folder), device="cpu").model, where, scratch), tiny.tokenizer())
    return load(str(folder), device="cpu", quantization=where)


State = tuple[list[tuple[int, torch.Tensor]], dict[str, torch.Tensor], list[int]]


def untouched(lm: LM) -> State:
    """The bits of every weight and which objects hold them."""
    return packed(lm.model), weights(lm.model), [id(m) for m in maps(lm.model)]


def still(lm: LM, before: State) -> bool:
    was_packed, was, hooks = before
    now = weights(lm.model)
    return (
        same(packed(lm.model), was_packed)
        and all(same_bits(now[name], was[name]) for name in was)
        and [id(m) for m in maps(lm.model)] == hooks
    )


@pytest.mark.parametrize("where", PLACES)
def test_mend(where, folder, archives, tmp_path, monkeypatch):
    lm = big(where, folder, tmp_path)
    before, clean = untouched(lm), logits(lm.model)
    method = MEND(MENDHyperParams(archive=archives["MEND"]))
    patch = method.edit(lm, EDITS[:2]).patch
    assert still(lm, before)
    exact = where in {"cpu", "disk"}
    numbers = load(str(folder), device="cpu") if exact else unquantized(lm, folder)
    monkeypatch.setattr(Archive, "check", lambda *_: None)  # the unpacked numbers are of no file
    plain = method.edit(numbers, EDITS[:2]).patch
    assert patch.entries.keys() == plain.entries.keys() != set()
    for path in plain.entries:
        wanted, found = plain.dense(path), patch.dense(path)
        assert wanted.abs().max() > 0
        if exact:
            assert same_bits(found, wanted)
        else:  # layers of 8 bits round what comes in, too
            assert torch.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.95
    reads = {path: weight_handle(lm.model, path).read_weight().clone() for path in patch.entries}
    patch.apply(lm.model)
    for path, read in reads.items():
        rounded = (read.float() + patch.dense(path).T).to(read.dtype)
        assert same_bits(weight_handle(lm.model, path).read_weight(), rounded)
    patch.revert(lm.model)
    assert still(lm, before)
    assert same_bits(logits(lm.model), clean)


@pytest.mark.parametrize("where", PLACES)
def test_serac(where, folder, archives, tmp_path):
    lm = big(where, folder, tmp_path)
    before, asked = untouched(lm), [near for near, _ in NEAR]
    clean = score(lm, [(prompt, "Italy well") for prompt in asked])
    wanted = [(again, edit.target) for again, edit in zip(AGAIN, EDITS, strict=True)]
    assert not any(s.argmax == s.target for s in score(lm, wanted))
    patch = SERAC(SERACHyperParams(archive=archives["SERAC"])).edit(lm, EDITS).patch
    patch.apply(lm.model)
    assert all(s.argmax == s.target for s in score(lm, wanted))
    assert score(lm, [(prompt, "Italy well") for prompt in asked]) == clean
    patch.revert(lm.model)
    assert still(lm, before)


@pytest.mark.parametrize("where", PLACES)
def test_ike(where, folder, tmp_path):
    lm = big(where, folder, tmp_path)
    before, prompt = untouched(lm), EDITS[0].prompt
    patch = IKE(IKEHyperParams(use_icl_examples=False)).edit(lm, EDITS[:1]).patch
    clean = score(lm, [(prompt, "Rome")])
    patch.apply(lm.model)
    assert score(lm, [(prompt, "Rome")]) != clean
    patch.revert(lm.model)
    assert score(lm, [(prompt, "Rome")]) == clean
    assert still(lm, before)
