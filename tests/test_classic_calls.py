"""Calls as users of other versions write them: they work, or the error names the new call."""

from __future__ import annotations

import pytest
import torch

import outer
from easyeditor import Case, Edit
from easyeditor.errors import EditError, RenamedCallError
from outer import PROMPT, PROMPTS, SUBJECT, SUBJECTS, TARGET, TARGETS

EDIT = Edit(PROMPT, TARGET, subject=SUBJECT)
MANY = {"prompts": PROMPTS, "target_new": TARGETS, "subject": SUBJECTS}
RENAMED = {
    "loc_prompts": "locality_inputs",
    "rephrased_prompts": "rephrase_prompts",
    "keep_original_weights": "keep_original_weight",
    "eval_metric": "measures",
    "summary_metrics": "nothing",
}


@pytest.mark.parametrize(("name", "now"), RENAMED.items())
@pytest.mark.parametrize("call", ["edit", "batch_edit"])
def test_a_renamed_argument_is_named(name, now, call):
    editor = outer.editor()
    before = outer.bits(editor.model)
    with pytest.raises(EditError, match=rf"{name}.*it is {now}"):
        getattr(editor, call)(PROMPT, TARGET, **{name: ["x"]})
    assert outer.changed(editor.model, before) == []


@pytest.mark.parametrize("name", ["generate_edit", "edit_requests", "normal_edit"])
def test_a_renamed_call_is_named(name):
    editor = outer.editor()
    assert not hasattr(editor, name)
    with pytest.raises(RenamedCallError, match=r"it is edit\("):
        getattr(editor, name)(PROMPT, TARGET)


def test_sequential_edits_accumulate_and_are_measured_at_the_end():
    editor = outer.editor()
    result = editor.edit(**MANY, sequential_edit=True)
    plain = outer.editor().edit(**MANY, evaluate_when="end")
    assert [m["post"] for m in result.metrics] == [m["post"] for m in plain.metrics]
    assert len(editor.applied) == 1


def test_edits_that_are_not_sequential_leave_the_model():
    editor = outer.editor()
    before = outer.bits(editor.model)
    result = editor.edit(**MANY, sequential_edit=False)
    assert outer.changed(editor.model, before) == []
    assert outer.changed(result.edited_model, before)


@pytest.mark.parametrize(
    "more", [{"keep_original_weight": True}, {"evaluate_when": "each"}], ids=str
)
def test_a_sequence_that_contradicts_itself(more):
    with pytest.raises(EditError, match="sequential_edit=True"):
        outer.editor().edit(**MANY, sequential_edit=True, **more)


def test_generation_is_tested():
    result = outer.editor().edit(PROMPT, TARGET, subject=SUBJECT, test_generation=True)
    assert "fluency" in result.metrics[0]["post"]


def test_what_shall_not_be_said_is_part_of_the_edit():
    result = outer.editor().edit(PROMPT, TARGET, subject=SUBJECT, target_neg="Danish")
    assert result.patch.info.edits[0].rejected == "Danish"


@pytest.mark.parametrize("kind", ["numpy.array", "pandas.Series", "builtins.tuple"])
def test_columns_are_lists(kind):
    module, _, name = kind.partition(".")
    column = getattr(pytest.importorskip(module), name)
    given = {name: column(values) for name, values in MANY.items()}
    truth = column(["Danish", "Paris", "Germany"])
    near = {"neighborhood": {"prompt": column(["Rome is"] * 3), "ground_truth": column(["x"] * 3)}}
    result = outer.editor().edit(**given, ground_truth=truth, locality_inputs=near)
    plain = outer.editor().edit(**MANY, ground_truth=["Danish", "Paris", "Germany"])
    assert [edit.ground_truth for edit in result.patch.info.edits] == ["Danish", "Paris", "Germany"]
    (path,) = result.patch.entries
    assert torch.equal(result.patch.dense(path), plain.patch.dense(path))


@pytest.mark.parametrize(
    ("prompts", "truth"),
    [(PROMPT, ["Danish", "Dansk"]), ([PROMPT], [["Danish", "Dansk"]])],
)
def test_accepted_answers(prompts, truth):
    targets, subjects = (TARGET, SUBJECT) if isinstance(prompts, str) else ([TARGET], [SUBJECT])
    probe = {"near": {"prompt": [["Rome is"]], "ground_truth": [[["old", "ancient"]]]}}
    result = outer.editor().edit(
        prompts, targets, truth, subject=subjects, locality_inputs=probe, verbose=False
    )
    assert result.patch.info.edits[0].ground_truth == "Danish"
    probes = result.metrics[0]["requested_rewrite"]["probes"]
    assert [list(p["answers"]) for p in probes] == [["old", "ancient"]]


@pytest.mark.parametrize(("name", "now"), [("tok", "tokenizer"), ("alg_name", "hparams.alg_name")])
def test_a_renamed_attribute_is_named(name, now):
    with pytest.raises(RenamedCallError, match=f"no {name} any more: it is {now}"):
        getattr(outer.editor(), name)


def test_empty_cells_of_a_column_of_texts_are_nothing():
    frame = pytest.importorskip("pandas").DataFrame({**MANY, "truth": ["Danish", None, None]})
    columns = frame.astype("string")
    result = outer.editor().edit(
        columns.prompts, columns.target_new, columns.truth, subject=columns.subject, verbose=False
    )
    assert [edit.ground_truth for edit in result.patch.info.edits] == ["Danish", None, None]
    with pytest.raises(EditError, match=r"target_new, edit 1: the entry is missing"):
        outer.editor().edit(columns.prompts, columns.truth, subject=columns.subject)


@pytest.mark.parametrize("cases", ["edits.json", [{"prompt": PROMPT}], [EDIT], EDIT], ids=repr)
@pytest.mark.parametrize("call", ["edit_dataset", "edit_cases"])
def test_a_dataset_of_something_else_than_cases(cases, call):
    editor = outer.editor()
    before = outer.bits(editor.model)
    with pytest.raises(EditError, match=r"by its Cases, not by .*open_dataset\(path\)"):
        getattr(editor, call)(cases)
    assert outer.changed(editor.model, before) == []


def test_a_dataset_is_a_sequence_too():
    result = outer.editor().edit_dataset([Case("one", EDIT)], sequential_edit=True, verbose=False)
    assert "post" in result.metrics[0]


def test_a_near_miss_of_a_parameter_is_suggested():
    with pytest.raises(EditError, match="Did you mean 'ground_truth'"):
        outer.editor().edit(PROMPT, TARGET, ground_thruth="Danish")


def test_a_result_is_one_line():
    result = outer.editor().edit(PROMPT, TARGET, subject=SUBJECT)
    assert len(repr(result)) < 200
    assert "1 edit" in repr(result)
