"""``easyedit edit --expand``: what the options ask for, and what is refused."""

from __future__ import annotations

import json

import pytest

from scripting import DONE, NOT_TAKEN, ONE, ROME, document, editing, refused


def test_an_expanded_edit_says_what_it_was_made_with(easyedit, folder):
    more = ("--expand", "--question", "Which tongue is Anna Lind's?", "--alias", "Anne Lind")
    said = easyedit(*editing(folder, *ONE, *more, "--json", method="rome", settings=ROME))
    assert said.code in (DONE, NOT_TAKEN)
    (metric,) = document(said)["metrics"]
    prompts = [other["prompt"] for other in metric["requested_rewrite"]["expansions"]]
    assert prompts[:2] == ["Which tongue is Anna Lind's?", "The mother tongue of Anne Lind is"]
    assert len(prompts) > 2


def test_a_triple(easyedit, folder):
    triple = ("--subject", "France", "--relation", "capital", "--target", "Lyon")
    said = easyedit(*editing(folder, *triple, "--json"))
    (metric,) = document(said)["metrics"]
    assert metric["requested_rewrite"]["prompt"] == "The capital of France is"
    assert "expansions" not in metric["requested_rewrite"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((*ONE, "--relation", "capital"), "no --prompt"),
        (("--relation", "capital", "--target", "Lyon"), "needs the --subject"),
        ((*ONE, "--written", "2"), "--written and --inverse say how to --expand"),
        ((*ONE, "--chat"), "no chat template"),
        ((*ONE, "--alias", " "), "alias must be a name"),
    ],
)
def test_options_that_do_not_go_together(easyedit, folder, options, message):
    assert message in refused(easyedit(*editing(folder, *options)))


def test_a_method_that_stores_one_prompt_is_refused_before_the_model_is_loaded(easyedit, tmp_path):
    options = editing(tmp_path / "nowhere", *ONE, "--expand", method="kn", settings=())
    assert "KN stores one prompt for an edit" in refused(easyedit(*options))


def test_a_file_of_edits_takes_no_options_of_one(easyedit, folder, tmp_path):
    file = tmp_path / "edits.json"
    file.write_text(json.dumps([{"prompt": "A is", "target_new": "B"}]), encoding="utf-8")
    said = easyedit(*editing(folder, "--edits", file, "--question", "What is A?"))
    assert "not both" in refused(said)


def test_a_proposal_loads_no_model_and_is_not_expanded(easyedit, folder, tmp_path):
    book = tmp_path / "book"
    assert easyedit("ledger", "init", book, "--model", folder).code == DONE
    said = easyedit("ledger", "add", book, *ONE, "--method", "ft", "--expand", "--propose")
    assert "--propose loads no model" in refused(said)
