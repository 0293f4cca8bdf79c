"""The sweep over layers: which facts, what is chosen, who uses the choice, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from easyeditor import (
    BaseEditor,
    ENCOREHyperParams,
    GatedROMEHyperParams,
    MEMITHyperParams,
    PMETHyperParams,
    ROMEHyperParams,
)
from easyeditor.bench import layer_choosing as module
from easyeditor.bench.known_facts import facts_known_by
from easyeditor.bench.layer_choosing import choose_layers
from easyeditor.bench.layer_report import layer_report
from easyeditor.bench.sweep import Candidate, LayerSweep
from easyeditor.editors.layer_choice import (
    LayerChoice,
    automatic,
    choices_folder,
    stored_choice,
    write_choice,
)
from easyeditor.edits import Case, Probe, Score
from easyeditor.errors import BenchError
from easyeditor.evaluate.query import observe
from easyeditor.methods.rome import ROME
from outer import bits, changed
from scripting import DONE, document, refused
from zoo import load, models, world

FAMILY = "llama"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and rounds of few edits."""
    monkeypatch.setenv("EASYEDITOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "ROUNDS", ((3, 2), (2, 2), (1, 4)))
    monkeypatch.setattr("easyeditor.bench.layer_report.TRACED_FACTS", 1)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def facts() -> list[Case]:
    return facts_known_by(load(FAMILY), 4, world.cases("train"))


@pytest.fixture
def text(tmp_path: Path) -> str:
    file = tmp_path / "zoo.txt"
    file.write_text("\n".join(world.corpus()[:200]), encoding="utf-8")
    return str(file)


@pytest.fixture
def stored() -> LayerChoice:
    """A choice for ROME on this model, as a sweep writes it."""
    choice = LayerChoice("zoo", "ROME", {"layers": [1], "v_lr": 0.2}, [], ["a"], 1.0, "2026-11-28")
    assert write_choice(load(FAMILY), choice) is not None
    return choice


# -- facts -----------------------------------------------------------------------------------


def test_facts_are_what_the_model_answers_and_come_with_what_the_criterion_reads(facts):
    lm = load(FAMILY)
    more = facts_known_by(lm, 8, world.cases("train"))
    assert more[:4] == facts
    assert len({case.id for case in more}) == 8
    for case in more:
        assert {probe.group for probe in case.probes} == {"rephrase", "locality"}
        query = Score(case.edit.prompt, str(case.edit.ground_truth))
        assert observe(lm, [case]).scores[query].accuracy == 1


def test_facts_without_neighbours_get_those_of_others():
    bare = [Case(case.id, case.edit) for case in world.cases("train")[:40]]
    near = [probe for case in facts_known_by(load(FAMILY), 4, bare) for probe in case.probes]
    assert {probe.kind for probe in near} == {"locality/neighborhood"}


def test_a_model_that_knows_nothing_of_the_file_is_an_error():
    wrong = [
        Case(case.id, replace(case.edit, ground_truth="nobody at all"))
        for case in world.cases("train")[:10]
    ]
    with pytest.raises(BenchError, match=r"answers 0 of the given facts \(10 have"):
        facts_known_by(load(FAMILY), 4, wrong)


# -- the choice ------------------------------------------------------------------------------


def test_a_choice_fills_in_what_nobody_named(facts, text, cache):
    lm = load(FAMILY)
    before = bits(lm.model)
    choice = choose_layers(lm, "ROME", facts, text=text)
    assert changed(lm.model, before) == []
    assert choice.rows[-1]["layers"] == tuple(choice.settings["layers"])
    assert list(choice.facts) == [case.id for case in facts]
    assert not list(choices_folder().glob("unfinished-*"))
    assert len(list((cache / "moments").glob("*.safetensors"))) >= 1

    stored = stored_choice(lm, "ROME")
    assert stored is not None
    assert dict(stored.settings) == dict(choice.settings)
    assert stored_choice(lm, "MEMIT") is None
    assert stored_choice(load("gpt2"), "ROME") is None

    defaults = ROMEHyperParams(model_name="some/model", v_lr=0.125)
    used = automatic(lm, defaults.replace(seed=3))
    assert list(used.layers) == choice.settings["layers"]
    assert (used.v_lr, used.seed, used.v_stop_nll) == (0.125, 3, choice.settings["v_stop_nll"])
    assert BaseEditor(lm, defaults).hparams.layers == used.layers


def test_a_choice_outlives_the_text_it_was_made_with(facts, tmp_path, monkeypatch, caplog):
    lm = load(FAMILY)
    sweep_text = tmp_path / "corpus.txt"
    sweep_text.write_text("\n".join(world.corpus()[:200]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    choice = choose_layers(lm, "ROME", facts, text="corpus.txt")
    assert choice.settings["mom2_dataset"] == str(sweep_text.resolve())
    plain = ROMEHyperParams(model_name="some/model")
    assert automatic(lm, plain).mom2_dataset == str(sweep_text.resolve())
    sweep_text.unlink()
    used = automatic(lm, plain)
    assert (used.mom2_dataset, list(used.layers)) == ("shipped", choice.settings["layers"])
    assert "corpus.txt is gone" in caplog.text


@pytest.mark.parametrize("kind", [PMETHyperParams, ENCOREHyperParams])
def test_what_was_swept_for_memit_is_not_taken_by_methods_it_was_not_measured_with(kind):
    assert kind.sweep is None


@pytest.mark.parametrize(
    "given",
    [
        ROMEHyperParams(layers=[2]),
        ROMEHyperParams.for_model("smollm2-135m"),
        ROMEHyperParams(layers=[2]).replace(device="cpu"),
        MEMITHyperParams(model_name="some/model"),
    ],
    ids=["argument", "preset", "copy", "another probe"],
)
def test_a_choice_overrules_nobody(stored, given):
    assert automatic(load(FAMILY), given) is given


@pytest.mark.slow
def test_a_method_of_the_same_probe_uses_the_choice(facts, text):
    lm = load(FAMILY)
    choice = choose_layers(lm, "AlphaEdit", facts, text=text)
    assert choice.probe == "MEMIT"
    used = automatic(lm, MEMITHyperParams(model_name="some/model"))
    assert list(used.layers) == choice.settings["layers"]


def test_a_killed_sweep_goes_on(facts, text, monkeypatch):
    lm, sizes = load(FAMILY), list[int]()
    edit_each = ROME.edit_each

    def counted(self: ROME, lm: Any, edits: Any, state: Any) -> Any:
        sizes.append(len(edits))
        if len(sizes) == 3:
            raise KeyboardInterrupt
        return edit_each(self, lm, edits, state)

    monkeypatch.setattr(ROME, "edit_each", counted)
    with pytest.raises(KeyboardInterrupt):
        choose_layers(lm, "ROME", facts, text=text)
    assert len(LayerSweep(lm, "ROME", facts, text=text)) == 4  # two layers of two facts
    choice = choose_layers(lm, "ROME", facts, text=text)
    assert sizes.count(2) >= 4  # the third layer was measured, the first two were not again
    assert choice.rows[-1]["facts"] == 4


def test_a_damaged_choice_is_ignored(stored, caplog):
    lm = load(FAMILY)
    assert stored_choice(lm, "ROME") == stored
    (file,) = choices_folder().glob("*-rome.json")
    file.write_text("{", encoding="utf-8")
    assert stored_choice(lm, "ROME") is None
    assert "holds no choice of layers" in caplog.text


def test_an_edit_that_diverges_scores_as_none(facts, text):
    sweep = LayerSweep(load(FAMILY), "ROME", facts, text=text)
    sweep.plan = replace(sweep.plan, settings={**sweep.plan.settings, "v_lr": 1e30})
    sweep.plan = replace(sweep.plan, searches=({"clamp_norm_factor": 1e30},))
    assert sweep.row(Candidate((1,)), 2).ES == 0


def test_a_method_without_second_moments_is_swept_without_any(facts, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("moments were collected")

    monkeypatch.setattr("easyeditor.methods.locate.moments", refused)
    sweep = LayerSweep(load(FAMILY), "GatedROME", facts)
    report = layer_report(sweep, [0, 1])
    assert [row.layers for row in report.rows] == [(0,), (1,)]
    assert all(row.ES is not None for row in report.rows)
    assert not hasattr(sweep.settings(Candidate((0,))), "mom2_dataset")
    sweep.keep_moments([0])
    with pytest.raises(AssertionError, match="collected"):
        LayerSweep(load(FAMILY), "ROME", facts).collect_moments([(0,)])


def test_what_cannot_be_swept_is_refused(facts):
    lm = load(FAMILY)
    with pytest.raises(BenchError, match="FT has no layers to sweep"):
        LayerSweep(lm, "FT", facts)
    with pytest.raises(BenchError, match="the list is empty"):
        LayerSweep(lm, "ROME", [])
    with pytest.raises(BenchError, match="Layer 99 cannot be edited"):
        layer_report(LayerSweep(lm, "ROME", facts), [99])
    editor = BaseEditor(lm, ROMEHyperParams(layers=[1], mom2_adjustment=False, v_num_grad_steps=1))
    edit = facts[0].edit
    result = editor.edit(edit.prompt, edit.target, subject=edit.subject)
    try:
        with pytest.raises(BenchError, match="carries patches"):
            LayerSweep(lm, "ROME", facts)
    finally:
        editor.undo(result.patch)


def test_edits_made_each_alone_share_a_search_and_are_the_same(facts, text, tmp_path):
    lm = load(FAMILY)
    settings = ROMEHyperParams(
        layers=[1], mom2_dataset=text, mom2_n_tokens=500, stats_dir=str(tmp_path),
        context_template_length_params=[[2, 1]], v_num_grad_steps=5,
    )  # fmt: skip
    method = ROME(settings)
    edits = [case.edit for case in facts[:2]]
    for edit, outcome in zip(edits, method.edit_each(lm, edits), strict=True):
        assert outcome.patch.info.edits == (edit,)
        alone = method.edit(lm, [edit]).patch
        for path, (part,) in alone.entries.items():
            (other,) = outcome.patch.entries[path]
            assert torch.allclose(part.dense(), other.dense(), atol=1e-5)


# -- the command -----------------------------------------------------------------------------


@pytest.fixture
def words(tmp_path: Path, text: str) -> tuple[object, ...]:
    from easyeditor.data.write import write_cases

    file = write_cases(
        [Case(c.id, c.edit, _writable(c)) for c in world.cases("train")], tmp_path / "facts.jsonl"
    )
    return (
        "layers",
        "--model",
        models.FOLDER / FAMILY,
        "--edits",
        file,
        "--text",
        text,
        "--limit",
        4,
    )


def _writable(case: Case) -> tuple[Probe, ...]:
    return tuple(probe for probe in case.probes if probe.group != "portability")


def test_auto_is_remembered_and_edits_say_so(easyedit, words, tmp_path):
    out = tmp_path / "rome.yaml"
    reply = easyedit(*words, "--auto", "--write", out)
    assert reply.code == DONE
    assert "remembered" in reply.out
    written = ROMEHyperParams.from_hparams(out)
    edit = facts_known_by(load(FAMILY), 1, world.cases("eval"))[0].edit
    one = ("--prompt", edit.prompt, "--target", edit.target, "--subject", edit.subject)
    edited = easyedit("edit", "--model", models.FOLDER / FAMILY, *one, "--json")
    assert "what 'easyedit layers --auto' measured" in edited.err
    assert document(edited)["patch"]["hyperparams"]["layers"] == list(written.layers)


def test_a_method_without_second_moments_has_layers_too(easyedit, words, tmp_path):
    out = tmp_path / "gates.yaml"
    at = words.index("--text")
    named = (*words[:at], *words[at + 2 :], "--method", "gatedrome", "--layers", "0,1")
    reply = easyedit(*named, "--write", out)
    assert reply.code == DONE
    assert "mom2" not in out.read_text()
    assert GatedROMEHyperParams.from_hparams(out).layers in {(0,), (1,)}


def test_a_limit_above_what_auto_measures_is_said_to_change_nothing(easyedit, words, monkeypatch):
    from easyeditor.errors import BenchError

    numbers = []

    def stop(lm: object, number: int, cases: object) -> None:
        numbers.append(number)
        raise BenchError("stopped here")

    monkeypatch.setattr("easyeditor.bench.known_facts.facts_known_by", stop)
    reply = easyedit(*words[:-1], 32, "--auto")
    assert numbers == [module.FACTS]
    assert "--auto measures 16 facts at most; --limit 32" in " ".join(reply.err.split())
    easyedit(*words[:-1], 32)
    assert numbers == [module.FACTS, 32]


def test_a_model_of_eight_layers_is_tried_at_six_of_its_whole_depth():
    windows = [(i,) for i in range(8)]
    assert module._spread(windows, 6) == [(0,), (1,), (3,), (4,), (6,), (7,)]
    assert module._spread(windows[:6], 6) == windows[:6]


def test_without_auto_tracing_stands_beside_the_scores(easyedit, words):
    reply = document(easyedit(*words, "--layers", "0,1,3", "--json"))
    assert [row["layers"] for row in reply["rows"]] == [[0], [1], [3]]
    assert {kind: len(effects) for kind, effects in reply["traced"].items()} == {
        "state": 6,
        "mlp": 6,
    }
    assert reply["advice"].startswith(f"Edit layer {reply['settings']['layers'][0]} (S ")


def test_an_edit_without_preset_and_sweep_names_the_cost_and_the_command(easyedit):
    edit = world.cases("eval")[0].edit
    one = ("--prompt", edit.prompt, "--target", edit.target, "--subject", edit.subject)
    fast = ("--set", "v_num_grad_steps=1", "--set", "mom2_adjustment=false", "--json")
    reply = easyedit("edit", "--force", "--model", models.FOLDER / FAMILY, *one, *fast)
    assert "a fixed share of its depth" in " ".join(reply.err.split())
    assert "Two to three minutes" in " ".join(reply.err.split())
    assert "easyedit layers --auto" in " ".join(reply.err.split())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--auto", "--layers", "1"), "--auto chooses"),
        (("--layers", "one"), "numbers with commas"),
        (("--method", "ft"), "no layers to sweep"),
        (("--method", "gatedrome", "--text", "self"), "no text is read"),
    ],
)
def test_mistakes_are_named_before_the_model_is_loaded(easyedit, more, message):
    assert message in refused(easyedit("layers", "--model", "no/model", *more))
