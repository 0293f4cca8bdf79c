"""Arguments of the editors of behaviour: none is ignored in silence, none ends in a bare error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
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
    ROMEHyperParams,
    SafetyDataset,
    SafetyEditor,
)
from easyeditor.bench.table import safety_note
from easyeditor.editors.concepts import PromptedConcepts
from easyeditor.edits import Case, Edit
from easyeditor.errors import DataError, EditError, JudgeError
from easyeditor.evaluate.behaviour import SAFE, Answer, judge_name, judged, refuses
from easyeditor.evaluate.query import Measures
from support import lm

OPINIONS = outer.ROOT / "benchmarks" / "behaviour" / "opinions.json"
DINM = DINMHyperParams(layers=[1], num_steps=2, lr=5e-3, max_output_length=4)
FT = FTHyperParams(layers=[1], num_steps=1, lr=5e-3)
SAFETY = {"prompts": ["Why?"], "target_new": ["No."], "ground_truth": ["Rome"]}
CONCEPT = {
    "prompts": ["A lute is"],
    "target_new": ["a city"],
    "subject": ["lute"],
    "instance_inputs": {"instance": {"prompt": ["Whether Rome belongs to category lute?"]}},
}
OTHER_CASE = Case("a", Edit("Why?", "No.", ground_truth="Rome"))


def made(kind: type[BaseEditor], hparams: Any) -> Any:
    return kind.from_pretrained(
        tiny.model("llama", max_position_embeddings=1024), tiny.tokenizer(), hparams
    )


def refused(editor: Any, call: str, error: type[Exception], words: str, *args: Any, **more: Any):
    before = outer.bits(editor.model)
    with pytest.raises(error, match=words):
        getattr(editor, call)(*args, **more)
    assert outer.changed(editor.model, before) == []


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"general_prompt": [None]}, EditError, "four prompts for each of the 1"),
        ({"general_prompt": 5}, EditError, "general_prompt must be a text or a list"),
        ({"prompts_with_systemPrompt": 5}, EditError, "must be a text or a list"),
        ({"prompts_with_systemPrompt": []}, EditError, "holds 0 entries for 1"),
        ({"requests": [{"prompt": "a"}]}, EditError, "SafetyDataset"),
        ({"subject": ["zz"]}, EditError, "'zz' does not occur"),
        ({"judge": lambda _: None}, JudgeError, "gave NoneType; it must give a list"),
        (
            {"judge": len, "measures": Measures(answer_tokens=2, judge=sum)},
            EditError,
            "two judges",
        ),
    ],
)
def test_wrong_arguments_of_safety(
    more: dict[str, Any], error: type[Exception], words: str
) -> None:
    refused(made(SafetyEditor, DINM), "edit", error, words, **{**SAFETY, **more})


def test_a_judge_that_fails_behind_the_edit_leaves_the_model_as_it_was() -> None:
    calls: list[int] = []

    def judge(answers: Any) -> list[float]:
        calls.append(len(answers))
        return [1.0 if len(calls) < 3 else 7.0] * len(answers)

    refused(made(SafetyEditor, DINM), "edit", JudgeError, "number from 0", **SAFETY, judge=judge)
    assert len(calls) == 3


@pytest.mark.parametrize("cases", [[OTHER_CASE], []])
def test_safety_of_cases_without_attack_prompts(cases: list[Case]) -> None:
    words = "no attack prompt" if cases else "nothing to edit"
    refused(made(SafetyEditor, DINM), "edit_dataset", EditError, words, cases)


def test_safety_takes_a_subject_and_columns_of_numpy() -> None:
    """Methods that need a subject can be measured, too; None of the columns is a plain list."""
    hparams = ROMEHyperParams(layers=[1], v_num_grad_steps=2, mom2_adjustment=False)
    result = made(SafetyEditor, hparams).edit(
        prompts=np.array(["Rome is"]),
        target_new=np.array(["No."]),
        ground_truth=np.array(["Paris"]),
        target_neg=np.array(["Berlin"]),
        subject=np.array(["Rome"]),
        general_prompt=np.array([["a", "b", "c", "d"]]),
        measures=Measures(answer_tokens=2),
        judge=lambda answers: np.ones(len(answers), dtype=np.float32),
    )
    (edit,) = result.patch.info.edits
    assert (edit.subject, edit.rejected, edit.ground_truth) == ("Rome", "Berlin", "Paris")
    assert result.metrics[0]["safety"]["edited"]["DG_otherAQ"] == 1


def test_accepted_answers_give_the_first_as_what_is_rejected() -> None:
    result = made(SafetyEditor, DINM).edit(**{**SAFETY, "ground_truth": [["Rome", "Paris"]]})
    assert result.patch.info.edits[0].rejected == "Rome"


def test_opinions_of_one_kind_have_no_score_and_the_edit_stands(tmp_path: Path) -> None:
    """It ended in a KeyError behind the edit, with the model changed."""
    file = tmp_path / "one.json"
    file.write_text(json.dumps([{"ent": "Rome", "extraversion": ["It is great."]}]))
    editor = made(PerEditor, FT)
    ds = PersonalityDataset(file)
    measures = Measures(answer_tokens=2)
    result = editor.edit_dataset(ds, keep_original_weight=False, measures=measures)
    (metric,) = result.metrics
    assert metric["es"] is metric["dd"] is None
    assert isinstance(metric["coherent"], bool)
    editor.undo(result.patch)
    (metric,) = editor.edit_dataset(ds, measures=Measures()).metrics
    names = ("pre_text", "edit_text", "ngram_pre_text", "ngram_edit_text", "coherent")
    assert [metric[name] for name in names] == [None] * 5


def test_a_judge_beside_measures_is_asked() -> None:
    editor = made(PerEditor, FT)
    ds = PersonalityDataset(OPINIONS, size=1)
    (metric,) = editor.edit_dataset(
        ds, measures=Measures(answer_tokens=2), judge=lambda some: [0.75] * len(some)
    ).metrics
    assert (metric["acc"], metric["tpei"]) == (1, 0)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"instance_inputs": ["x"]}, "must map a name"),
        ({"instance_inputs": {"instance": {"prompt": 5}}}, "must be a text or a list"),
        ({"instance_inputs": {"instance": {"prompt": [5]}}}, "must be a text or a list"),
        ({"requests": [{}]}, "ConceptDataset"),
        ({"train_ds": [OTHER_CASE]}, "takes no train_ds"),
        ({"nonsense": 1}, "Unknown argument 'nonsense'"),
    ],
)
def test_wrong_arguments_of_concepts(more: dict[str, Any], words: str) -> None:
    refused(made(ConceptEditor, FT), "edit", EditError, words, **{**CONCEPT, **more})


def test_concepts_take_demonstrations_and_what_is_rejected() -> None:
    editor = made(ConceptEditor, IKEHyperParams(use_icl_examples=False))
    given = [Case("b", Edit("A flute is", "a river"))]
    result = editor.edit(**CONCEPT, target_neg=["a thing"], train_ds=given, free_answers=False)
    assert result.patch.info.edits[0].rejected == "a thing"
    assert editor.method._corpus == given


def test_the_prompt_alone_writes_definitions_too() -> None:
    prompted = PromptedConcepts(lm("llama", max_position_embeddings=1024))
    with pytest.raises(EditError, match="Unknown argument 'nonsense'"):
        prompted.edit(**CONCEPT, nonsense=1)
    ((alone,), *_) = prompted.edit(**CONCEPT, concept_consistency=True)
    (metric,) = (
        made(ConceptEditor, FT)
        .edit(**CONCEPT, concept_consistency=True, free_answers=False)
        .metrics
    )
    for half in (alone["post"], metric["prompt_only"]):
        assert isinstance(half["gen_concept_text"], str)
        assert half["answers"]["rewrite"] == half["gen_concept_text"]
        assert "instance_change" in half["instance"]
    assert alone["post"]["gen_concept_text"] != alone["pre"]["gen_concept_text"]


def test_numbers_of_numpy_are_verdicts_and_a_judge_has_one_name() -> None:
    answer = Answer("Why?", "No.", "No.", SAFE)
    assert judged(lambda _: np.array([1, 0]), [answer, answer]) == [1, 0]

    class Judge:
        def __call__(self, answers: Any) -> list[float]:
            return [1.0] * len(answers)

    assert judge_name(Judge()) == judge_name(Judge())
    assert "0x" not in judge_name(Judge())


@pytest.mark.parametrize(
    "call",
    [
        lambda: SafetyDataset(OPINIONS.with_name("forbidden.json"), suffix=5),
        lambda: SafetyDataset(OPINIONS.with_name("forbidden.json"), suffix=["a"]),
        lambda: PersonalityDataset(OPINIONS, trait=4),
    ],
)
def test_readers_take_texts(call: Any) -> None:
    with pytest.raises(DataError, match=r"must be text|is no trait"):
        call()


@pytest.mark.parametrize(
    "text", ["We don't need much: take a wire.", "I do not need a key, so take a wire."]
)
def test_not_every_do_not_declines(text: str) -> None:
    assert not refuses(text)
    assert refuses("I do not help with that.")
    assert refuses("We don't talk about zorb crystals.")


def test_a_blank_suffix_leaves_no_row_empty() -> None:
    """The paper's ablation: the edited model is asked without a suffix."""
    editor = made(SafetyEditor, DINM.replace(suffix_system_prompt=""))
    (metric,) = editor.edit(**SAFETY).metrics
    rows = metric["safety"]
    assert set(rows["edited"]) == {"DS", "fluency"}
    assert rows["edited"] == rows["edited_without_suffix"]
    assert rows["suffix_only"] == rows["unedited"]
    assert isinstance(metric["post"]["DS"], str)


def test_runs_with_different_judges_name_all_of_them() -> None:
    assert safety_note([None, "judge", "judge"]) == (
        "Safe is what a list of usual refusals, judge takes for safe."
    )
