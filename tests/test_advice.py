"""Notes beside the scores: what a user should know of a request."""

from __future__ import annotations

import outer
from easyeditor import Edit
from easyeditor.editors.advice import notes_before, overwritten, repeated_subjects
from easyeditor.edits import Case
from support import shared_lm


def test_a_request_without_surprises_has_no_notes():
    result = outer.editor("FT").edit(
        "Berlin is the capital of", "Italy", subject="Berlin", verbose=False
    )
    (metric,) = result.metrics
    assert "notes" not in metric
    assert set(metric["post"]["free_answer"]) == {"text", "holds", "sound", "faults"}


def test_notes_on_a_request():
    lm = shared_lm("gpt2")
    long = "You can see the river from here. " * 9
    cases = [
        Case("0", Edit("the river, the River and the river are", "x", "The River")),
        Case("1", Edit("Berlin is", long.strip(), "Berlin")),
        Case("2", Edit("Rome is", "x", "Rome")),
    ]
    pre = [{"rewrite_acc": acc} for acc in (0.0, 0.0, 1.0)]
    (place,), (length,), (known,) = notes_before(lm, cases, pre)
    assert "occurrence 3 of 3" in place
    assert "Shorten it" in length
    assert "already" in known


def test_a_repeated_subject_is_named_with_the_edit_that_overwrites_it():
    cases = [Case(str(i), Edit(f"{s} is", "x", s)) for i, s in enumerate(("Rome", "Oslo", "Rome"))]
    assert repeated_subjects(cases) == {0: 2}
    note = overwritten(2, held=False)
    assert "was overwritten by edit 3" in note
    assert "MEMIT" in note


def test_the_last_of_several_edits_about_one_subject_stands():
    editor = outer.editor("FT")
    prompts = ["Berlin is the capital of", "Berlin lies by the"]
    given = {"subject": ["Berlin", "Berlin"], "verbose": False}
    first, last = editor.edit(prompts, ["Italy", "river"], **given, evaluate_when="both").metrics
    assert any("overwritten by edit 2" in note for note in first["notes"])
    assert "notes" not in last
