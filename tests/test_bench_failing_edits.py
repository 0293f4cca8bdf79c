"""Benchmark runs whose edits fail: a failure is a result, and the others do not feel it."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace

import pytest

import benching
import outer
from benching import CASES, numbers, plan, records, tables
from easyeditor import KNHyperParams
from easyeditor.bench.runner import run
from easyeditor.bench.worker import Worker
from easyeditor.errors import DivergedError, EditError
from easyeditor.evaluate.aggregate import flatten
from easyeditor.methods.base import Outcome
from easyeditor.methods.ft import FT
from easyeditor.patches.weight import Dense

two_together = benching.two_together


def diverging(monkeypatch, *prompts, error=DivergedError):
    """Edits of these prompts fail."""
    real = FT.edit

    def edit(self, lm, edits, state=None):
        if any(edit.prompt in prompts for edit in edits):
            raise error("FT's loss became NaN.")
        return real(self, lm, edits, state)

    monkeypatch.setattr(FT, "edit", edit)


@pytest.mark.parametrize("protocol", ["single", "batch", "sequential"])
@pytest.mark.parametrize("which", [[0], [1], [2], [0, 1, 2]], ids=str)
def test_an_edit_that_diverges_is_a_result(protocol, which, monkeypatch, tmp_path):
    diverging(monkeypatch, *(CASES[i].edit.prompt for i in which))
    lm, wanted = benching.lm(), plan(protocol)
    run(lm, wanted, tmp_path)
    found = [r for r in records(tmp_path) if r["stage"] == "post"]
    for i, record in enumerate(found):
        assert record.get("error") == ("failed: FT's loss became NaN." if i in which else None)
        if i in which:
            assert record["change"] == {}
            assert record["hparams"]["num_steps"] == 3
            if protocol != "sequential":  # the unedited model says what it said before
                pre, post = record["pre"], record["post"]
                assert post["rewrite_prob"]["target_new"] == pytest.approx(
                    pre["rewrite_prob"]["target_new"], rel=1e-5
                )
                assert set(post["locality"].items()) >= {("neighborhood_acc", 1.0)}
    total = tmp_path / "FT" / "total-000003.safetensors"
    assert total.exists() is (protocol == "sequential" and len(which) < 3)
    tables(tmp_path)


@pytest.mark.parametrize("which", [[0], [1], [0, 1], [0, 1, 2]], ids=str)
def test_a_sequence_goes_on_from_an_edit_that_diverged(which, monkeypatch, tmp_path):
    diverging(monkeypatch, *(CASES[i].edit.prompt for i in which))
    lm, wanted = benching.lm(), plan("sequential")
    whole = run(lm, wanted, tmp_path / "whole")
    out, real = tmp_path / "out", Worker.run_task
    while not (out / "FT").exists() or len(records(out)) < 6:  # two tasks, then death

        def two(self, task, left=iter("ab")):  # noqa: B008
            if next(left, None) is None:
                raise KeyboardInterrupt
            return real(self, task)

        with monkeypatch.context() as patched:
            patched.setattr(Worker, "run_task", two)
            with suppress(KeyboardInterrupt):
                run(lm, wanted, out)
    assert numbers(out) == numbers(whole)


def wild(monkeypatch, *prompts):
    """Edits of these prompts leave weights so large that what the model says is not a number."""
    real = FT.edit

    def edit(self, lm, edits, state=None):
        patch = real(self, lm, edits, state).patch
        if any(edit.prompt in prompts for edit in edits):
            entries = {
                path: (Dense(part.delta.sign() * 3e38),) for path, (part,) in patch.entries.items()
            }
            patch = replace(patch, entries=entries)
        return Outcome(patch)

    monkeypatch.setattr(FT, "edit", edit)


@pytest.mark.parametrize("together", [1, 2, 8])
def test_a_wrecked_model_does_not_reach_the_others(together, monkeypatch, tmp_path):
    """The cases of the single protocol share forward passes, and nothing else."""
    monkeypatch.setattr("easyeditor.bench.config.CASES_PER_FORWARD", together)
    run(benching.lm(), plan(), tmp_path / "calm")
    wild(monkeypatch, CASES[1].edit.prompt)
    run(benching.lm(), plan(), tmp_path / "wild")
    calm, found = records(tmp_path / "calm"), records(tmp_path / "wild")
    assert math.isnan(found[1]["post"]["rewrite_prob"]["target_new"])
    for i in (0, 2):
        assert found[i]["texts"] == calm[i]["texts"]
        assert flatten(found[i]["post"]) == pytest.approx(flatten(calm[i]["post"]), rel=1e-4)


@pytest.mark.parametrize("protocol", ["single", "sequential"])
def test_a_wrecked_model_is_a_result(protocol, monkeypatch, tmp_path):
    wild(monkeypatch, *(case.edit.prompt for case in CASES))
    run(benching.lm(), plan(protocol), tmp_path)
    found = [r for r in records(tmp_path) if "perplexity" in r["post"]]
    assert len(found) == 3
    for record in found:
        assert math.isnan(record["post"]["perplexity"])
        assert record["post"]["fluency"] == 0
        assert record["post"]["locality"]["neighborhood_success"] == 0
    assert "FT" in tables(tmp_path)["table.md"].decode()


@pytest.mark.parametrize("protocol", ["single", "sequential"])
def test_a_fact_without_neurons_is_a_result(protocol, monkeypatch, tmp_path):
    """KN finds no neuron for one case; the run and its restarts go on."""
    from easyeditor.methods import kn

    real, calls = kn.kept_neurons, []

    def none_for_the_second(scores, settings):
        calls.append(scores)
        return {} if len(calls) == 2 else real(scores, settings)

    monkeypatch.setattr(kn, "kept_neurons", none_for_the_second)
    settings = {"KN": KNHyperParams(layers=[1], steps=3)}
    wanted = replace(plan(protocol), methods=settings)
    lm = benching.lm()
    before = outer.bits(lm.model)
    run(lm, wanted, tmp_path)
    assert outer.changed(lm.model, before) == []
    found = [r for r in records(tmp_path, "KN") if r["stage"] == "post"]
    failed = [r["error"] for r in found if "error" in r]
    assert len(found) == len(CASES)
    assert len(failed) == 1
    assert failed[0].startswith("failed: No neuron makes ")
    written = (tmp_path / "KN" / "records.jsonl").read_bytes()
    run(lm, wanted, tmp_path)
    assert (tmp_path / "KN" / "records.jsonl").read_bytes() == written


@pytest.mark.parametrize("error", [EditError, MemoryError, KeyboardInterrupt])
def test_other_failures_end_the_run_and_lose_nothing(error, monkeypatch, tmp_path):
    whole = run(benching.lm(), plan(), tmp_path / "whole")
    lm = benching.lm()
    before = outer.bits(lm.model)
    with monkeypatch.context() as patched:
        diverging(patched, CASES[2].edit.prompt, error=error)
        with pytest.raises(error):
            run(lm, plan(), tmp_path / "out")
    assert outer.changed(lm.model, before) == []
    assert len(records(tmp_path / "out")) == 2
    run(lm, plan(), tmp_path / "out")
    assert numbers(tmp_path / "out") == numbers(whole)
