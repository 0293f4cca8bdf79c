"""A ledger of edits: what it records, refuses, rolls back, restores, finds."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
import sqlite3
from pathlib import Path

import pytest

import outer
import tiny
from easyeditor import LM, BaseEditor, Case, Edit, Probe, load_patch
from easyeditor.errors import (
    DivergedError,
    EditError,
    LedgerBusyError,
    LedgerConflictError,
    LedgerError,
    LedgerHealthError,
    OutputError,
    PatchStateError,
)
from easyeditor.ledger import database, health
from easyeditor.ledger.checking import check
from easyeditor.ledger.conflicts import Problem, conflicts_with
from easyeditor.ledger.entries import EntryState
from easyeditor.ledger.exporting import export_ledger
from easyeditor.ledger.health import Health
from easyeditor.ledger.ledger import Ledger
from easyeditor.ledger.limits import HealthLimits
from easyeditor.ledger.live import LiveLedger, create_for
from easyeditor.ledger.recording import untaken
from easyeditor.ledger.verifying import findings
from easyeditor.lm.inference import score
from outer import FACTS, PROMPT, SUBJECT, TARGET

LEARNS = {"num_steps": 60, "lr": 0.02}
ANY = HealthLimits(1e9, 1e9)
STRANGERS = ["broken", "untaken"]
"""Problems of edits of a random model that are not what a test is about."""


class Healthy:
    """A guard that measures nothing, for what is not about health."""

    def measure(self, broken: object = ()) -> Health:
        return Health(1.0, 1.0, 0.0, 0.0)


def fresh() -> LM:
    return LM(tiny.model("llama"), tiny.tokenizer())


def editor_on(folder: Path, method: str = "FT", **changes: object) -> BaseEditor:
    """An editor of a fresh model with the active edits of a ledger."""
    return BaseEditor(fresh(), outer.settings(method, **changes), ledger=folder)


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """A ledger with three active edits; only to be copied."""
    folder = tmp_path_factory.mktemp("ledgers") / "three"
    create_for(folder, fresh(), limits=ANY)
    editor = editor_on(folder, **LEARNS)
    for prompt, subject, target in FACTS:
        editor.edit(
            prompt,
            target,
            subject=subject,
            verbose=False,
            author="ada",
            reason=f"why {subject}",
            allow=STRANGERS,
        )
    return folder


@pytest.fixture
def ledger(three, tmp_path) -> Ledger:
    """A ledger with three active edits."""
    return Ledger(shutil.copytree(three, tmp_path / "ledger"))


@pytest.fixture
def empty(tmp_path) -> Path:
    """An empty ledger that any drift is healthy for."""
    return create_for(tmp_path / "empty", fresh(), limits=ANY).folder


def states(ledger: Ledger) -> list[str]:
    return [str(entry.state) for entry in ledger.entries()]


def edit(editor: BaseEditor, fact: int = 0, target: str | None = None, **options: object):
    prompt, subject, usual = FACTS[fact]
    options.setdefault("allow", STRANGERS)
    return editor.edit(prompt, target or usual, subject=subject, verbose=False, **options)


# -- what is recorded -------------------------------------------------------------------------


def test_an_edit_is_written_down(ledger):
    entry = ledger.entry(1)
    assert (entry.state, entry.author, entry.reason) == ("active", "ada", "why Anna Lind")
    assert entry.created.endswith("Z")
    (case,) = entry.cases
    assert case.edit == Edit(PROMPT, TARGET, SUBJECT)
    assert entry.method == "FT"
    assert entry.settings["num_steps"] == LEARNS["num_steps"]
    assert entry.before[0]["rewrite_acc"] < 1.0
    assert entry.after[0]["rewrite_acc"] == 1.0
    assert entry.health["kl"] > 0
    assert entry.health["perplexity_ratio"] > 0
    assert load_patch(ledger.patches.file(entry.patch)).info.edits == (case.edit,)
    assert [event.event for event in ledger.history(1)] == ["added"]
    assert ledger.folder / "ledger.sqlite" == Ledger(ledger.folder / "ledger.sqlite")._database.file


def test_another_process_goes_on_with_the_same_bits(three, tmp_path):
    folder = shutil.copytree(three, tmp_path / "ledger")
    one, other = editor_on(folder, **LEARNS), editor_on(folder, **LEARNS)
    patch = edit(one, 0, "Danish", supersede=True).patch
    before = outer.bits(one.model)
    other.ledger.sync()
    assert outer.changed(other.model, before) == []
    assert one.applied[-1] is patch


def test_several_facts_of_one_call_are_one_entry(empty):
    editor = editor_on(empty, **LEARNS, batch_size=3)
    prompts, targets = [fact[0] for fact in FACTS], [fact[2] for fact in FACTS]
    editor.batch_edit(prompts, targets, verbose=False, allow=STRANGERS)
    (entry,) = editor.ledger.ledger.entries()
    assert [case.edit.target for case in entry.cases] == targets


def test_the_state_of_a_method_is_saved_beside_the_patch(empty):
    editor = editor_on(empty, "ROME")
    edit(editor)
    entry = editor.ledger.ledger.entry(1)
    assert editor.ledger.ledger.patches.state_file(entry.patch).is_file()
    other = editor_on(empty, "ROME")
    assert other.session._state is not None
    assert other.session.state == editor.session.state
    other.undo(other.applied[0])
    assert other.session._state is None
    assert states(editor.ledger.ledger) == ["undone"]


def test_a_proposal_is_made_later(empty):
    book = Ledger(empty)
    case = Case("0", Edit(PROMPT, TARGET, SUBJECT))
    settings = outer.settings(**LEARNS).model_dump(mode="json")
    assert book.propose([case], "FT", settings, "bo", "later") == 1
    assert (book.entry(1).state, book.entry(1).patch) == (EntryState.PROPOSED, None)
    editor = editor_on(empty, **LEARNS)
    assert editor.applied == []
    with pytest.raises(LedgerError, match="nobody has computed it yet"):
        editor.ledger.redo(1)
    editor.edit_cases([case], verbose=False, proposal=1, allow=STRANGERS)
    assert states(book) == ["active"]
    assert [event.event for event in book.history(1)] == ["proposed", "added"]
    with pytest.raises(LedgerError, match="computed already and is active"):
        editor.edit_cases([case], verbose=False, proposal=1)


def test_what_the_model_says_already_is_not_recorded(ledger):
    editor = editor_on(ledger.folder, **LEARNS)
    before = outer.bits(editor.model)
    edit(editor, 0, allow=["duplicate"], force=False)
    assert states(ledger) == ["active"] * 3
    assert outer.changed(editor.model, before) == []
    assert len(editor.applied) == 3


def test_what_the_model_says_already_supersedes_nothing(ledger, monkeypatch):
    editor = editor_on(ledger.folder, **LEARNS)
    before = outer.bits(editor.model)
    monkeypatch.setattr("easyeditor.editors.metric_recorder.answered", lambda _half: True)
    with pytest.raises(LedgerError, match=r"ledger undo .*ledger 1; or"):
        edit(editor, 0, "Danish", supersede=True, force=False)
    assert states(ledger) == ["active"] * 3
    assert outer.changed(editor.model, before) == []
    LiveLedger(ledger, fresh()).sync()  # every patch can be read


def test_a_proposal_that_was_undone_can_still_be_made(empty):
    book = Ledger(empty)
    case = Case("0", Edit(PROMPT, TARGET, SUBJECT))
    book.propose([case], "FT", outer.settings(**LEARNS).model_dump(mode="json"))
    book.undo([1])
    editor = editor_on(empty, **LEARNS)
    editor.edit_cases([case], verbose=False, proposal=1, allow=STRANGERS)
    assert states(book) == ["active"]


def test_a_second_session_on_a_ledger_goes_on_from_the_state(empty):
    lm = fresh()
    live = LiveLedger(Ledger(empty), lm)
    edit(BaseEditor(lm, outer.settings("ROME"), ledger=live))
    other = BaseEditor(lm, outer.settings("ROME"), ledger=live)
    assert other.session._state is not None


# -- how the model is loaded ------------------------------------------------------------------


def test_a_ledger_made_from_python_remembers_how_its_model_was_loaded(tmp_path):
    settings = outer.settings(dtype="bfloat16", device="cpu")
    book = BaseEditor(fresh(), settings, ledger=tmp_path / "new").ledger.ledger
    assert book.setting("loading") == {"dtype": "bfloat16"}
    BaseEditor(fresh(), settings, ledger=tmp_path / "new")
    with pytest.raises(LedgerError, match=r"dtype='bfloat16', not dtype=None.*another ledger"):
        editor_on(tmp_path / "new")


def test_the_chat_form_of_a_ledger_is_that_of_its_model(tmp_path):
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    lm = LM(tiny.model("llama"), tokenizer, chat_template=True)
    book = BaseEditor(lm, outer.settings(), ledger=tmp_path / "new").ledger.ledger
    assert book.setting("loading") == {"chat_template": True}
    with pytest.raises(LedgerError, match="chat_template=True, not chat_template=False"):
        editor_on(tmp_path / "new")


# -- undo and redo ----------------------------------------------------------------------------


def test_undone_in_any_order_the_bits_are_restored(ledger):
    live = LiveLedger(ledger, fresh())
    live.guard = Healthy()
    unedited = outer.bits(live.lm.model)
    references = {(): unedited}
    live.sync()
    for size in (1, 2, 3):  # each set of edits on a model that carried no other
        for numbers in itertools.combinations((1, 2, 3), size):
            model = fresh().model
            for number in numbers:
                load_patch(ledger.patches.file(ledger.entry(number).patch)).apply(model)
            references[numbers] = outer.bits(model)
    for order in itertools.permutations((1, 2, 3)):
        left = [1, 2, 3]
        for number in order:
            live.undo_entries([number])
            left.remove(number)
            assert outer.changed(live.lm.model, references[tuple(left)]) == []
        for number in order:
            live.redo(number, allow=STRANGERS)
            left.append(number)
            assert outer.changed(live.lm.model, references[tuple(sorted(left))]) == []
    assert states(ledger) == ["active"] * 3


def test_the_editor_undoes_in_the_ledger(ledger):
    editor = editor_on(ledger.folder, **LEARNS)
    editor.undo(editor.applied[1])
    assert states(ledger) == ["active", "undone", "active"]
    assert len(editor.applied) == 2
    with pytest.raises(PatchStateError, match="not among the active edits"):
        editor.undo(load_patch(ledger.patches.file(ledger.entry(2).patch)))


def test_superseding_marks_the_old_and_undo_brings_it_back(ledger):
    editor = editor_on(ledger.folder, **LEARNS)
    before = outer.bits(editor.model)
    edit(editor, 0, "Danish", supersede=True, reason="she is from Denmark")
    assert states(ledger) == ["superseded", "active", "active", "active"]
    assert ledger.entry(1).superseded_by == 4
    after = outer.bits(editor.model)
    with pytest.raises(LedgerError, match="superseded by edit 4; undo that one"):
        ledger.undo([1])
    assert editor.ledger.undo_entries([4]) == [1]
    assert outer.changed(editor.model, before) == []
    editor.ledger.redo(4, allow=STRANGERS)  # takes its place again
    assert states(ledger) == ["superseded", "active", "active", "active"]
    assert outer.changed(editor.model, after) == []
    assert [e.event for e in ledger.history(1)] == [
        "added", "superseded", "active again", "superseded",
    ]  # fmt: skip


def test_undo_is_all_or_nothing(ledger):
    ledger.undo([2])
    with pytest.raises(LedgerError, match="undone already"):
        ledger.undo([1, 2])
    with pytest.raises(LedgerError, match=r"no edit 9 .* edits are 1 to 3"):
        ledger.undo([1, 9])
    assert states(ledger) == ["active", "undone", "active"]


def test_redo_of_what_is_active(ledger):
    with pytest.raises(LedgerError, match="active already"):
        LiveLedger(ledger, fresh()).redo(1)


# -- conflicts --------------------------------------------------------------------------------


def refused(ledger: Ledger, case: Case) -> list[tuple[Problem, tuple[int, ...]]]:
    return [(conflict.problem, conflict.entries) for conflict in ledger.conflicts([case])]


def test_conflicts_are_found_before_anything_is_computed(ledger):
    editor = editor_on(ledger.folder, **LEARNS)
    before = outer.bits(editor.model)
    with pytest.raises(LedgerConflictError, match="contradicts edit 1 by ada") as raised:
        edit(editor, 0, "Danish")
    assert "--supersede" in str(raised.value)
    assert [c.problem for c in raised.value.conflicts] == [Problem.CONTRADICTION]
    with pytest.raises(LedgerConflictError, match="is there already: edit 1"):
        edit(editor, 0)
    assert outer.changed(editor.model, before) == []
    assert states(ledger) == ["active"] * 3


def test_the_same_fact_in_other_writing_or_words(ledger):
    written = Case("0", Edit("The  mother tongue of ANNA LIND is ", "Danish", "ANNA LIND"))
    assert refused(ledger, written) == [(Problem.CONTRADICTION, (1,))]
    reworded = Case("0", Edit("Anna speaks", "Danish"), [Probe(PROMPT, ("Danish",), "rephrase")])
    assert refused(ledger, reworded) == [(Problem.CONTRADICTION, (1,))]
    assert refused(ledger, Case("0", Edit(f"{PROMPT} not", "Danish"))) == []
    assert refused(ledger, Case("0", Edit(PROMPT, f" {TARGET}. "))) == [(Problem.DUPLICATE, (1,))]


def test_what_is_undone_conflicts_with_nothing(ledger):
    ledger.undo([1])
    assert refused(ledger, Case("0", Edit(PROMPT, "Danish", SUBJECT))) == []


def test_circles_of_subjects_and_targets(empty):
    book = Ledger(empty)
    pairs = [("Ann", "Bob"), ("Bob", "Cleo")]
    cases = [Case(a, Edit(f"{a} works for", b, a)) for a, b in pairs]
    for case in cases:
        book.propose([case], "FT", {})
    (circle,) = conflicts_with([Case("0", Edit("Cleo works for", "Ann", "Cleo"))], book.entries())
    assert circle.problem is Problem.CIRCLE
    assert circle.entries == (1, 2)
    assert "Cleo → Ann (this edit), Ann → Bob (edit 1), Bob → Cleo (edit 2)" in circle.message
    assert "undo edit 1 or edit 2 first" in circle.message
    (inverse,) = conflicts_with([Case("0", Edit("Bob employs", "ann", "Bob"))], book.entries())
    assert "reverse of the other" in inverse.message
    assert conflicts_with([Case("0", Edit("Cleo works for", "Dan", "Cleo"))], book.entries()) == []


def test_a_circle_inside_one_request_is_there_once():
    cases = [Case(a, Edit(f"{a} works for", b, a)) for a, b in [("Ann", "Bob"), ("Bob", "Ann")]]
    (circle,) = conflicts_with(cases, [])
    assert (circle.problem, circle.entries) == (Problem.CIRCLE, ())
    assert "Ann → Bob (this edit), Bob → Ann (this edit)" in circle.message
    assert "leave one of them out" in circle.message
    assert conflicts_with(cases[:1], []) == []


def test_what_is_superseded_closes_no_circle(ledger):
    cases = [
        Case("0", Edit("The home of French is", "Anna Lind", "French")),
        Case("1", Edit(PROMPT, "Danish", SUBJECT)),
    ]
    problems = [conflict.problem for conflict in ledger.resolve(cases)[1]]
    assert problems == [Problem.CONTRADICTION, Problem.CIRCLE]
    assert ledger.resolve(cases, supersede=True) == ([1], [])


def test_an_allowed_conflict_leaves_both(ledger):
    edit(editor_on(ledger.folder, **LEARNS), 0, "Danish", allow=[*STRANGERS, "contradiction"])
    assert states(ledger) == ["active"] * 4


# -- the health guard -------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [HealthLimits(1e9, 1e-6), HealthLimits(1.0 + 1e-9, 1e9)])
def test_an_unhealthy_edit_is_rolled_back_to_the_bit(tmp_path, limits):
    book = create_for(tmp_path / "strict", fresh(), limits=limits)
    editor = editor_on(book.folder, num_steps=40, lr=0.1)
    before = outer.bits(editor.model)
    with pytest.raises(LedgerHealthError, match=r"rolled back to the bit.*limit") as raised:
        edit(editor, 1)
    assert outer.changed(editor.model, before) == []
    assert editor.applied == []
    entry = book.entry(1)
    assert entry.state is EntryState.PROPOSED
    assert raised.value.number == 1
    assert raised.value.health.kl > 0
    assert "limit" in book.history(1)[0].reason
    with pytest.raises(LedgerHealthError):
        editor.ledger.redo(1, allow=STRANGERS)
    assert outer.changed(editor.model, before) == []
    editor.ledger.redo(1, allow=[*STRANGERS, "health"])
    assert states(book) == ["active"]
    assert len(editor.applied) == 1


def test_an_edit_that_does_not_take_is_rolled_back(empty):
    editor = editor_on(empty, num_steps=1, lr=1e-9)
    with pytest.raises(LedgerHealthError, match="1 of 1 facts did not take"):
        edit(editor, allow=["broken"])
    assert states(Ledger(empty)) == ["proposed"]


def test_an_answer_that_goes_on_did_not_take():
    post = {"rewrite_acc": 1.0, "free_answer": {"text": " Romeo", "holds": 0.0}}
    assert untaken([{"post": post}]).startswith("1 of 1 facts did not take")
    post["free_answer"]["holds"] = 1.0
    assert untaken([{"post": post}]) == ""


def test_redo_asks_for_the_whole_answer_and_says_what_the_entry_stays(ledger, monkeypatch):
    ledger.undo([1])
    answer = health.free_answers(fresh(), ledger.entry(2).cases)  # of the unedited model
    monkeypatch.setattr(health, "free_answers", lambda _lm, _cases: answer)
    live = LiveLedger(ledger, fresh())
    with pytest.raises(LedgerHealthError, match=r"does not end it there\. It stays undone"):
        live.redo(1, allow=["broken"])
    assert states(ledger) == ["undone", "active", "active"]


def test_an_edit_that_breaks_another_is_rolled_back(empty):
    editor = editor_on(empty, **LEARNS)
    edit(editor, allow=())
    before = outer.bits(editor.model)
    with pytest.raises(LedgerHealthError, match="breaks edit 1, which held before") as raised:
        edit(editor, 0, "Danish", allow=["contradiction", "untaken"])
    assert raised.value.health.broken == (1,)
    assert outer.changed(editor.model, before) == []
    assert states(Ledger(empty)) == ["active", "proposed"]


def test_limits_must_be_possible():
    with pytest.raises(LedgerError, match=r"perplexity_ratio must be a number above 1, not 0\.9"):
        HealthLimits(perplexity_ratio=0.9)
    with pytest.raises(LedgerError, match="kl must be a number above 0, not nan"):
        HealthLimits(kl=float("nan"))


def test_an_unedited_model_does_not_differ_from_itself(empty):
    health = LiveLedger(Ledger(empty), fresh()).guard.measure()
    assert (health.kl, health.kl_max, health.perplexity_ratio) == (0.0, 0.0, 1.0)


def test_an_encoder_decoder_is_guarded_too(tmp_path):
    lm = LM(tiny.model("t5"), tiny.tokenizer())
    create_for(tmp_path / "t5", lm, limits=ANY)
    editor = BaseEditor(lm, outer.settings(lr=0.1), ledger=tmp_path / "t5")
    edit(editor)
    health = editor.ledger.ledger.entry(1).health
    assert health["perplexity"] is None
    assert health["kl"] > 0


# -- check ------------------------------------------------------------------------------------


def test_check_says_what_holds(ledger):
    editor = editor_on(ledger.folder, **LEARNS)
    edit(editor, 0, "Danish", allow=["contradiction", *STRANGERS])
    result = check(LiveLedger(ledger, fresh()))
    status = {row.number: row.status for row in result.entries}
    assert status[1] == "lost"
    assert status[4] == "holds"
    assert 1 in result.lost
    assert 4 not in result.lost
    newest = result.entries[-1]
    assert newest.probability == pytest.approx(newest.probability_then, rel=1e-3)
    assert result.health.kl > 0


def test_an_edit_that_comes_back_during_a_check_is_left_out(ledger, monkeypatch):
    ledger.undo([3])

    def scoring(*arguments: object) -> object:
        with ledger.writing() as connection:
            database.update(connection, 3, {"state": "active"})
        return score(*arguments)

    monkeypatch.setattr(health, "score", scoring)
    live = LiveLedger(ledger, fresh())
    live.guard = Healthy()
    assert [row.number for row in check(live).entries] == [1, 2]


# -- verify -----------------------------------------------------------------------------------


def test_verify_finds_nothing_in_a_sound_ledger(ledger):
    assert findings(ledger) == []


def test_verify_finds_changed_missing_and_orphaned_files(ledger):
    one, two = (ledger.patches.file(ledger.entry(number).patch) for number in (1, 2))
    content = bytearray(one.read_bytes())
    content[-1] ^= 1
    one.write_bytes(content)
    two.unlink()
    (ledger.folder / "patches" / f"{'0' * 64}.safetensors").touch()
    found = {finding.problem: finding for finding in findings(ledger)}
    assert found["changed"].entries == (1,)
    assert found["missing"].entries == (2,)
    assert "0000" in found["orphaned"].file
    model = fresh()
    before = outer.bits(model.model)
    with pytest.raises(LedgerError, match="patch file of edit 1 was changed"):
        LiveLedger(ledger, model).sync()
    ledger.undo([1])
    with pytest.raises(LedgerError, match="patch file of edit 2 is missing"):
        LiveLedger(ledger, model).sync()
    assert outer.changed(model.model, before) == []


def test_verify_finds_a_changed_state(empty):
    edit(editor_on(empty, "ROME"))
    book = Ledger(empty)
    book.patches.state_file(book.entry(1).patch).write_bytes(b"x")
    (finding,) = findings(book)
    assert finding.problem == "changed"
    assert "method's state" in finding.message


def test_another_model_is_noticed(ledger):
    other = LM(tiny.model("llama", seed=1), tiny.tokenizer())
    before = outer.bits(other.model)
    with pytest.raises(LedgerError, match="another model than"):
        BaseEditor(other, outer.settings(), ledger=ledger.folder)
    assert outer.changed(other.model, before) == []


# -- export -----------------------------------------------------------------------------------


def test_export(ledger, tmp_path):
    ledger.undo([2], "bo", "it was right before")
    result = export_ledger(ledger, tmp_path / "out")
    history = [
        json.loads(line) for line in (tmp_path / "out/history.jsonl").read_text().splitlines()
    ]
    assert [entry["state"] for entry in history] == ["active", "undone", "active"]
    assert history[1]["events"][-1]["reason"] == "it was right before"
    lines = [json.loads(line) for line in (tmp_path / "out/edits.jsonl").read_text().splitlines()]
    assert [line["target_new"] for line in lines] == [FACTS[0][2], FACTS[2][2]]
    (patch,) = result.patches
    live, alone = LiveLedger(ledger, fresh()), fresh()
    live.sync()
    load_patch(patch).apply(alone.model)
    assert outer.changed(alone.model, outer.bits(live.lm.model)) == []
    with pytest.raises(OutputError, match="not an empty folder"):
        export_ledger(ledger, tmp_path / "out")


def test_an_export_holds_no_place_on_this_machine(tmp_path):
    create_for(tmp_path / "book", fresh(), limits=ANY)
    editor = editor_on(tmp_path / "book", "ROME", stats_dir=str(tmp_path / "moments"))
    prompt, subject, target = FACTS[0]
    editor.edit(prompt, target, subject=subject, verbose=False, allow=STRANGERS)
    export_ledger(Ledger(tmp_path / "book"), tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        content = file.read_bytes()
        assert str(tmp_path).encode() not in content
    assert '"stats_dir": "moments"' in (tmp_path / "out/history.jsonl").read_text()


# -- writers, interrupts, files that are no ledger --------------------------------------------


def test_a_second_writer_is_refused_and_told_who_writes(ledger):
    editor = editor_on(ledger.folder, **LEARNS)
    with ledger.locked():
        with pytest.raises(LedgerBusyError, match=r"Another process works in .*process \d+ on"):
            Ledger(ledger.folder).undo([1])
        with pytest.raises(LedgerBusyError):
            edit(editor, 0, "Danish", supersede=True)
        assert len(Ledger(ledger.folder).entries()) == 3  # reading goes on
    assert states(ledger) == ["active"] * 3


def test_a_lock_of_another_program(ledger, monkeypatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    other = sqlite3.connect(ledger.folder / "ledger.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerBusyError, match="Another program holds a lock"):
        ledger.undo([1])
    other.close()
    ledger.undo([1])


@pytest.mark.parametrize("where", ["sha256_of", "_move", "_flush"])
def test_an_interrupt_while_writing_leaves_no_trace(ledger, monkeypatch, where):
    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    editor = editor_on(ledger.folder, num_steps=2)
    before, files = outer.bits(editor.model), set(ledger.patches.files())
    monkeypatch.setattr(f"easyeditor.ledger.patch_folder.{where}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        # the digests of the others were checked when the editor was made
        edit(editor, 0, "Danish", allow=["contradiction", *STRANGERS])
    monkeypatch.undo()
    assert outer.changed(editor.model, before) == []
    assert Ledger(ledger.folder).patches.leftovers() is False
    assert set(ledger.patches.files()) == files
    assert findings(ledger) == []
    assert states(ledger) == ["active"] * 3


def test_an_interrupt_in_the_last_transaction(ledger, monkeypatch):
    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    editor = editor_on(ledger.folder, num_steps=2)
    before, files = outer.bits(editor.model), set(ledger.patches.files())
    monkeypatch.setattr("easyeditor.ledger.live.mark_superseded", interrupt)
    with pytest.raises(KeyboardInterrupt):
        edit(editor, 0, "Danish", supersede=True)
    assert outer.changed(editor.model, before) == []
    assert states(Ledger(ledger.folder)) == ["active"] * 3
    assert set(ledger.patches.files()) == files


def test_an_edit_that_fails_leaves_the_ledger_as_it_was(ledger, monkeypatch):
    def fail(*_args: object) -> None:
        raise DivergedError("the loss is not a number")

    editor = editor_on(ledger.folder)
    before = outer.bits(editor.model)
    monkeypatch.setattr(type(editor.method), "edit", fail)
    with pytest.raises(DivergedError):
        edit(editor, 0, "Danish", supersede=True)
    assert outer.changed(editor.model, before) == []
    assert states(ledger) == ["active"] * 3


def test_what_is_no_ledger(tmp_path):
    with pytest.raises(LedgerError, match="There is no ledger in"):
        Ledger(tmp_path)
    file = tmp_path / "ledger.sqlite"
    file.write_text("no database at all, but as long as the header of one would be " * 20)
    with pytest.raises(LedgerError, match="not a database"):
        Ledger(tmp_path)
    file.unlink()
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE notes (text)")
    connection.close()
    with pytest.raises(LedgerError, match="another program's database"):
        Ledger(tmp_path)


def test_a_ledger_of_a_newer_version(ledger):
    connection = sqlite3.connect(ledger.folder / "ledger.sqlite")
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(LedgerError, match="it has format 7"):
        Ledger(ledger.folder)


def test_a_ledger_is_not_made_over_another(ledger):
    with pytest.raises(OutputError, match="holds a ledger already"):
        create_for(ledger.folder, fresh())


def test_what_an_editor_with_a_ledger_refuses(ledger, tmp_path):
    editor = editor_on(ledger.folder)
    before = outer.bits(editor.model)
    with pytest.raises(EditError, match="keep_original_weight"):
        edit(editor, keep_original_weight=True)
    with pytest.raises(EditError, match="carries the edits of its ledger"):
        editor.load(ledger.patches.file(ledger.entry(1).patch))
    with pytest.raises(LedgerError, match="Did you mean 'circle'"):
        edit(editor, allow=["circl"])
    assert outer.changed(editor.model, before) == []
    with pytest.raises(EditError, match="reason='x' is for a ledger"):
        edit(outer.editor(), reason="x", allow=())


def test_a_model_with_other_patches(ledger):
    editor = outer.editor()
    edit(editor, allow=())
    with pytest.raises(LedgerError, match="carries 1 patches that are not the ledger's"):
        BaseEditor(editor.lm, editor.hparams, ledger=ledger.folder)


def test_an_editor_makes_a_ledger_where_there_is_none(tmp_path):
    editor = editor_on(tmp_path / "new")
    assert editor.ledger.ledger.setting("model_name") == editor.lm.name
    assert editor.ledger.ledger.entries() == []


def test_patches_beyond_eight_keep_their_order(empty):
    """Sums of many parts are made in another way; the bits still depend on the set alone."""
    editor = editor_on(empty, num_steps=1, lr=1e-3)
    live = editor.ledger
    live.guard = Healthy()
    for i in range(10):
        prompt, subject, target = FACTS[i % 3]
        editor.edit(
            f"{i} {prompt}", target, subject=subject, verbose=False, allow=[*STRANGERS, "health"]
        )
    before = outer.bits(editor.model)
    live.undo_entries([3, 7])
    live.redo(7, allow=STRANGERS)
    live.redo(3, allow=STRANGERS)
    assert outer.changed(editor.model, before) == []


def test_nothing_here_needs_torch(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys, easyeditor.ledger.ledger, easyeditor.ledger.verifying\n"
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules) or 'light')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "light"
