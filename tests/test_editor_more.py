"""``BaseEditor`` beyond the classic lists: records, files, cases of several edits, measures."""

from __future__ import annotations

import json
import sys

import pytest

import benching
import classic
import outer
import tiny
from cases import plain_values
from easyeditor import BaseEditor, Case, CounterFactDataset, Edit, Probe, ZsreDataset, open_dataset
from easyeditor.editors import metric_recorder as sheet
from easyeditor.editors import session
from easyeditor.errors import (
    ContradictingEditsError,
    DataError,
    DivergedError,
    EasyEditError,
    EditError,
    MissingExtraError,
    SubjectRequiredError,
)
from easyeditor.evaluate.aggregate import flatten, retention
from easyeditor.evaluate.query import Measures
from outer import FACTS, PROMPT, PROMPTS, SUBJECT, SUBJECTS, TARGET, TARGETS

METHODS = ["FT", "ROME", "MEMIT"]
DATA = outer.ROOT / "tests" / "data"


def timeless(metrics):
    """Metric dicts without how long it took."""
    return [{key: value for key, value in metric.items() if key != "time"} for metric in metrics]


# -- records ----------------------------------------------------------------------------------

RECORDS = [
    {
        "case_id": str(i),
        "prompt": prompt,
        "subject": subject,
        "target_new": target,
        "ground_truth": truth,
        "rephrase_prompts": [f"{subject} is", f"{subject} was"],
        "locality": {"near": ["She plays the => piano"], "far": [f"You see {subject} => river"]},
        "portability": {"hop": [{"prompt": f"{subject} has", "answer": ["a", "the"]}]},
    }
    for i, ((prompt, subject, target), truth) in enumerate(
        zip(FACTS, ("Danish", "Paris", "Germany"), strict=True)
    )
]
LISTS = {
    "prompts": PROMPTS,
    "target_new": TARGETS,
    "subject": SUBJECTS,
    "ground_truth": ["Danish", "Paris", "Germany"],
    "rephrase_prompts": [[f"{subject} is", f"{subject} was"] for subject in SUBJECTS],
    "locality_inputs": {
        "near": {"prompt": ["She plays the"] * 3, "ground_truth": ["piano"] * 3},
        "far": {"prompt": [f"You see {s}" for s in SUBJECTS], "ground_truth": ["river"] * 3},
    },
    "portability_inputs": {
        "hop": {"prompt": [f"{s} has" for s in SUBJECTS], "ground_truth": ["a"] * 3}
    },
}


@pytest.mark.parametrize(
    ("method", "call"),
    [*((method, "edit") for method in METHODS), ("FT", "batch_edit"), ("MEMIT", "batch_edit")],
)
def test_records_are_lists_in_another_order(method, call):
    by_lists, by_records = outer.editor(method), outer.editor(method)
    lists = getattr(by_lists, call)(**LISTS)
    records = getattr(by_records, call)(requests=RECORDS)
    for metric in records.metrics:  # only records can name several accepted answers
        (hop,) = (p for p in metric["requested_rewrite"]["probes"] if p["prompt"].endswith("has"))
        assert hop["answers"] == ["a", "the"]
        hop["answers"] = ["a"]
    assert timeless(records.metrics) == timeless(lists.metrics)
    assert outer.changed(by_records.model, outer.bits(by_lists.model)) == []


@pytest.mark.parametrize("call", ["edit", "batch_edit"])
@pytest.mark.parametrize("name", LISTS)
def test_records_and_lists_are_too_much(call, name):
    with pytest.raises(EditError, match=rf"not both \({name} given, too\)"):
        getattr(outer.editor(), call)(requests=RECORDS, **{name: LISTS[name]})


@pytest.mark.parametrize("call", ["edit", "batch_edit"])
def test_neither_records_nor_lists(call):
    with pytest.raises(EditError, match=r"nothing to edit: give prompts \(or requests"):
        getattr(outer.editor(), call)()
    with pytest.raises(EditError, match=r"nothing to edit: give target_new \(or requests"):
        getattr(outer.editor(), call)(PROMPTS)


@pytest.mark.parametrize(
    ("requests", "why"),
    [
        ([], "not empty"),
        ({}, "list of records"),
        (RECORDS[0], "list of records"),
        ("prompt", "list of records"),
        (iter(RECORDS), "list of records"),
        (["prompt"], r"requests\[0\]"),
        ([None], r"requests\[0\]"),
        ([*RECORDS, {"prompt": "x"}], r"requests\[3\]: target_new missing"),
        ([{"prompt": "x", "target_new": "y", "sbject": "x"}], r"Did you mean 'subject'"),
        ([{"prompt": 5, "target_new": "y"}], "must be text, not int"),
        ([{"prompt": "x", "target_new": ""}], "is empty"),
        ([{**RECORDS[0], "locality": 5}], r"requests\[0\]: locality"),
        ([{**RECORDS[0], "also": [{"prompt": "x"}]}], r"requests\[0\].*target_new"),
        ([{**RECORDS[0], "rephrase_prompts": [""]}], "rephrase probe has an empty prompt"),
    ],
    ids=range(14),
)
def test_records_that_make_no_edit(requests, why):
    editor = outer.editor()
    before = outer.bits(editor.model)
    with pytest.raises(EditError, match=why):
        editor.edit(requests=requests)
    assert outer.changed(editor.model, before) == []


def test_records_keep_their_names():
    named = [{"case_id": "seven", **FIELDS}, {"id": 8, **OTHER}, {"prompt": "x y", "target": "z"}]
    assert [m["case_id"] for m in outer.editor().edit(requests=named).metrics] == [
        *("seven", "8", "2")
    ]


FIELDS = {"prompt": PROMPT, "target_new": TARGET}
OTHER = {"prompt": PROMPTS[1], "target_new": TARGETS[1]}


# -- datasets ---------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    """A file of edits."""
    path = tmp_path / "edits.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in RECORDS), encoding="utf-8")
    return path


@pytest.mark.parametrize("keep", [True, False])
def test_a_dataset_is_edited_like_its_records(file, keep):
    dataset = outer.editor()
    found = dataset.edit_dataset(open_dataset(file), keep_original_weight=keep)
    records = outer.editor().edit(requests=RECORDS, keep_original_weight=keep)
    assert timeless(found.metrics) == timeless(records.metrics)
    assert outer.changed(found.edited_model, outer.bits(records.edited_model)) == []


@pytest.mark.parametrize(
    ("kind", "name"), [(ZsreDataset, "zsre.json"), (CounterFactDataset, "counterfact.json")]
)
@pytest.mark.parametrize("method", METHODS)
def test_the_classic_datasets(kind, name, method):
    cases = [case for case in kind(DATA / name) if case.edit.subject][:2]
    assert cases
    found = outer.editor(method).edit_dataset(cases, evaluate_when="both", verbose=False)
    assert [metric["case_id"] for metric in found.metrics] == [case.id for case in cases]
    assert len(found.patch.info.edits) == sum(len(case.edits) for case in cases)
    assert all({"pre", "post", "final"} <= set(metric) for metric in found.metrics)


def test_a_dataset_of_several_edits_per_case():
    cases = list(open_dataset(DATA / "mquake.json"))[:2]
    assert any(case.also for case in cases)
    editor = outer.editor("FT", num_steps=1)
    found = editor.edit_dataset(cases, keep_original_weight=True)
    assert [e.prompt for e in found.patch.info.edits] == [
        edit.prompt for case in cases for edit in case.edits
    ]


def test_a_dataset_in_batches(file):
    editor = outer.editor("MEMIT", batch_size=2)
    batches = []
    real = editor.method.edit
    editor.method.edit = lambda lm, edits, state: (
        batches.append(len(edits)) or real(lm, edits, state)
    )
    editor.edit_dataset(open_dataset(file), batch=True)
    assert batches == [2, 1]


def test_a_bad_record_is_found_before_anything_is_edited(file):
    file.write_text(file.read_text() + '\n{"prompt": "x"}\n')
    editor = outer.editor()
    before = outer.bits(editor.model)
    with pytest.raises(DataError, match=r"edits.jsonl, line 4: target_new missing"):
        editor.edit_dataset(open_dataset(file))
    assert outer.changed(editor.model, before) == []


def test_an_empty_dataset():
    with pytest.raises(EditError, match="nothing to edit"):
        outer.editor().edit_dataset([])


# -- several edits per case -------------------------------------------------------------------

TWO = Case(
    "two",
    Edit(PROMPTS[0], TARGETS[0], SUBJECTS[0]),
    (Probe(PROMPTS[2], ("Italy",), "locality/n"),),
    also=(Edit(PROMPTS[1], TARGETS[1], SUBJECTS[1]),),
)
ONE = Case("one", Edit(PROMPTS[2], TARGETS[2], SUBJECTS[2]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [True, False])
def test_all_edits_of_a_case_are_in_the_model(method, keep):
    editor = outer.editor(method)
    before = outer.bits(editor.model)
    result = editor.edit_cases([TWO, ONE], keep_original_weight=keep, evaluate_when="both")
    assert [edit.target for edit in result.patch.info.edits] == TARGETS
    assert (outer.changed(editor.model, before) == []) is keep
    whole = tiny.model("llama")
    result.patch.apply(whole)
    assert outer.changed(result.edited_model, outer.bits(whole)) == []
    # The case's score counts all its edits alike, on the model that came back.
    shares = [
        outer.share(*outer.said(result.edited_model, prompt, target))
        for prompt, target in zip(PROMPTS, TARGETS, strict=True)
    ]
    first, last = (metric["final"]["rewrite_acc"] for metric in result.metrics)
    assert (first, last) == ((shares[0] + shares[1]) / 2, shares[2])
    asked = result.metrics[0]["requested_rewrite"]
    assert asked["also"] == [{"prompt": PROMPTS[1], "target_new": TARGETS[1]}]
    assert "also" not in result.metrics[1]["requested_rewrite"]


def test_edits_of_a_case_are_made_one_on_the_other_where_they_go_one_by_one():
    together = outer.editor("ROME")
    together.edit_cases([TWO])
    step = outer.editor("ROME")
    for edit in TWO.edits:
        step.edit(edit.prompt, edit.target, subject=edit.subject)
    assert outer.changed(together.model, outer.bits(step.model)) == []
    assert len(together.applied) == 1
    together.undo(together.applied[0])
    assert outer.changed(together.model, outer.bits(tiny.model("llama"))) == []


@pytest.mark.parametrize("method", ["FT", "MEMIT"])
def test_edits_of_a_case_are_made_at_once_where_they_can(method):
    case, lists = (outer.editor(method, batch_size=2) for _ in range(2))
    case.edit_cases([TWO])
    lists.batch_edit(PROMPTS[:2], TARGETS[:2], subject=SUBJECTS[:2])
    assert outer.changed(case.model, outer.bits(lists.model)) == []


@pytest.mark.parametrize("method", METHODS)
def test_an_edit_of_a_case_that_fails_takes_the_case_back(method, monkeypatch):
    editor = outer.editor(method)
    before = outer.bits(editor.model)
    real, made = editor.method.edit, []

    def last_fails(lm, edits, state):
        made.extend(edits)
        if TWO.also[0] in edits:
            raise DivergedError("stop")
        return real(lm, edits, state)

    monkeypatch.setattr(editor.method, "edit", last_fails)
    for keep in (True, False):
        made.clear()
        with pytest.raises(DivergedError):
            editor.edit_cases([ONE, TWO], keep_original_weight=keep)
        assert made == [ONE.edit, *TWO.edits]
        assert outer.changed(editor.model, before) == []
        assert editor.applied == []


@pytest.mark.parametrize("method", ["ROME", "MEMIT"])
def test_every_edit_of_a_case_needs_its_subject(method, monkeypatch):
    monkeypatch.setattr(session, "outcome_of", lambda *_: pytest.fail("worked"))
    case = Case("c", TWO.edit, also=(Edit(PROMPTS[1], TARGETS[1]),))
    with pytest.raises(SubjectRequiredError, match="Eiffel"):
        outer.editor(method).edit_cases([case])


def test_edits_of_a_case_may_not_contradict():
    case = Case("c", TWO.edit, also=(Edit(PROMPT, "Danish"),))
    with pytest.raises(ContradictingEditsError):
        outer.editor().edit_cases([case])


@pytest.mark.parametrize("batch", [True, False])
def test_the_same_case_twice(batch):
    editor = outer.editor()
    before = outer.bits(editor.model)
    with pytest.raises(EditError, match="same case is requested twice"):
        editor.edit_cases([ONE, TWO, ONE], batch=batch)
    assert outer.changed(editor.model, before) == []


# -- measures ---------------------------------------------------------------------------------

FREE = {"generation", "fluency", "consistency", "perplexity"}


@pytest.mark.parametrize("when", ["each", "end", "both"])
def test_what_is_measured_beside(when):
    editor = outer.editor()
    result = editor.edit_cases(benching.CASES, evaluate_when=when, measures=benching.MEASURES)
    for metric in result.metrics:
        for half in {"pre", "post", "final"} & set(metric):
            assert set(metric[half]) >= FREE
            assert metric[half]["perplexity"] > 1
    last = "final" if when == "both" else "post"
    plain = outer.editor().edit_cases(benching.CASES, evaluate_when=when)
    for with_text, without in zip(result.metrics, plain.metrics, strict=True):
        assert not FREE & set(without[last])
        found = {name: with_text[last][name] for name in without[last]}
        assert flatten(found) == pytest.approx(flatten(without[last]), rel=1e-5)


@pytest.mark.parametrize(
    ("measures", "measured"),
    [
        (Measures(), set()),
        (Measures(answer_tokens=3), {"generation"}),
        (Measures(continuation_tokens=5), {"fluency", "consistency"}),
        (Measures(heldout="Some text."), {"perplexity"}),
    ],
    ids=["nothing", "answers", "continuations", "perplexity"],
)
def test_only_what_was_asked_is_measured(measures, measured):
    metric = outer.editor().edit_cases(benching.CASES[:1], measures=measures).metrics[0]
    assert FREE & set(metric["post"]) == measured


def test_lists_may_be_measured_too():
    result = outer.editor().edit(PROMPT, TARGET, measures=Measures(3, 5, heldout="Some text."))
    assert set(result.metrics[0]["post"]) >= FREE - {"consistency"}  # which needs references
    result = outer.editor().batch_edit([PROMPT], [TARGET], measures=Measures(3))
    assert "generation" in result.metrics[0]["post"]


def test_t5_is_measured_too():
    editor = outer.editor("FT", "t5")
    metric = editor.edit_cases(benching.CASES, measures=benching.MEASURES).metrics[0]
    assert set(metric["post"]) >= FREE


def test_a_missing_package_is_found_before_any_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    monkeypatch.setattr(sheet, "observe", lambda *_: pytest.fail("worked"))
    with pytest.raises(MissingExtraError):
        outer.editor().edit_cases(benching.CASES, measures=benching.MEASURES)


def test_both_times_make_a_retention_curve():
    metrics = outer.editor().edit_cases(benching.CASES, evaluate_when="both").metrics
    assert retention(metrics)


# -- the classic example ----------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A tiny model under the working folder, and hyper-parameters that name it."""
    tiny.model("gpt2").save_pretrained(tmp_path / "gpt2-xl")
    tiny.tokenizer().save_pretrained(tmp_path / "gpt2-xl")
    monkeypatch.chdir(tmp_path)
    for method in METHODS:
        kind, values = type(outer.settings(method)), plain_values(method)
        place = tmp_path / "hparams" / method / "gpt2-xl.yaml"
        place.parent.mkdir(parents=True)
        told = {"alg_name": method, "model_name": "./gpt2-xl", "device": 0, **values}
        place.write_text(json.dumps(told))  # JSON is YAML
        assert kind.from_hparams(place)


@pytest.mark.parametrize("suffix", ["", ".yaml"])
@pytest.mark.parametrize("method", METHODS)
def test_the_classic_example(hub, method, suffix):
    import easyeditor

    hparams = getattr(easyeditor, f"{method}HyperParams").from_hparams(
        f"./hparams/{method}/gpt2-xl{suffix}"
    )
    needs = {} if method == "FT" else {"subject": classic.SUBJECTS}
    editor = BaseEditor.from_hparams(hparams)
    before = outer.bits(editor.model)
    metrics, edited_model, _ = editor.edit(
        prompts=classic.PROMPTS,
        ground_truth=classic.TRUTH,
        target_new=classic.TARGETS,
        locality_inputs=classic.LOCALITY,
        keep_original_weight=True,
        **needs,
    )
    assert len(metrics) == 3
    for metric in metrics:
        for name in ("neighborhood", "distracting"):
            assert 0 <= metric["post"]["locality"][f"{name}_acc"] <= 1
            assert {f"{name}_success", f"{name}_diff"} <= set(metric["pre"]["locality"])
        assert metric["post"]["portablility"] == {}
    assert outer.changed(editor.model, before) == []
    assert len(outer.changed(edited_model, before)) == len(hparams.layers)
    if method != "FT":
        with pytest.raises(EasyEditError, match="names no subject"):
            editor.edit(
                prompts=classic.PROMPTS, target_new=classic.TARGETS, keep_original_weight=True
            )


def test_subject_is_where_classic_callers_put_it():
    """By name, among the last arguments."""
    found = outer.editor("ROME").edit(prompts=[PROMPT], target_new=[TARGET], subject=[SUBJECT])
    assert found.metrics[0]["requested_rewrite"]["subject"] == SUBJECT
