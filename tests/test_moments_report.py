"""How many tokens are enough: rows for growing texts, and the command that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tiny
from easyeditor import BaseEditor, MEMITHyperParams, ROMEHyperParams
from easyeditor.bench import convergence as module
from easyeditor.bench.convergence import convergence, known_facts
from easyeditor.data.open import open_dataset
from easyeditor.edits import Case, Probe
from easyeditor.errors import HyperParamsError, MomentsError
from easyeditor.lm import LM
from easyeditor.methods.rome import ROME
from easyeditor.second_moments import moments, moments_by_size
from outer import PROMPT, SUBJECT, TARGET, Said
from scripting import DONE, document, refused, sets
from support import EDITS, Snapshot, failing_at, lm, shared_lm

QUICK = {
    "v_num_grad_steps": 10,
    "v_lr": 1.0,
    "v_weight_decay": 0.0,
    "clamp_norm_factor": 20.0,
    "context_template_length_params": (),
}
CASES = [
    Case(
        str(i),
        edit,
        (
            Probe(f"You can see. {edit.prompt}", (edit.target,), "rephrase"),
            Probe("She plays the", ("piano",), "locality/neighborhood"),
        ),
    )
    for i, edit in enumerate(replace(edit, ground_truth="the piano") for edit in EDITS[:2])
]


@pytest.fixture
def long(tmp_path: Path) -> str:
    path = tmp_path / "long.txt"
    path.write_text(tiny.TEXT.replace(". ", ".\n") * 3, encoding="utf-8")
    return str(path)


@pytest.fixture
def settings(long: str, tmp_path: Path) -> ROMEHyperParams:
    return ROMEHyperParams(layers=[1], mom2_dataset=long, stats_dir=str(tmp_path / "kept"), **QUICK)


# -- moments of growing size ---------------------------------------------------------------------


@pytest.mark.parametrize("source", ["file", "self"])
def test_one_pass_gives_the_moments_of_every_size(source: str, long: str, tmp_path: Path) -> None:
    target, sizes = lm("llama"), [150, 7, 300]
    given = {"source": long if source == "file" else "self", "directory": tmp_path / "kept"}
    whole = moments(target, [0, 2], tokens=300, **given)
    passes = failing_at(target.blocks[0], 0)
    found = list(moments_by_size(target, [2, 0], sizes, tokens=300, **given))
    assert passes() == 1
    assert [made[0].tokens for made in found] == sorted(sizes)
    for layer in (0, 2):
        last = found[-1][layer].matrix
        torch.testing.assert_close(last, whole[layer].matrix, rtol=1e-4, atol=1e-6)
        assert torch.equal(last, last.T)
    if source == "file":  # the beginning of a file is a shorter file's text
        alone = moments(target, [0], tokens=150, **given)[0].matrix
        torch.testing.assert_close(found[1][0].matrix, alone, rtol=1e-4, atol=1e-6)


def test_sizes_beyond_the_text_are_left_out(long: str) -> None:
    found = list(moments_by_size(shared_lm("llama"), [0], [10, 10**6], source=long))
    assert [made[0].tokens for made in found] == [10]


def test_a_decoder_that_reads_half_of_the_text_reaches_every_size(
    long: str, tmp_path: Path
) -> None:
    target, given = shared_lm("t5"), {"source": long, "tokens": 300, "directory": tmp_path}
    whole = moments(target, [1], **given)[1]
    assert 100 < whole.tokens < 200
    (found,) = moments_by_size(target, [1], [whole.tokens], **given)
    torch.testing.assert_close(found[1].matrix, whole.matrix, rtol=1e-4, atol=1e-6)


def test_a_patched_model_has_no_moments_of_any_size(settings: ROMEHyperParams, long: str) -> None:
    target = lm("llama")
    patch = ROME(settings.replace(mom2_adjustment=False)).edit(target, EDITS[:1]).patch
    patch.apply(target.model)
    before = Snapshot(target.model)
    with pytest.raises(MomentsError, match="carries patches"):
        list(moments_by_size(target, [0], [10], source=long))
    with pytest.raises(MomentsError, match="carries patches"):
        list(convergence(target, settings))
    assert before.differences(target.model) == []


# -- rows ----------------------------------------------------------------------------------------


def test_rows_tell_the_spectrum_at_every_size(settings: ROMEHyperParams) -> None:
    target = lm("llama")
    passes = failing_at(target.blocks[0], 0)
    rows = list(convergence(target, settings, layers=[2, 0]))
    assert passes() == 2  # the whole text, which is cached, and once more its beginning
    assert [row.tokens for row in rows] == [32, 64, 128, 256, 640]
    assert [row.widths for row in rows] == [0.5, 1, 2, 4, 10]
    kept = moments(target, [2], source=settings.mom2_dataset, tokens=640,
                   directory=settings.stats_dir)[2]  # fmt: skip
    for row in rows:
        assert [own.layer for own in row.layers] == [0, 2]
        assert row.scores == {}
    first, last = rows[0].layers[1], rows[-1].layers[1]
    wanted = torch.linalg.eigvalsh(kept.matrix.double())
    assert last.eigenvalues == {1: float(wanted[-1]), 10: float(wanted[-10])}  # d_in is 64
    assert last.condition_number == kept.condition_number()
    assert last.distance == 0 < first.distance
    assert first.condition_number > 1e6  # 32 tokens have no 64 directions
    given = settings.replace(mom2_n_tokens=640).corpus()
    half = next(moments_by_size(target, [2], [32], **given))[2].matrix
    off = float((half - kept.matrix).norm() / kept.matrix.norm())
    assert first.distance == pytest.approx(off)


def test_a_short_text_ends_the_rows(settings: ROMEHyperParams) -> None:
    rows = list(convergence(lm("llama"), settings, sizes=[100, 10**6]))
    (end,) = moments(
        lm("llama"), [1], source=settings.mom2_dataset, tokens=10**6, directory=settings.stats_dir
    ).values()
    assert [row.tokens for row in rows] == [100, end.tokens]


@pytest.mark.parametrize("method", ["ROME", "MEMIT"])
def test_scores_are_those_of_edits_with_the_moments_of_that_size(
    method: str, settings: ROMEHyperParams, tmp_path: Path
) -> None:
    target = lm("llama")
    if method == "MEMIT":
        settings = MEMITHyperParams(
            layers=[0, 1],
            mom2_update_weight=10,
            **settings.model_dump(include={*QUICK, "mom2_dataset", "stats_dir"}),
        )
    before = Snapshot(target.model)
    rows = list(convergence(target, settings, CASES, sizes=[70, 400]))
    assert before.differences(target.model) == []
    found = [row.scores for row in rows]
    assert set(found[0]) == {
        f"{name}{end}" for name in ("rewrite", "rephrase", "locality") for end in ("", "_diff")
    }
    for row in rows:  # of a file, the first tokens are what a smaller size reads
        alone = settings.replace(mom2_n_tokens=row.tokens, stats_dir=str(tmp_path / "alone"))
        result = BaseEditor(lm("llama"), alone).edit_cases(
            CASES, keep_original_weight=True, verbose=False, batch=method == "MEMIT"
        )
        for name in ("rewrite_diff", "rephrase_diff"):
            mean = sum(m["post"][name] for m in result.metrics) / 2
            assert row.scores[name] == pytest.approx(mean, rel=1e-3)
    few, many = (scores["rephrase_diff"] for scores in found)
    assert abs(few - many) > 0.02 * abs(many)
    kept = {path.name.partition("-")[2] for path in (tmp_path / "kept").iterdir()}
    assert not any(name.startswith("half") for name in kept)
    assert len([n for n in kept if "cholesky" in n]) == len(settings.layers)  # of the last size


def test_all_mistakes_are_told_before_any_work(settings: ROMEHyperParams) -> None:
    target = lm("llama")
    passes, before = failing_at(target.blocks[0], 0), Snapshot(target.model)
    off = settings.replace(mom2_adjustment=False)
    with pytest.raises(HyperParamsError, match=r"sizes=\[0, 5\].*mom2_adjustment=False"):
        list(convergence(target, off, CASES, sizes=[5, 0]))
    assert passes() == 0
    assert before.differences(target.model) == []


def test_facts_are_those_the_model_knows(monkeypatch) -> None:
    facts = list(open_dataset("worldfacts"))
    some = facts[:: module.STRIDE]
    known = {case.edit.prompt for case in some[::2]}

    def score(_lm: object, pairs: Sequence[tuple[str, str]]) -> list[SimpleNamespace]:
        true = {case.edit.prompt: case.edit.ground_truth for case in facts}
        assert all(true[prompt] == answer for prompt, answer in pairs)
        return [SimpleNamespace(accuracy=1.0 if p in known else 0.5) for p, _ in pairs]

    lm: Any = None
    monkeypatch.setattr(module, "score", score)
    found = known_facts(lm, 8)
    assert len({case.id for case in found}) == 8
    assert {case.edit.prompt for case in found} <= known
    nothing = [SimpleNamespace(accuracy=0.0)] * len(facts)
    monkeypatch.setattr(module, "score", lambda _lm, pairs: nothing[: len(pairs)])
    assert known_facts(lm, 8) == []


# -- the command ---------------------------------------------------------------------------------

SETTINGS = ("layers=[1]", "v_num_grad_steps=2", "context_template_length_params=[]")


def asking(folder: object, long: str, *more: object) -> tuple[object, ...]:
    return ("moments", "--model", folder, "--dataset", long, *sets(SETTINGS), *more)


def test_moments_are_collected_and_shown(easyedit, folder, long):
    told = easyedit(*asking(folder, long, "--layers", "0,-1", "--json"))
    assert told.code == DONE
    found = document(told)
    assert (found["method"], found["dataset"]) == ("ROME", long)
    assert [line["layer"] for line in found["layers"]] == [0, 2]
    target = LM(tiny.model("llama"), tiny.tokenizer())
    for line in found["layers"]:
        assert line["tokens"] == 10 * line["d_in"] == 640
        kept = moments(target, [line["layer"]], source=long)[line["layer"]]
        assert str(kept.path) == line["file"]  # where an edit looks
        assert line["condition_number"] == pytest.approx(kept.condition_number())
    shown = easyedit(*asking(folder, long, "--tokens", 30))
    assert shown.code == DONE
    assert "condition number" in shown.out
    assert "∞" in shown.out or "e+" in shown.out  # 30 tokens have no 64 directions
    assert "Layer 1: " in shown.out


def test_convergence_as_json(easyedit, folder, long, tmp_path):
    facts = tmp_path / "facts.jsonl"
    facts.write_text(
        f'{{"prompt": "{PROMPT}", "subject": "{SUBJECT}", "target_new": "{TARGET}"}}\n' * 3
    )
    words = ("--convergence", "--edits", facts, "--limit", 1, "--tokens", 100, "--json")
    found = document(easyedit(*asking(folder, long, *words)))
    assert len(found["edits"]) == 1
    assert [row["tokens"] for row in found["rows"]] == [32, 64, 100]
    assert [row["layers"][0]["layer"] for row in found["rows"]] == [1, 1, 1]
    assert found["rows"][-1]["layers"][0]["distance"] == 0
    assert set(found["rows"][0]["scores"]) == {"rewrite"}
    table = easyedit(*asking(folder, long, "--convergence", "--edits", "none"))
    assert table.code == DONE
    assert "λ10" in table.out
    assert "rewrite" not in table.out
    unknown = easyedit(*asking(folder, long, "--convergence", "--tokens", 40))
    assert "knows none of the shipped facts" in unknown.out


BAD = {
    "another method": (("--method", "ft"), "FT uses no second moments; ROME, MEMIT, "),
    "layers": (("--layers", "1;2"), "3,4,5"),
    "a layer outside": (("--layers", "7"), "3 layers"),
    "no tokens": (("--tokens", "0"), "--tokens"),
    "edits without": (("--edits", "worldfacts"), "only --convergence"),
    "no such edits": (("--convergence", "--edits", "worldfact"), "Did you mean 'worldfacts'"),
    "no such text": (("--dataset", "nowhere.txt"), "nowhere.txt"),
}


@pytest.mark.parametrize(("words", "why"), BAD.values(), ids=BAD)
def test_mistakes(easyedit, folder, words, why):
    settings = () if "ft" in words else sets(SETTINGS)
    told: Said = easyedit("moments", "--model", folder, *settings, *words)
    assert why in refused(told)
