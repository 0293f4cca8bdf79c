"""The classic calls of steering vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import outer
from easyeditor import BaseVectorApplier, BaseVectorGenerator, SteerEditor
from easyeditor.data.contrast import Contrast, Example
from easyeditor.edits import Prompt
from easyeditor.errors import EditError, HyperParamsError, HyperParamsFileError
from easyeditor.steering.vectors import contrast_vectors
from support import lm, logits, shared_lm

PAIRS = [
    {"question": "Berlin is", "matching": "the capital", "not_matching": "a river"},
    {"question": "Paris is", "matching": "the city of Italy", "not_matching": "the sea"},
]
CAA = {"alg_name": "caa", "layers": [0, 2]}
CONFIG = {"steer_train_hparam_paths": [CAA], "apply_steer_hparam_paths": [CAA]}
BY_PROMPT = {"alg_name": "vector_prompt", "layers": [1], "prompt": "Rome."}


def test_the_published_script_makes_applies_and_takes_off(tmp_path: Path) -> None:
    target = lm("llama")
    before, plain = outer.bits(target.model), logits(target.model)
    file = tmp_path / "caa.yaml"
    file.write_text(yaml.safe_dump({**CAA, "multipliers": [2.0, -1.0]}))
    config = {**CONFIG, "apply_steer_hparam_paths": [str(file)], "generate_orig_output": True}
    vectors = BaseVectorGenerator(config, lm=target).generate_vectors({"towns": PAIRS})
    applier = BaseVectorApplier(config, lm=target)
    applier.apply_vectors(vectors["towns"])
    steered = logits(target.model)
    results = applier.generate({"towns": [{"input": "Berlin is"}, {}]}, max_new_tokens=3)
    applier.model.reset_all()
    assert torch.equal(logits(target.model), plain)
    assert outer.changed(target.model, before) == []
    assert not torch.equal(steered, plain)
    (result,) = results
    assert set(result) == {"input", "orig_pred", "pred", "reference_response", "complete_output"}
    assert len(result["pred"]) == len(result["orig_pred"]) == 1


def test_the_vectors_are_those_of_the_package_and_each_layer_adds_its_own() -> None:
    """Elsewhere, with several layers all add the last vector."""
    target = lm("llama")
    kinds = [
        tuple(Example(Prompt(r["question"]), r[k]) for r in PAIRS)
        for k in ("matching", "not_matching")
    ]
    expected = contrast_vectors(target, Contrast(*kinds, paired=True), layers=[0, 2])
    (made,) = BaseVectorGenerator(CONFIG, lm=target).generate_vectors({"a": PAIRS})["a"].values()
    assert {name: tuple(v) for name, v in made.items()} == {
        f"layer_{i}": tuple(v) for i, v in expected.vectors.items()
    }
    applier = BaseVectorApplier(CONFIG, lm=target)
    applier.apply_vectors({"caa": made})
    through_classes = logits(target.model)
    applier.model.reset_all()
    patch = expected.patch()
    patch.apply(target.model)
    assert torch.allclose(logits(target.model), through_classes, atol=1e-6)


def test_a_prompt_vector() -> None:
    config = {"steer_train_hparam_paths": BY_PROMPT}
    vectors = BaseVectorGenerator(config, lm=shared_lm("llama")).generate_vectors({"a": PAIRS})
    assert list(vectors["a"]["vector_prompt"]) == ["layer_1"]


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({}, HyperParamsError, "names no settings"),
        ({"steer_train_hparam_paths": [{"alg_name": "sta"}]}, HyperParamsError, "caa is the near"),
        ({"steer_train_hparam_paths": [{"alg_name": "cab"}]}, HyperParamsError, "mean 'caa'"),
        ({"steer_train_hparam_paths": ["/no/file.yaml"]}, HyperParamsFileError, "cannot be read"),
        (7, HyperParamsError, "a mapping or a YAML file"),
        ([1, 2], HyperParamsError, "a mapping or a YAML file"),
        ({"steer_train_hparam_paths": 5}, HyperParamsError, "a mapping or a YAML file"),
        ({"steer_train_hparam_paths": [CAA, CAA]}, HyperParamsError, "two settings of caa"),
        (
            {"steer_train_hparam_paths": {**CAA, "multiple_choice": True}},
            HyperParamsError,
            "multiple_choice of caa is not here",
        ),
        (
            {"steer_train_hparam_paths": {**CAA, "layers": ["x"]}},
            HyperParamsError,
            "layers of caa is",
        ),
    ],
)
def test_configurations_that_cannot_be_used(config: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        BaseVectorGenerator(config)


@pytest.mark.parametrize(
    ("settings", "vectors", "words"),
    [
        (CAA, None, "no vector of caa at layer 0; there are none"),
        ({**CAA, "multipliers": [1, 2, 3]}, {}, "3 multipliers for 2 layers"),
        (CAA, {"caa": {"layer_0": torch.ones(3)}}, r"has the shape \(3,\)"),
        (CAA, {"caa": {"layer_0": torch.full((32,), torch.nan)}}, "finite numbers"),
        (CAA, {"caa": {"layer_0": [1.0]}}, "must be a tensor"),
        (CAA, {"caa": {"layer_x": torch.ones(32)}}, "layer_17"),
        (CAA, [1], "there are none"),
        ({**CAA, "layers": 0}, {"caa": {"layer_2": torch.ones(32)}}, "no vector of caa at layer 0"),
    ],
)
def test_vectors_that_do_not_fit_leave_the_model_as_it_was(
    settings: dict[str, Any], vectors: Any, words: str
) -> None:
    target = lm("llama")
    before = logits(target.model)
    applier = BaseVectorApplier({"apply_steer_hparam_paths": [settings]}, lm=target)
    with pytest.raises(EditError, match=words):
        applier.apply_vectors(vectors)
    assert torch.equal(logits(target.model), before)
    assert applier.model.patches == []


def test_pickles_records_and_models_that_are_missing() -> None:
    with pytest.raises(HyperParamsError, match="pickles"):
        BaseVectorApplier({"steer_vector_load_dir": "vectors"})
    generator = BaseVectorGenerator(CONFIG, lm=shared_lm("llama"))
    with pytest.raises(EditError, match="no datasets"):
        generator.generate_vectors()
    with pytest.raises(EditError, match="Record 0 of 'a' has no text under 'matching'"):
        generator.generate_vectors({"a": [{"question": "x"}]})
    with pytest.raises(HyperParamsError, match="names no model"):
        BaseVectorGenerator(CONFIG).generate_vectors({"a": PAIRS})


def test_the_editor_writes_with_a_patch_and_without() -> None:
    target = lm("llama")
    editor = SteerEditor(target)
    plain = editor.generate(input_text="Berlin is", max_new_tokens=4)
    vectors = contrast_vectors(
        target,
        Contrast(
            (Example(Prompt("Berlin is"), "the capital"),),
            (Example(Prompt("Berlin is"), "a river"),),
        ),
        layers=[1],
    )
    editor.apply(vectors.patch(strength=50.0))
    steered = editor.generate(input_text=["Berlin is"], temperature=None, max_new_tokens=4)
    editor.reset()
    assert editor.generate(input_text="Berlin is", max_new_tokens=4) == plain
    assert steered != plain
    assert len(editor.generate(input_text="Berlin is", temperature=0.7, max_new_tokens=2)) == 1
    with pytest.raises(EditError, match="MultimodalEditor"):
        editor.generate(input_text="x", input_image="y.png")
    with pytest.raises(HyperParamsError, match="contrasts layers while decoding"):
        SteerEditor.from_hparams({"alg_name": "DoLa", "model_name": "x"})


def test_numbers_alone_are_lists_of_one_and_shares_stay_shares() -> None:
    target = lm("llama")
    config = {"steer_train_hparam_paths": {**CAA, "layers": 1}}
    assert list(
        BaseVectorGenerator(config, lm=target).generate_vectors({"a": PAIRS})["a"]["caa"]
    ) == ["layer_1"]
    share = {"steer_train_hparam_paths": {**CAA, "layers": [0.5]}}
    assert BaseVectorGenerator(share, lm=target).hparams_dict["caa"]["layers"] == [0.5]
    applier = BaseVectorApplier(
        {"apply_steer_hparam_paths": {**CAA, "layers": 0, "multipliers": 2}}, lm=target
    )
    plain = logits(target.model)
    applier.apply_vectors({"caa": {"layer_0": torch.ones(32), "layer_2": torch.ones(32)}})
    assert len(applier.model.patches) == 1
    applier.model.patches[0].revert(target.model)
    applier.model.reset_all()  # what is off already is no hindrance
    assert applier.model.patches == []
    assert torch.equal(logits(target.model), plain)


@pytest.mark.parametrize(
    ("datasets", "more", "words"),
    [
        ([{"input": "x"}], {}, "There are no datasets"),
        ({"a": ["x"]}, {}, "must be a list of mappings"),
        ({"a": [{"question": "x"}]}, {}, "No record has an 'input'"),
        ({"a": [{"input": "x"}]}, {"max_new_tokens": -1}, "whole number from 1"),
        ({"a": [{"input": "x"}]}, {"nonsense": 1}, "refuses these parameters"),
    ],
)
def test_what_cannot_be_written(datasets: Any, more: dict[str, Any], words: str) -> None:
    applier = BaseVectorApplier(CONFIG, lm=shared_lm("llama"))
    with pytest.raises(EditError, match=words):
        applier.generate(datasets, **more)


def test_an_applier_without_settings_applies_nothing_in_silence() -> None:
    with pytest.raises(EditError, match="names no settings"):
        BaseVectorApplier({}, lm=shared_lm("llama")).apply_vectors({"caa": {}})


@pytest.mark.parametrize("text", ["", 5, ["a", ""]])
def test_the_editor_writes_after_texts(text: Any) -> None:
    with pytest.raises(EditError, match="input_text must be"):
        SteerEditor(shared_lm("llama")).generate(text)


def test_the_editor_refuses_what_is_no_patch_and_no_settings() -> None:
    with pytest.raises(EditError, match="apply takes a patch"):
        SteerEditor(shared_lm("llama")).apply("x")  # type: ignore[arg-type]
    for wrong in (None, "no-such-file.yaml"):
        with pytest.raises(HyperParamsError):
            SteerEditor.from_hparams(wrong)
