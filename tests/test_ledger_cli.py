"""``easyedit ledger``: each command, what it prints, its exit codes, and wrong words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import tiny
from easyeditor.cli.ledger_tables import health_line
from easyeditor.ledger.ledger import Ledger
from outer import FACTS, PROMPT, SUBJECT, TARGET
from scripting import BAD_INPUT, DONE, NOT_TAKEN, ROME, TAKES, document, refused, sets

ANY = ("--max-perplexity-ratio", "1e9", "--max-kl", "1e9")
PASS = ("--allow", "broken", "--allow", "untaken")
FT = ("--method", "ft", *sets(TAKES))
FIRST = ("--prompt", PROMPT, "--target", TARGET, "--subject", SUBJECT)


def facts(place: Path, *rows: tuple[str, str, str]) -> Path:
    """A file of edits, each a prompt, a subject, a target."""
    names = ("prompt", "subject", "target_new")
    file = place / "some.jsonl"
    file.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    return file


@pytest.fixture
def book(easyedit, folder, tmp_path) -> Path:
    """A ledger with one active edit."""
    place = tmp_path / "corrections"
    assert easyedit("ledger", "init", place, "--model", folder, *ANY).code == DONE
    words = ("--why", "ticket 7", "--who", "ada", *FT, *FIRST)
    told = easyedit("ledger", "add", place, *words)
    assert told.code == DONE, told.err
    assert "Edit 1: 'The mother tongue of Anna Lind is' → 'French', active." in told.out
    return place


def test_from_init_to_verify(easyedit, book, tmp_path):
    told = easyedit("ledger", "ls", book)
    assert told.code == DONE
    for text in ("active", "ada", "ticket 7", "French"):
        assert text in told.out
    (entry,) = document(easyedit("ledger", "ls", book, "--state", "active", "--json"))
    assert (entry["number"], entry["author"], entry["reason"]) == (1, "ada", "ticket 7")
    shown = easyedit("ledger", "show", book, "1")
    for text in ("Edit 1: active", "ticket 7", "rewrite_acc", "added", entry["patch"]):
        assert text in shown.out
    assert document(easyedit("ledger", "show", book, "1", "--json"))["events"][0]["author"] == "ada"
    checked = easyedit("ledger", "check", book)
    assert (checked.code, "1 active edit: 1 holding." in checked.out) == (DONE, True)
    assert document(easyedit("ledger", "check", book, "--json"))["edits"][0]["status"] == "holds"
    told = easyedit("ledger", "undo", book, "1", "--why", "wrong", "--who", "bo")
    assert (told.code, told.out) == (DONE, "1 edit undone, 0 active.\n")
    assert "No edits." in easyedit("ledger", "ls", book, "--state", "active").out
    told = easyedit("ledger", "redo", book, "1", *PASS, "--json")
    assert document(told)["edits"][0]["state"] == "active"
    told = easyedit("ledger", "export", book, "--out", tmp_path / "out")
    assert told.code == DONE
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "active.safetensors", "edits.jsonl", "history.jsonl", "manifest.json",
    ]  # fmt: skip
    told = easyedit("ledger", "verify", book)
    assert (told.code, told.out) == (
        DONE,
        "1 edit: the model and all patch files are as recorded.\n",
    )


def test_the_exported_patch_is_taken_by_generate_apply_and_export(easyedit, book, folder, tmp_path):
    out = tmp_path / "out"
    document(easyedit("ledger", "export", book, "--out", out, "--json"))
    patch = out / "active.safetensors"
    words = ("--model", folder, "--patch", patch, "--max-new-tokens", "8", "--json", PROMPT)
    texts = document(easyedit("generate", *words))
    assert TARGET in texts["after"]
    assert TARGET not in texts["before"]
    applied = easyedit("apply", patch, "--model", folder, "--out", tmp_path / "edited")
    assert applied.code == DONE
    exported = easyedit("export", patch, "--out", tmp_path / "adapter")
    assert exported.code == DONE
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_a_conflict_is_bad_input_and_names_the_way_out(easyedit, book):
    words = (*FT, *FIRST[:2], "--target", "Danish", "--subject", SUBJECT)
    told = refused(easyedit("ledger", "add", book, *words))
    assert "contradicts edit 1 by ada" in told
    assert "--supersede" in told
    told = easyedit("ledger", "add", book, *words, "--supersede", *PASS)
    assert told.code == DONE, told.err
    states = [entry["state"] for entry in document(easyedit("ledger", "ls", book, "--json"))]
    assert states == ["superseded", "active"]
    assert "superseded by 2" in easyedit("ledger", "ls", book).out
    assert "Active again: 1." in easyedit("ledger", "undo", book, "2").out


def test_together_what_is_superseded_closes_no_circle(easyedit, book, tmp_path):
    """French → Anna Lind, Anna Lind → Danish, over the active Anna Lind → French."""
    file = facts(
        tmp_path, ("The home of French is", "French", "Anna Lind"), (PROMPT, SUBJECT, "Danish")
    )
    words = ("--edits", file, "--together", *FT, *PASS)
    assert "lead in a circle" in refused(easyedit("ledger", "add", book, *words))
    told = easyedit("ledger", "add", book, *words, "--supersede", "--json")
    assert told.code == DONE, told.err
    assert [entry["number"] for entry in document(told)["edits"]] == [2]


def test_together_by_a_method_for_single_edits_warns_of_one_subject(easyedit, book, tmp_path):
    file = facts(tmp_path, *((f"{SUBJECT} {verb}", SUBJECT, "Rome") for verb in ("likes", "sees")))
    words = ("--edits", file, "--together", "--method", "rome", *sets(ROME), *PASS)
    told = easyedit("ledger", "add", book, *words)
    assert told.code == DONE, told.err
    assert "a later one may overwrite an earlier one" in " ".join(told.err.split())
    assert "--one-by-one" not in told.err


def test_a_ledger_has_one_way_to_load_its_model(easyedit, book, tmp_path):
    other = {"chat_template": True}
    (tmp_path / "how.yaml").write_text(json.dumps({"alg_name": "FT", **other}))
    for words in (("--set", "chat_template=true"), ("--hparams", tmp_path / "how.yaml")):
        told = refused(easyedit("ledger", "add", book, *FT, *FIRST, *words))
        assert "chat_template=False, not chat_template=True" in told
        assert "another ledger" in told
    told = refused(easyedit("ledger", "add", book, *FIRST, "--method", "qlora"))
    assert "--set quantization=null" in told  # by default its model is quantized
    told = refused(easyedit("ledger", "add", book, *FT, *FIRST, "--set", "dtype=float16"))
    assert "dtype=None, not dtype='float16'" in told


def test_the_loading_of_the_ledger_is_that_of_every_edit(easyedit, folder, tmp_path):
    place = tmp_path / "double"
    init = ("ledger", "init", place, "--model", folder, "--dtype", "bfloat16", *ANY)
    assert easyedit(*init).code == DONE
    told = refused(easyedit("ledger", "add", place, *FT, *FIRST, "--set", "dtype=null"))
    assert "dtype='bfloat16', not dtype=None" in told
    told = easyedit("ledger", "add", place, *FT, *FIRST, *PASS, "--json")
    assert document(told)["edits"][0]["settings"]["dtype"] == "bfloat16"


def test_the_number_that_is_reported_is_that_of_the_edit(easyedit, book, monkeypatch):
    from easyeditor import BaseEditor

    edit_cases = BaseEditor.edit_cases

    def edited(*arguments, **options):
        result = edit_cases(*arguments, **options)
        Ledger(book).undo([2])  # another process, before the number is reported
        return result

    monkeypatch.setattr(BaseEditor, "edit_cases", edited)
    prompt, subject, target = FACTS[1]
    words = ("--prompt", prompt, "--subject", subject, "--target", target)
    told = easyedit("ledger", "add", book, *FT, *PASS, *words, "--json")
    assert [entry["number"] for entry in document(told)["edits"]] == [2]


def test_redo_of_a_contradiction_is_refused_before_the_model_is_loaded(
    easyedit, book, folder, tmp_path
):
    words = (*FT, *FIRST[:2], "--target", "Danish", "--subject", SUBJECT, "--propose")
    assert easyedit("ledger", "add", book, *words).code == DONE
    told = refused(easyedit("ledger", "redo", book, "2", "--model", tmp_path))
    assert "contradicts edit 1" in told


def test_health_without_numbers():
    health = {"kl": None, "perplexity": None, "perplexity_ratio": None}
    assert "no number" in health_line(health)
    assert "no number" in health_line({**health, "kl": float("inf")})


def test_a_file_of_edits_goes_on_where_it_was(easyedit, book, tmp_path):
    records = [
        {"prompt": prompt, "target_new": target, "subject": subject}
        for prompt, subject, target in FACTS
    ]
    file = tmp_path / "facts.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    told = easyedit("ledger", "add", book, "--edits", file, *FT, *PASS, "--json")
    assert told.code == NOT_TAKEN  # one of them is there already
    result = document(told)
    assert [entry["number"] for entry in result["edits"]] == [2, 3]
    assert [entry["problems"] for entry in result["refused"]] == [["duplicate"]]


def test_beyond_the_limits(easyedit, folder, tmp_path):
    place = tmp_path / "strict"
    init = ("ledger", "init", place, "--model", folder, "--max-kl", "1e-6", "--json")
    assert document(easyedit(*init))["limits"]["kl"] == 1e-6
    told = easyedit("ledger", "add", place, *FT, *FIRST, "--json")
    assert told.code == NOT_TAKEN
    (problem,) = document(told)["refused"]
    assert problem["type"] == "LedgerHealthError"
    assert problem["number"] == 1
    told = easyedit("ledger", "redo", place, "1")
    assert told.code == NOT_TAKEN
    assert "rolled back" in told.err
    told = easyedit("ledger", "redo", place, "1", "--allow", "health")
    assert (told.code, "Edit 1" in told.out) == (DONE, True)


def test_a_proposal_is_made_by_redo(easyedit, book):
    prompt, subject, target = FACTS[1]
    words = ("--prompt", prompt, "--subject", subject, "--target", target)
    told = easyedit("ledger", "add", book, *FT, *words, "--propose", "--who", "cy")
    assert "Edit 2" in told.out
    assert "proposed" in told.out
    assert easyedit("ledger", "show", book, "2").out.count("not computed yet") == 1
    told = easyedit("ledger", "redo", book, "2", *PASS)
    assert told.code == DONE, told.err
    (_, entry) = document(easyedit("ledger", "ls", book, "--json"))
    assert (entry["state"], entry["author"]) == ("active", "cy")


def test_what_the_model_says_already_is_left_out(easyedit, book):
    easyedit("ledger", "undo", book, "1")
    easyedit("ledger", "redo", book, "1", *PASS)
    told = easyedit("ledger", "add", book, *FT, *FIRST, "--allow", "duplicate", "--json")
    assert told.code == DONE
    assert document(told)["unchanged"] == ["0"]
    told = easyedit("ledger", "add", book, *FT, *FIRST, "--allow", "duplicate")
    assert "1 edit says what the model says already and was left out" in " ".join(told.err.split())


def test_check_and_verify_find_what_is_wrong(easyedit, book, folder, tmp_path):
    (file,) = (book / "patches").glob("*.safetensors")
    file.rename(tmp_path / file.name)
    told = easyedit("ledger", "verify", book, "--files-only")
    assert (told.code, "missing" in told.err) == (NOT_TAKEN, True)
    assert "is missing" in refused(easyedit("ledger", "check", book))
    shutil.copy(tmp_path / file.name, file)
    other = tmp_path / "other"
    tiny.model("llama", seed=1).save_pretrained(other)
    tiny.tokenizer().save_pretrained(other)
    told = easyedit("ledger", "verify", book, "--model", other, "--json")
    assert told.code == NOT_TAKEN
    assert [f["problem"] for f in document(told)["findings"]] == ["model"]
    assert "another model" in refused(easyedit("ledger", "check", book, "--model", other))


WRONG = {
    "no ledger": (("ls", "{}/none"), "There is no ledger"),
    "no command": (("lss", "{}"), "No such command"),
    "ledger there already": (("init", "{}"), "not an empty folder"),
    "impossible limit": (("init", "{}/x", "--max-kl", "-1"), "kl must be a number above 0"),
    "unknown model": (("init", "{}/x", "--model", "./nowhere"), "No folder"),
    "no such edit": (("show", "{}", "9"), "no edit 9"),
    "no number": (("undo", "{}"), "Missing argument"),
    "number that is none": (("undo", "{}", "one"), "as an integer"),
    "undo twice": (("undo", "{}", "1", "9"), "no edit 9"),
    "redo of an active one": (("redo", "{}", "1"), "active already"),
    "unknown state": (("ls", "{}", "--state", "gone"), "gone"),
    "unknown problem": (("add", "{}", *FIRST, "--allow", "all"), "all"),
    "no prompt": (("add", "{}", "--target", "x"), "--prompt missing"),
    "both ways": (("add", "{}", *FIRST, "--edits", "x.json"), "not both"),
    "no subject": (("add", "{}", *FIRST[:4]), "names no subject"),
    "unknown method": (("add", "{}", *FIRST, "--method", "roem"), "Did you mean 'ROME'"),
    "unknown setting": (("add", "{}", *FT, *FIRST, "--set", "num_stps=3"), "Did you mean"),
    "no place": (("export", "{}"), "--out"),
    "full place": (("export", "{}", "--out", "{}"), "not an empty folder"),
}


def test_wrong_words(easyedit, book):
    for words, why in WRONG.values():
        words = [word.replace("{}", str(book)) for word in words]
        assert why in refused(easyedit("ledger", *words)), words
        if why not in {"No such command"}:
            told = easyedit("ledger", *words, "--json")
            assert told.code == BAD_INPUT
            assert why in document(told)["error"]["message"] or "--" in why, words
    assert document(easyedit("ledger", "ls", book, "--json"))[0]["state"] == "active"


@pytest.mark.parametrize("command", ["init", "add", "ls", "show", "undo", "redo", "check",
                                     "export", "verify"])  # fmt: skip
def test_help_has_examples(easyedit, command):
    told = easyedit("ledger", command, "--help")
    assert told.code == DONE
    assert f"easyedit ledger {command}" in told.out
    assert command in easyedit("ledger", "--help").out
