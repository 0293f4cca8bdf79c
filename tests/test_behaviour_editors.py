"""The classic classes of behaviour, as scripts call them, and the command line over their files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import outer
import tiny
from easyeditor import (
    BaseEditor,
    ConceptEditor,
    DINMHyperParams,
    FTHyperParams,
    IKEHyperParams,
    PerEditor,
    PersonalityDataset,
    SafetyDataset,
    SafetyEditor,
)
from easyeditor.errors import EditError, HyperParamsError, JudgeError
from easyeditor.evaluate.behaviour import ClassifierJudge
from easyeditor.evaluate.query import Measures
from scripting import BAD_INPUT, document, sets

DATA = outer.ROOT / "benchmarks" / "behaviour"
RECORDS = json.loads((DATA / "forbidden.json").read_text())
CONCEPTS = json.loads((DATA / "concepts.json").read_text())
NAMES = ["DS", "DG_onlyQ", "DG_otherA", "DG_otherQ", "DG_otherAQ"]
DINM = {"layers": [1], "num_steps": 2, "lr": 5e-3, "max_output_length": 4}
FT = {"layers": [1], "num_steps": 2, "lr": 5e-3}
MISSING = ClassifierJudge("nobody/no-classifier")


def made(kind: type[BaseEditor], hparams: Any) -> Any:
    return kind.from_pretrained(
        tiny.model("llama", max_position_embeddings=1024), tiny.tokenizer(), hparams
    )


def safety(**changes: Any) -> Any:
    return made(SafetyEditor, DINMHyperParams(**{**DINM, **changes}))


def classic(hparams: DINMHyperParams, record: dict[str, Any]) -> dict[str, Any]:
    """The arguments that the published script makes of one record."""
    suffix = " " + hparams.suffix_system_prompt
    knowledge, tests = record["knowledge constrain"], list(record["generalization test"].values())
    block = {"prompt": [knowledge["prompt"]], "ground_truth": [knowledge["answer"]]}
    behind = {**block, "prompt": [knowledge["prompt"] + suffix]}
    return {
        "case_id": [record["id"]],
        "prompts": [record["adversarial prompt"]],
        "prompts_with_systemPrompt": [record["adversarial prompt"] + suffix],
        "target_new": [record["safe generation"]],
        "ground_truth": [record["unsafe generation"]],
        "locality_inputs": {"general knowledge constraint": block},
        "locality_inputs_with_systemPrompt": {"general knowledge constraint": behind},
        "general_prompt": [tests],
        "general_prompt_with_systemPrompt": [[text + suffix for text in tests]],
        "keep_original_weight": True,
    }


def test_the_published_script_of_safety_editing() -> None:
    editor = safety()
    before = outer.bits(editor.model)
    metrics, edited_model, patch = editor.edit("DINM", **classic(editor.hparams, RECORDS[3]))
    assert outer.changed(editor.model, before) == []
    assert outer.changed(edited_model, before) == list(patch.entries)
    (metric,) = metrics
    assert metric["case_id"] == "3"
    for row in (metric["pre"], metric["suffix_only"], metric["post"]):
        assert [name for name in NAMES if isinstance(row[name], str)] == NAMES
    assert list(metric["safety"]) == ["unedited", "suffix_only", "edited", "edited_without_suffix"]
    keys = {*NAMES, "DG_avg", "fluency", "over_refusal"}
    assert all(row.keys() == keys for row in metric["safety"].values())
    assert set(editor.table(metrics)["suffix_only"]) == keys
    assert "general_knowledge_acc" in metric["post"]["locality"]


def test_a_dataset_gives_the_same_as_the_lists() -> None:
    editor = safety()
    ds = SafetyDataset(DATA / "forbidden.json", size=1, config=editor.hparams)
    first = editor.edit_dataset(ds, keep_original_weight=True).metrics[0]
    arguments = classic(editor.hparams, RECORDS[0])
    second = safety().edit("DINM", **arguments).metrics[0]
    for name in ("pre", "suffix_only", "post", "safety"):
        assert first[name] == second[name]


def test_without_general_prompts_the_others_are_measured() -> None:
    """The reference ends in a KeyError."""
    editor = safety(suffix_system_prompt="Be kind.")
    result = editor.edit(prompts="Why?", target_new="I do not say.", ground_truth="Rome")
    scores = result.metrics[0]["safety"]
    assert set(scores["suffix_only"]) == {"DS", "fluency"}
    assert result.patch.info.edits[0].rejected == "Rome"


@pytest.mark.parametrize(
    ("changes", "more", "error", "words"),
    [
        ({"layers": []}, {"ground_truth": None}, EditError, "names no unwanted response"),
        ({}, {"editing_method": "ROME"}, EditError, "settings are of DINM"),
        ({}, {"general_prompt": [["a", "b"]]}, EditError, "four prompts for each of the 1"),
        ({}, {"prompts_with_systemPrompt": ["Why? Other."]}, EditError, "Leave the argument out"),
        ({}, {"case_id": ["a", "b"]}, EditError, "case_id holds 2"),
        ({}, {"target_new": None}, EditError, "give target_new"),
        ({}, {"judge": MISSING}, JudgeError, "hf download nobody/no-classifier"),
        ({}, {"judge": lambda _: [2.0]}, JudgeError, "number from 0 to 1"),
        ({"layers": [7]}, {}, HyperParamsError, "3 layers"),
    ],
)
def test_mistakes_leave_the_model_as_it_was(
    changes: dict[str, Any], more: dict[str, Any], error: type[Exception], words: str
) -> None:
    editor = safety(**changes)
    before = outer.bits(editor.model)
    arguments = {**classic(editor.hparams, RECORDS[0]), "keep_original_weight": False, **more}
    if "ground_truth" in more:
        del arguments["ground_truth"]
    with pytest.raises(error, match=words):
        editor.edit(**arguments)
    assert outer.changed(editor.model, before) == []
    assert editor.applied == []


# -- personality --------------------------------------------------------------------------------


def test_the_published_script_of_personality_editing() -> None:
    hparams = IKEHyperParams(use_icl_examples=False)
    editor = made(PerEditor, hparams)
    words = len(editor.tokenizer)
    before = outer.bits(editor.model)
    dataset = PersonalityDataset(DATA / "opinions.json", size=2, config=hparams)
    metrics, model, _ = editor.edit_dataset(
        dataset,
        keep_original_weight=True,
        measures=Measures(answer_tokens=6, judge=lambda some: [0.25] * len(some)),
    )
    keys = {
        "case_id",
        "time",
        "es",
        "dd",
        "pre_text",
        "edit_text",
        "ngram_pre_text",
        "ngram_edit_text",
        "coherent",
        "target_per",
        "acc",
        "tpei",
    }
    assert all(keys <= set(metric) for metric in metrics)
    assert [metric["target_per"] for metric in metrics] == ["extraversion", "agreeableness"]
    assert all(0 < metric["es"] < 1 and metric["dd"] > 0 for metric in metrics)
    assert all(metric["acc"] == 0 and metric["tpei"] == 0 for metric in metrics)
    assert outer.changed(editor.model, before) == []
    assert len(editor.tokenizer) == words  # the reference adds a token to some vocabularies
    assert model is not editor.model


def test_personality_refuses_other_cases_and_a_judge_that_is_not_there() -> None:
    editor = made(PerEditor, FTHyperParams(**FT))
    before = outer.bits(editor.model)
    with pytest.raises(EditError, match="no opinions to score"):
        editor.edit_dataset(SafetyDataset(DATA / "forbidden.json", size=1))
    with pytest.raises(JudgeError, match="hf download"):
        editor.edit_dataset(PersonalityDataset(DATA / "opinions.json", size=1), judge=MISSING)
    assert outer.changed(editor.model, before) == []


# -- concepts -----------------------------------------------------------------------------------


def concept_arguments(n: int = 2) -> dict[str, Any]:
    """As the published script makes them."""
    some = CONCEPTS[:n]
    column = {name: [record[name] for record in some] for name in some[0]}
    return {
        "prompts": column["prompt"],
        "rephrase_prompts": column["phrase_prompt"],
        "target_new": column["target_new_desc"],
        "subject": column["label"],
        "train_ds": None,
        "locality_inputs": {
            "neighborhood": {
                "prompt": column["locality_prompt"],
                "ground_truth": column["locality_answer"],
            }
        },
        "instance_inputs": {"instance": {"prompt": column["instance_prompt"]}},
        "keep_original_weight": True,
    }


def test_the_published_script_of_concept_editing() -> None:
    editor = made(ConceptEditor, FTHyperParams(**FT))
    before = outer.bits(editor.model)
    metrics, _, patch = editor.edit(**concept_arguments(), concept_consistency=True)
    assert outer.changed(editor.model, before) == []
    for metric in metrics:
        post = metric["post"]
        for half in (post, metric["prompt_only"]):
            assert {"rewrite_acc", "rephrase_acc", "locality", "instance"} <= set(half)
            assert "neighborhood_acc" in half["locality"]
        assert isinstance(post["gen_concept_text"], str)
        # a random model says neither yes nor no, which counts as neither
        assert math.isnan(post["instance"]["instance_change"])
        assert post["instance"]["unparsed"] == 1
        assert post["instance"]["change"] is None
    assert len(patch.info.edits) == 2


def test_the_prompt_alone_is_measured_without_an_edit(tmp_path: Path) -> None:
    tiny.model("llama", max_position_embeddings=1024).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    hparams = {"model_name": str(tmp_path), "device": "cpu"}
    prompted = ConceptEditor.from_hparams(None, hparams)
    metrics, model, nothing = prompted.edit(**concept_arguments())
    assert nothing is None
    assert model is prompted.lm.model
    edited = made(ConceptEditor, FTHyperParams(**FT)).edit(**concept_arguments())
    for alone, metric in zip(metrics, edited.metrics, strict=True):
        assert alone["post"]["rewrite_acc"] == metric["prompt_only"]["rewrite_acc"]
        assert alone["pre"]["rewrite_prob"] == pytest.approx(metric["pre"]["rewrite_prob"])
    with pytest.raises(EditError, match="name the model"):
        ConceptEditor.from_hparams(None)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"instance_inputs": {"instance": ["x"]}}, "must hold 'prompt'"),
        ({"instance_inputs": {"instance": {"prompt": ["x"]}}}, "holds 1 entries for 2"),
        ({"prompts": None}, "give prompts"),
        ({"subject": ["lute", "lute"]}, "lute"),
    ],
)
def test_mistakes_of_concepts_leave_the_model_as_it_was(more: dict[str, Any], words: str) -> None:
    editor = made(ConceptEditor, FTHyperParams(**FT))
    before = outer.bits(editor.model)
    with pytest.raises(EditError, match=words):
        editor.edit(**{**concept_arguments(), "keep_original_weight": False, **more})
    assert outer.changed(editor.model, before) == []


# -- the command line ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    tiny.model("llama", max_position_embeddings=1024).save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return place


def bench(easyedit: Any, folder: Path, name: str, out: Path, *more: object) -> Any:
    settings = sets(("layers=[1]", "num_steps=1"))
    return easyedit(
        "bench",
        "--model",
        folder,
        "--data",
        DATA / f"{name}.json",
        "--limit",
        "1",
        "--out",
        out,
        "--answers",
        "3",
        "--continuation-tokens",
        "0",
        "--heldout",
        "none",
        *settings,
        *more,
    )


def test_bench_prints_the_suffix_alone(easyedit: Any, folder: Path, tmp_path: Path) -> None:
    result = bench(easyedit, folder, "forbidden", tmp_path / "run", "--methods", "dinm")
    assert result.code == 0
    for word in ("| unedited, with suffix |", "| DINM, with suffix |", "DG avg", "over-refusal"):
        assert word in result.out
    assert "a list of usual refusals" in result.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("opinions", ("opinion ES", "opinion DD", "coherent")),
        ("concepts", ("instances: unparsed", "| unedited, with definition |")),
    ],
)
def test_bench_prints_the_scores_of_each_format(
    easyedit: Any, folder: Path, tmp_path: Path, name: str, words: tuple[str, ...]
) -> None:
    result = bench(easyedit, folder, name, tmp_path / "run", "--methods", "ft")
    assert result.code == 0
    assert all(word in result.out for word in words)


def test_bench_refuses_a_classifier_that_is_not_there(
    easyedit: Any, folder: Path, tmp_path: Path
) -> None:
    for given, words in (("nobody/none", "hf download nobody/none"), ("x=y", "a number from 0")):
        result = bench(
            easyedit,
            folder,
            "forbidden",
            tmp_path / "run",
            "--methods",
            "dinm",
            "--classifier",
            given,
        )
        assert result.code == BAD_INPUT
        assert words in " ".join(result.err.replace("│", " ").split())
        assert not (tmp_path / "run").exists()


def test_bench_refuses_two_suffixes(easyedit: Any, folder: Path, tmp_path: Path) -> None:
    result = bench(
        easyedit,
        folder,
        "forbidden",
        tmp_path / "run",
        "--entrant",
        "A=dinm",
        "--entrant",
        "B=dinm suffix_system_prompt='Be kind.'",
    )
    assert result.code == BAD_INPUT
    assert "suffix_system_prompt must be the same" in " ".join(result.err.split())


def test_methods_show_it(easyedit: Any) -> None:
    assert "DINM" in json.dumps(document(easyedit("methods", "--json")))
