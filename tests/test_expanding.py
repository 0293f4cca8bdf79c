"""An expanded edit: its further prompts by templates, what is left out, and how they are used."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import outer
import tiny
from easyeditor import LM, BaseEditor, Case, Edit, Probe, Prompt
from easyeditor.associative.keys import expansion_rows, keys_at, subject_rows
from easyeditor.associative.microbatches import (
    OPENING_FACTOR,
    SUBJECT_PROMPTS,
    MicroBatch,
    context_rows_of,
)
from easyeditor.cli import catalog
from easyeditor.data.edits_file import case_of, read_cases
from easyeditor.data.fields import Fields
from easyeditor.data.write import record_of
from easyeditor.editors.apply_method import outcome_of
from easyeditor.editors.expanding import TOLD, Expansion, expanded_cases
from easyeditor.edits import canonical_json, check_consistent
from easyeditor.errors import (
    ContradictingEditsError,
    DataError,
    EditError,
    SubjectNotFoundError,
)
from easyeditor.lm.forward.partial import Site
from easyeditor.methods import METHODS
from easyeditor.methods.base import Need
from easyeditor.methods.value_search import values_of
from easyeditor.rewording import (
    echo_question,
    inverse_of,
    question_of,
    rewordings_of,
    sentence_of,
    statement_of,
    with_name,
)
from support import Snapshot, lm, same_bits

TOWER = "The Eiffel Tower is located in the city of"
TEMPLATE = "{% for m in messages %}User: {{ m['content'] }}\n{% endfor %}Answer:"


def chatty(name: str = "llama") -> LM:
    tokenizer = copy.deepcopy(tiny.tokenizer())  # the tests share one
    tokenizer.chat_template = TEMPLATE
    return LM(tiny.model(name), tokenizer)


def tower(**more: object) -> Edit:
    return Edit(TOWER, "Rome", "The Eiffel Tower", **more)


# -- templates -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sentence", "question"),
    [
        (TOWER, "In which city is the Eiffel Tower located?"),
        ("The capital of France is", "What is the capital of France?"),
        ("The currency used in Japan is the", "What is the currency used in Japan?"),
        ("Hamlet was written by", "Who was Hamlet written by?"),
        ("The Berlin Wall fell in the year", "The Berlin Wall fell in which year?"),
        ("Jimi Hendrix was famous for playing the", "Jimi Hendrix was famous for playing what?"),
        ("By profession, Socrates was a", "By profession, Socrates was what?"),
        ("Sushi comes from the country of", "Sushi comes from which country?"),
    ],
)
def test_a_sentence_becomes_a_question(sentence, question):
    assert question_of(sentence) == question
    assert echo_question(sentence).endswith("?")


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("What is the capital of France?", "The capital of France is"),
        ("In which city is the Eiffel Tower located?", TOWER),
        ("Where is the Louvre located?", "The Louvre is located in"),
        ("Where is the Louvre?", "The Louvre is in"),
        ("Where are kangaroos found?", "Kangaroos are found in"),
        ("Where was Tim Allen born?", "Tim Allen was born in"),
        ("Where is Tim from?", "Tim is from"),
        ("Where is the money going?", None),
        ("Where are kangaroos?", None),
        ("In which country is Tim Allen?", None),
        ("In which city are the games held?", "The games are held in the city of"),
        ("Who was Hamlet written by?", "Hamlet was written by"),
        ("Who was the book written by?", "The book was written by"),
        ("What is Apple named after?", "Apple is named after"),
        ("What is the Eiffel Tower made of?", "The Eiffel Tower is made of"),
        ("What is the Nile called?", "The Nile is called"),
        ("What is the bridge for?", None),
        ("What is the weather like?", None),
        ("How tall is the tower?", None),
    ],
)
def test_a_question_becomes_a_sentence_where_a_rule_fits(question, sentence):
    assert statement_of(question) == sentence


@pytest.mark.parametrize(
    ("relation", "sentence"),
    [
        ("capital", "The capital of France is"),
        ("capital of", "The capital of France is"),
        ("is located in the continent of", "France is located in the continent of"),
        ("plays for", "France plays for"),
        ("The currency of {} is the", "The currency of France is the"),
        ("headquarters location", "The headquarters location of France is"),
        ("headquarters in", "The headquarters of France is in"),
        ("sports team", "The sports team of France is"),
        ("named after", "France is named after"),
        ("located_in", "France is located in"),
        ("located in the city of", "France is located in the city of"),
        ("named capital", "The named capital of France is"),
        ("born in", "France was born in"),
        ("died in", "France died in"),
        ("speed of", "The speed of France is"),
        ("works for", "France works for"),
        ("works of", "The works of France is"),
        ("works catalog", "The works catalog of France is"),
        ("speaks language", "France speaks language"),
        ("shares border with", "France shares border with"),
        ("has the capital", "France has the capital"),
        ("member of", "France is a member of"),
        ("part of", "France is part of"),
        ("country of citizenship", "The country of citizenship of France is"),
    ],
)
def test_a_triple_becomes_a_sentence(relation, sentence):
    assert sentence_of("France", relation) == sentence


def test_rewordings_name_the_subject_and_end_where_the_answer_stands():
    rewordings = rewordings_of(TOWER, "The Eiffel Tower", question_of(TOWER))
    assert "When it comes to the Eiffel Tower, the city is" in rewordings
    assert all("Eiffel Tower" in text for text in rewordings)
    assert len(set(rewordings)) == len(rewordings)


def test_the_inverse_of_a_one_to_one_relation():
    assert inverse_of("The capital of France is", "France", "Lyon") == "Lyon is the capital of"
    assert inverse_of(TOWER, "The Eiffel Tower", "Rome") is None


def test_an_alias_takes_the_subjects_place():
    assert with_name(TOWER, "The Eiffel Tower", "La Tour Eiffel").startswith("La Tour Eiffel is")
    with pytest.raises(EditError, match="alias must be a name"):
        with_name(TOWER, "The Eiffel Tower", " ")


# -- what an expanded edit holds -----------------------------------------------------------------


def texts(edit: Edit) -> list[tuple[str, bool | None]]:
    return [(other.prompt.text, other.prompt.chat) for other in edit.expansions]


def test_an_edit_of_a_chat_model_gets_both_forms():
    (case,) = expanded_cases(chatty(), [Case("0", tower())], True)
    question = question_of(TOWER)
    assert texts(case.edit)[:2] == [(question, True), (TOWER, True)]
    assert len(case.edit.expansions) == 2 + Expansion().rewordings
    assert all(chat is False for _, chat in texts(case.edit)[2:])
    assert [other.target for other in case.edit.expansions[:2]] == [f"{TOWER} Rome"] * 2
    assert {other.target for other in case.edit.expansions[2:]} == {"Rome"}
    assert {other.subject for other in case.edit.expansions} == {"The Eiffel Tower"}


@pytest.mark.parametrize("truth", ["the Paris", None])
def test_a_reply_is_the_sentence_unless_the_model_begins_with_the_answer(truth, monkeypatch):
    replies = {question_of(TOWER): "The tower stands in", TOWER: "Paris, the capital"}
    monkeypatch.setattr(
        "easyeditor.editors.expanding.generate",
        lambda _lm, prompts, *_args: [
            replies[prompt.text] if prompt.chat else " Paris, France" for prompt in prompts
        ],
    )
    (case,) = expanded_cases(chatty(), [Case("0", tower(ground_truth=truth))], True)
    assert [other.target for other in case.edit.expansions] == [f"{TOWER} Rome", *["Rome"] * 5]
    assert case.edit.target == "Rome"


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_the_opening_of_a_reply_counts_beside_its_answer(name):
    model, opening = lm(name), "It stands there, the Eiffel Tower, in"
    other = Edit("Where is the Eiffel Tower?", f"{opening} Rome", "the Eiffel Tower")
    plain = Edit(other.prompt, "Rome", other.subject)
    rows = context_rows_of(model, 0, tower(expansions=[other, plain]), [""], 0.0)
    begun = len(model.text.row(other.prompt, opening).target)
    answer = len(rows[1].target) - begun
    assert rows[1].weights == pytest.approx(
        [OPENING_FACTOR / 3] * begun + [1 / (3 * answer)] * answer
    )
    assert rows[2].weights == pytest.approx([1 / (3 * answer)] * answer)
    assert rows[1].run.decoder == (None if name == "llama" else rows[1].target)
    if name == "llama":  # δ is added where the subject ends in the reply, too
        (second,) = rows[1].run.also
        upto = model.text.row(other.prompt, "It stands there, the Eiffel Tower").ids
        assert (second, rows[1].run.ids[: second + 1]) == (len(upto) - 1, upto)


def test_tokens_of_an_opening_that_are_the_argmax_already_do_not_count():
    model, zero = lm("llama"), torch.zeros(1, 32)
    other = Edit("Where is the Eiffel Tower?", "It stands in Rome", "the Eiffel Tower")
    row = context_rows_of(model, 0, tower(expansions=[other]), [""], 0.0)[1]
    answer = replace(row, opening_weight=0.0)
    argmax = MicroBatch(model, Site(1, "down"), [row], resume=True).runs.logits(zero).argmax(-1)
    known = tuple(argmax[: row.opening].tolist()) + row.target[row.opening :]
    losses = []
    for one in (row, answer, replace(row, target=known)):
        batch = MicroBatch(model, Site(1, "down"), [one], resume=True)
        losses.append(float(batch.losses(zero)[0].detach()))
    assert losses[0] > losses[1] > 0
    assert losses[2] == losses[1]


def test_without_a_template_there_is_no_chat_form():
    (case,) = expanded_cases(lm("llama"), [Case("0", tower())], Expansion(rewordings=4))
    assert len(case.edit.expansions) == 4
    assert all(chat is None for _, chat in texts(case.edit))
    (same,) = expanded_cases(lm("llama"), [Case("0", tower())], False)
    assert same.edit == tower()


def test_a_question_is_expanded_by_its_sentence():
    edit = Edit("What is the capital of France?", "Lyon", "France")
    (case,) = expanded_cases(chatty(), [Case("0", edit)], Expansion(inverse=True))
    assert ("The capital of France is", False) in texts(case.edit)
    assert (edit.prompt.text, True) in texts(case.edit)


def test_scored_prompts_are_dropped_and_the_user_hears_of_it(caplog):
    scored = "in which city is the Eiffel  Tower located"  # equal but for marks and capitals
    case = Case("a", tower(), [Probe(scored, ("Rome",), "rephrase")])
    (result,) = expanded_cases(chatty(), [case], Expansion(rewordings=4))
    left = [text for text, _ in texts(result.edit)]
    assert len(left) == 3  # the sentence in chat form, and two rewordings that are no questions
    assert not any("in which city" in text.casefold() for text in left)
    assert "which is scored, so the edit is not made with it" in caplog.text
    assert "The answer is" in caplog.text
    assert "Q: In which city" in caplog.text
    assert result.probes == case.probes


@pytest.mark.parametrize("expand", [False, True])
def test_of_many_dropped_prompts_the_first_are_named(expand, caplog):
    question = Edit("Where would I find the Eiffel Tower?", "Rome", "The Eiffel Tower")
    probes = [Probe(question.prompt.text, ("Rome",), "rephrase")]
    cases = [Case(f"number {i}", tower(expansions=[question]), probes) for i in range(11)]
    expanded_cases(chatty(), cases, expand)
    told = [r.message for r in caplog.records if "is scored" in r.message]
    assert len(told) == TOLD
    assert told[0].startswith("Case number 0:")
    assert caplog.records[-1].message.startswith("… and of ")
    assert expand or f"{11 - TOLD} more prompts" in caplog.text


@pytest.mark.parametrize("expand", [None, False, True])
def test_a_question_of_the_users_that_is_scored_is_dropped_with_and_without_expand(expand, caplog):
    question = Edit("Where would I find the Eiffel Tower?", "Rome", "The Eiffel Tower")
    other = Edit("Tell me where the Eiffel Tower is:", "Rome", "The Eiffel Tower")
    probes = [Probe(question.prompt.text, ("Rome",), "rephrase"), Probe("?", ("Rome",), "other")]
    case = Case("a", tower(expansions=[question, other]), probes)
    free = Case("b", tower(expansions=[question]))
    result, same = expanded_cases(chatty(), [case, free], expand)
    assert other in result.edit.expansions
    assert question.prompt.text not in [text for text, _ in texts(result.edit)]
    assert question in same.edit.expansions
    assert expand or same is free
    assert len([r for r in caplog.records if f"prompt {question.prompt.text!r} " in r.message]) == 1


def test_the_users_own_prompts_come_first():
    record = {
        "prompt": TOWER,
        "target_new": "Rome",
        "subject": "The Eiffel Tower",
        "aliases": ["La Tour Eiffel"],
        "question": "Where would I find the Eiffel Tower?",
    }
    case = case_of(Fields(record), 0)
    question, alias = case.edit.expansions
    assert question.prompt == record["question"]
    assert alias == Edit("La Tour Eiffel is located in the city of", "Rome", "La Tour Eiffel")
    (expanded,) = expanded_cases(chatty(), [case], True)
    assert expanded.edit.expansions[:2] == (question, alias)
    assert (record["question"], True) in texts(expanded.edit)  # not one by a template


def test_the_inverse_is_an_edit_of_its_own():
    edit = Edit("The capital of France is", "Lyon", "France")
    (case,) = expanded_cases(lm("llama"), [Case("0", edit)], Expansion(inverse=True))
    assert case.also == (Edit("Lyon is the capital of", "France", "Lyon"),)
    scored = Probe("Lyon is the capital of", ("France",), "portability/inverse")
    (case,) = expanded_cases(lm("llama"), [Case("0", edit, [scored])], Expansion(inverse=True))
    assert case.also == ()


def test_what_the_model_writes_is_checked_against_its_own_answers(monkeypatch):
    from easyeditor.editors import expanding

    asked = []

    def generate(_lm, queries, *_args, **_options):
        asked.append([str(getattr(query, "prompt", query)) for query in queries])
        if len(asked) == 1:  # what it writes
            written = [
                "Which place holds the Eiffel Tower?",
                "Is Rome where the Eiffel Tower is?",  # gives the answer away
                "Where is the Louvre?",  # another subject
            ]
            return [written[i % 3] for i in range(len(queries))]
        return [" Paris, France" for _ in queries]

    monkeypatch.setattr(expanding, "generate", generate)
    how = Expansion(rewordings=0, chat=False, written=2)
    edit = tower(ground_truth="Paris")
    (case,) = expanded_cases(lm("llama"), [Case("0", edit)], how)
    assert [text for text, _ in texts(case.edit)] == ["Which place holds the Eiffel Tower?"]
    monkeypatch.setattr(
        expanding,
        "generate",
        lambda _lm, queries, *_a, **_o: ["Which is the Eiffel Tower?"] * len(queries),
    )
    (case,) = expanded_cases(lm("llama"), [Case("0", edit)], how)
    assert case.edit.expansions == ()  # the unedited model answers something else


def test_expansions_are_read_back_as_they_were_written(tmp_path):
    (case,) = expanded_cases(chatty(), [Case("0", tower())], Expansion(inverse=True))
    file = tmp_path / "edits.json"
    file.write_text(json.dumps([record_of(case)]), encoding="utf-8")
    assert read_cases(file) == [case]
    assert "expansions" not in canonical_json(tower())
    assert "expansions" in canonical_json(case.edit)


def test_a_triple_in_a_file(tmp_path):
    file = tmp_path / "edits.json"
    record = {"subject": "France", "relation": "capital", "target_new": "Lyon"}
    file.write_text(json.dumps([record]), encoding="utf-8")
    assert read_cases(file)[0].edit == Edit("The capital of France is", "Lyon", "France")


# -- wrong input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Edit("A", "B", expansions=["C"]), "An expansion must be an Edit"),
        (
            lambda: Edit("A", "B", expansions=[Edit("C", "B", expansions=[Edit("D", "B")])]),
            "expansions of its own",
        ),
        (lambda: tower(expansions=[Edit("C", "Rome")]), "names no subject"),
        (lambda: Prompt("A", chat="yes"), "chat must be True, False or None"),
        (lambda: Expansion(rewordings=-1), "rewordings=-1"),
        (lambda: Expansion(chat="plain"), "chat='plain'"),
        (lambda: sentence_of("France", " "), "needs its relation"),
        (lambda: sentence_of("France", "located"), "a participle alone"),
    ],
)
def test_wrong_expansions_are_refused(call, message):
    with pytest.raises(EditError, match=message):
        call()


def test_wrong_records_are_refused():
    record = {"prompt": TOWER, "target_new": "Rome"}
    with pytest.raises(EditError, match="aliases and no subject"):
        case_of(Fields({**record, "aliases": ["La Tour Eiffel"]}), 0)
    record["subject"] = "The Eiffel Tower"
    with pytest.raises(SubjectNotFoundError):
        case_of(Fields({**record, "question": "Where is the Louvre?"}), 0)
    with pytest.raises(DataError, match="'answer' of an expansion"):
        case_of(Fields({**record, "expansions": [{"prompt": "A", "answer": "B"}]}), 0)
    edit = tower(expansions=[Edit("The Eiffel Tower is in", "Paris", "The Eiffel Tower")])
    other = Edit("The Eiffel Tower is in", "Rome", "The Eiffel Tower")
    with pytest.raises(ContradictingEditsError):
        check_consistent([edit, other])


@pytest.mark.parametrize("expand", ["yes", 3, Expansion(chat=True)])
def test_a_request_that_cannot_be_expanded_leaves_the_model_as_it_was(expand):
    model = lm("llama")
    editor = BaseEditor(model, outer.settings("FT"))
    before = Snapshot(model.model)
    with pytest.raises(EditError, match=r"expand=|no chat template"):
        editor.edit(TOWER, "Rome", subject="The Eiffel Tower", expand=expand)
    assert before.differences(model.model) == []


def test_a_method_that_stores_one_prompt_says_so_before_it_edits():
    model = lm("llama")
    editor = BaseEditor(model, outer.settings("KN"))
    before = Snapshot(model.model)
    with pytest.raises(EditError, match=r"KN stores one prompt.*ROME"):
        editor.edit(TOWER, "Rome", subject="The Eiffel Tower", expand=True)
    assert before.differences(model.model) == []


def test_a_chat_prompt_needs_a_template():
    with pytest.raises(EditError, match="no chat template"):
        lm("llama").text.row(Prompt(TOWER, chat=True))


# -- prompts in chat form ------------------------------------------------------------------------


def test_a_prompts_own_form_goes_before_the_models():
    plain = chatty()
    chat = LM(plain.model, plain.tokenizer, chat_template=True)
    for form in (True, False):
        prompt = Prompt(TOWER, chat=form)
        rows = [one.text.row(prompt, "Rome", subject="The Eiffel Tower") for one in (plain, chat)]
        assert (
            rows[0]
            == rows[1]
            == (chat if form else plain).text.row(TOWER, "Rome", subject="The Eiffel Tower")
        )
    assert Prompt(TOWER, chat=False) != TOWER


# -- one value over several prompts --------------------------------------------------------------


@pytest.mark.parametrize("name", ["ROME", "MEMIT", "FT", "LoRA", "LocFT-BF"])
def test_prompts_that_are_given_move_the_edit_and_none_leaves_the_bits(name):
    model = chatty()
    method = METHODS.get(name)(outer.settings(name))
    state = method.initial_state(model)
    (case,) = expanded_cases(model, [Case("0", tower())], True)
    before = Snapshot(model.model)
    plain = outcome_of(method, model, [tower()], state).patch
    again = outcome_of(method, model, [tower(expansions=())], state).patch
    more = outcome_of(method, model, [case.edit], state).patch
    assert before.differences(model.model) == []
    assert plain.entries.keys() == again.entries.keys() == more.entries.keys()
    for path in plain.entries:
        assert same_bits(plain.dense(path), again.dense(path))
        assert not same_bits(plain.dense(path), more.dense(path))
    assert more.info.edits == (case.edit,)


@pytest.mark.parametrize("expanded", [True, False])
def test_expanded_edits_have_a_stop_and_a_clamp_of_their_own(expanded):
    model, site = lm("llama"), Site(1, "down")
    edit = tower(expansions=[Edit("Where is the Eiffel Tower?", "Rome", "the Eiffel Tower")])
    plain = tower()
    settings = outer.settings(
        "ROME", v_lr=50.0, v_weight_decay=0.0, kl_factor=0.0, v_num_grad_steps=4,
        clamp_norm_factor=0.5, v_stop_nll=1e-9, expanded_clamp_norm_factor=0.25,
    )  # fmt: skip
    values = values_of(model, site, [edit if expanded else plain], [""], settings)
    length = float(values.delta.norm() / values.origin.norm())
    assert length == pytest.approx(0.25 if expanded else 0.5)
    stopping = settings.replace(expanded_stop_nll=1e9)
    steps = len(values_of(model, site, [edit if expanded else plain], [""], stopping).losses[0])
    assert steps == (1 if expanded else 4)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_other_statements_about_the_subject_share_one_factor(name):
    model, edit = lm(name), tower()
    plain = context_rows_of(model, 0, edit, [""], 0.0)
    kept = context_rows_of(model, 0, edit, [""], 0.0, 0.25)[len(plain) :]
    assert len(kept) == len(SUBJECT_PROMPTS)
    assert sum(weight for row in kept for weight in row.weights) == pytest.approx(0.25)
    assert not any(row.target for row in kept)


@pytest.mark.parametrize("expanded", [True, False])
def test_an_expanded_edit_moves_other_statements_less_where_they_count(expanded):
    """With an enormous factor δ goes back to where nothing changes; other edits know no factor."""
    model, site = lm("llama"), Site(1, "down")
    edit = tower(expansions=[Edit("Where is the Eiffel Tower?", "Rome", "the Eiffel Tower")])
    settings = outer.settings("ROME", kl_factor=0.0, v_num_grad_steps=12, v_lr=0.5)
    free, bound = (
        values_of(
            model,
            site,
            [edit if expanded else tower()],
            [""],
            settings.replace(expanded_kl_factor=factor, expanded_stop_nll=1e-9, v_stop_nll=1e-9),
        ).losses[0]
        for factor in (0.0, 100.0)
    )
    assert (bound[-1] > free[-1]) == expanded
    assert (bound == free) != expanded


def test_a_batch_may_hold_edits_with_and_without_further_prompts():
    model = chatty()
    method = METHODS.get("MEMIT")(outer.settings("MEMIT"))
    (case,) = expanded_cases(model, [Case("0", tower())], True)
    other = Edit(outer.PROMPT, outer.TARGET, outer.SUBJECT)
    before = Snapshot(model.model)
    outcome = method.edit(model, [case.edit, other], method.initial_state(model))
    assert before.differences(model.model) == []
    assert outcome.patch.info.edits == (case.edit, other)


def test_the_value_is_stored_under_the_key_of_every_prompt():
    model = chatty()
    settings = outer.settings("ROME").replace(key_slack=1e-9)
    method = METHODS.get("ROME")(settings)
    (case,) = expanded_cases(model, [Case("0", tower())], True)
    patch = method.edit(model, [case.edit], method.initial_state(model)).patch
    (path,) = patch.entries
    layer = int(settings.resolved(model.n_layers).layers[0])
    keys = keys_at(model, [layer], expansion_rows(model, case.edit))[layer]
    bare = keys_at(model, [layer], subject_rows(model, case.edit, [""]))[layer]
    change = torch.as_tensor(patch.dense(path)).float()
    change = change if change.shape[0] == keys.shape[1] else change.T
    for written in keys @ change:
        torch.testing.assert_close(written, (bare @ change)[0], rtol=1e-2, atol=1e-4)


def test_a_method_of_batches_gets_every_prompt_as_an_edit():
    model = chatty()
    method = METHODS.get("UltraEdit")(outer.settings("UltraEdit"))
    (case,) = expanded_cases(model, [Case("0", tower())], True)
    outcome = outcome_of(method, model, [case.edit], method.initial_state(model))
    assert outcome.patch.info.edits == case.edit.rows


def test_a_ledger_keeps_the_prompts_of_an_edit(tmp_path):
    plain = chatty()
    editor = BaseEditor.from_pretrained(
        plain.model, plain.tokenizer, outer.settings("FT"), ledger=tmp_path / "book"
    )
    allow = ("untaken", "health")
    editor.edit(TOWER, "Rome", subject="The Eiffel Tower", expand=True, allow=allow)
    (entry,) = editor.ledger.ledger.active()
    assert len(entry.edits[0].expansions) == 2 + Expansion().rewordings
    assert entry.edits[0].expansions[0].prompt.chat is True


# -- what the page says --------------------------------------------------------------------------


def test_the_page_lists_what_every_method_does_with_expansions():
    """Each row of docs/expand.md is derived from the class attributes of its methods."""
    rows: dict[str, list[str]] = {"search": [], "every": [], "get": [], "store": []}
    for name in METHODS:
        method = METHODS.get(name)
        if method.searches_expansions:
            rows["search" if Need.SUBJECT in method.needs else "every"].append(name)
        else:
            rows["store" if method.max_batch == 1 else "get"].append(name)
    page = (Path(__file__).parent.parent / "docs" / "expand.md").read_text(encoding="utf-8")
    table = page.split("## What a method does with it")[1].split("\n\n")[1].splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[1:3]] for row in table]
    written = {does.split()[0]: names.split(", ") for names, does in cells}
    assert {does: sorted(names) for does, names in written.items()} == {
        does: sorted(names) for does, names in rows.items()
    }
    assert all(catalog.method(name)["expands"] == (name not in rows["store"]) for name in METHODS)
