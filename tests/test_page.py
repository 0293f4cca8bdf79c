"""The page without a browser: a window's models, what a browser may send, and the code it shows."""

from __future__ import annotations

import ast
import json
import shlex
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import typer

import easyeditor
import outer
import scripting
import serving_cases
import synthetic
from easyeditor import Case, Edit, Probe, save_patch
from easyeditor.cli import edit as edit_cli
from easyeditor.cli import exports, trace
from easyeditor.cli import patches as patches_cli
from easyeditor.edits import ImageRef, Prompt
from easyeditor.errors import (
    ArchiveError,
    BenchError,
    DataError,
    EditCancelled,
    EditError,
    HyperParamsError,
    ModelLoadError,
    PatchError,
    PatchFormatError,
    PatchStateError,
    ServerBusyError,
)
from easyeditor.web import recipes, service, settings, uploads, views
from easyeditor.web.workspace import Workspace
from support import Snapshot

FACT = Case(
    "0",
    Edit(outer.PROMPT, "French", outer.SUBJECT, "Italian"),
    [Probe("Berlin is the capital of", ("Germany",), "locality/neighborhood")],
)
QUICK = {"layers": [1], "num_steps": 25, "lr": 0.005, "objective_optimization": "target_new"}
ENDLESS = {"layers": [1], "num_steps": 10**6, "lr": 1e-12}


@pytest.fixture(scope="module")
def lm():
    return serving_cases.model()


@pytest.fixture
def window(lm):
    workspace = Workspace(lm, "tiny")
    workspace._facts = [Edit("She plays the", "flute", ground_truth="piano")]
    yield workspace
    workspace.close()


def edited(window, **changes):
    return window.edit([FACT], "FT", settings.settings_of("FT", "tiny", {**QUICK, **changes}))


def test_an_edit_changes_one_window_and_undoing_it_leaves_no_trace(lm, window):
    other = Workspace(lm, "tiny")
    before = [Snapshot(one.model) for one in (lm, window.before, other.after)]
    clean = Snapshot(window.after.model)
    outcome = edited(window)
    assert outcome.applied.title == f"1 · FT · {outer.PROMPT} → French"
    assert outcome.lines[0]["after"]["p_new"] > outcome.lines[0]["before"]["p_new"]
    assert [shift.prompt for shift in outcome.shifts] == ["She plays the"]
    assert window.after.model.model.layers[0].mlp.down_proj.weight.data_ptr() == (
        lm.model.model.layers[0].mlp.down_proj.weight.data_ptr()
    )
    models = (lm, window.before, other.after)
    assert [s.differences(m.model) for s, m in zip(before, models, strict=True)] == [[], [], []]
    window.undo(1)
    assert {d for d in clean.differences(window.after.model) if not d.startswith("hooks")} == set()
    with pytest.raises(PatchStateError, match=r"no edit 1 in this window; it has none"):
        window.undo(1)
    other.close()


def test_a_saved_edit_is_loaded_into_another_window(lm, window):
    edited(window)
    file = window.save(1)
    other = Workspace(lm, "tiny")
    assert other.load(file).title.startswith("1 · FT")
    texts = [list(one.compare(outer.PROMPT, max_new_tokens=8))[-1] for one in (window, other)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 4
    assert texts[0]["after", "plain"].strip().startswith("French")
    with pytest.raises(PatchStateError):
        other.load(file)
    other.close()
    assert not other.folder.exists()


def test_a_patch_about_images_is_not_loaded(lm, window):
    seen = Prompt("It is", (ImageRef("/etc/passwd", "0" * 64),))
    patch = synthetic.some_patch(lm, 0)
    for edit in (Edit(seen, "x"), Edit("It is", "x", expansions=[Edit(seen, "x")])):
        info = replace(patch.info, edits=(edit,))
        file = save_patch(replace(patch, info=info), window.folder / "seen.safetensors")
        with pytest.raises(PatchError, match="edits about images"):
            window.load(file)
    assert window.edits == []


def test_all_edits_are_saved_as_one_patch_if_they_are_of_one_kind(lm, window):
    with pytest.raises(PatchError, match="no edit to save"):
        window.save(None)
    for number in range(2):
        file = save_patch(synthetic.some_patch(lm, number), window.folder / "one.safetensors")
        window.load(file)
    assert window.save(None).is_file()
    file = save_patch(serving_cases.route_patch(lm), window.folder / "route.safetensors")
    window.load(file)
    with pytest.raises(PatchError, match="several kinds"):
        window.save(None)
    assert window.export(1, "lora").suffix == ".zip"
    with pytest.raises(EditError, match="no format"):
        window.export(1, "../x")
    with pytest.raises(PatchError):
        window.export(3, "lora")


def test_a_cancelled_edit_leaves_the_window_as_it_was(window):
    clean = Snapshot(window.after.model)
    how = settings.settings_of("FT", "tiny", ENDLESS)
    work = window.running(lambda: window.edit([FACT], "FT", how))
    began = time.monotonic()
    for progress in work:
        if progress.startswith("fine-tuning"):
            break
        assert time.monotonic() - began < 20
    with pytest.raises(ServerBusyError, match="still at work"), window.working():
        pass
    assert window.cancel()
    with pytest.raises(EditCancelled, match="as it was"):
        list(work)
    assert window.edits == []
    assert clean.differences(window.after.model) == []
    assert not window.cancel()


def test_cancelled_while_it_is_measured_the_edit_is_taken_back(window, monkeypatch):
    clean = Snapshot(window.after.model)

    def cancelled(*_):
        raise EditCancelled("Cancelled. The model is as it was.")

    monkeypatch.setattr("easyeditor.web.workspace.side_effects", cancelled)
    with pytest.raises(EditCancelled):
        edited(window)
    assert window.edits == []
    assert [d for d in clean.differences(window.after.model) if not d.startswith("hooks")] == []


def test_a_failing_edit_leaves_the_window_as_it_was(window):
    clean = Snapshot(window.after.model)
    with pytest.raises(EditError):
        window.edit([FACT, FACT], "FT", settings.settings_of("FT", "tiny", QUICK))
    assert clean.differences(window.after.model) == []


@pytest.mark.parametrize("prompt", ["", "word " * 5000])
def test_a_prompt_that_cannot_be_continued_is_refused(window, prompt):
    with pytest.raises(EditError):
        list(window.compare(prompt))


# -- what a browser sends ---------------------------------------------------------------------


@pytest.mark.parametrize("method", settings.offered())
def test_no_setting_of_the_page_can_name_a_place(method):
    allowed = settings.settable(method)
    for name in allowed:
        with pytest.raises(HyperParamsError):
            settings.settings_of(method, "tiny", {name: "/etc/passwd"})
    with pytest.raises(HyperParamsError, match="is no setting of"):
        settings.changes_of(method, "model_name=/etc")
    with pytest.raises(HyperParamsError, match="is no setting of"):
        settings.changes_of(method, "stats_dir=/tmp")


def test_settings_are_lines():
    assert settings.changes_of("FT", "lr = 0.1\n\n layers=[1, 2]\n") == {
        "lr": 0.1,
        "layers": [1, 2],
    }
    for text, words in (
        ("lr", "NAME=VALUE"),
        ("lrr=1", "Did you mean 'lr'"),
        ("lr=[1", "cannot be read"),
        ("x" * 3000, "3000 characters"),
    ):
        with pytest.raises(HyperParamsError, match=words):
            settings.changes_of("FT", text)
    assert "MEND" not in settings.offered()


def test_a_file_of_edits_reads_nothing_else_of_the_disk(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    prompt = {"text": "This is", "images": [str(secret)]}
    file = tmp_path / "facts.json"
    file.write_text(json.dumps([{"prompt": prompt, "target_new": "a cat"}]))
    with pytest.raises(DataError, match=r"^facts.json names images"):
        uploads.cases_of_file(str(file))
    table = tmp_path / "facts.csv"
    table.write_text(f'prompt,target_new\n"{json.dumps(prompt)}",x\n'.replace('\\"', '""'))
    with pytest.raises(DataError):
        uploads.cases_of_file(str(table))
    file.write_text(json.dumps([{"prompt": "x", "target_new": ""}]))
    with pytest.raises(DataError) as error:
        uploads.cases_of_file(str(file))
    assert str(tmp_path) not in str(error.value)
    file.write_text(json.dumps([{"prompt": f"x{i}", "target_new": "y"} for i in range(1001)]))
    with pytest.raises(DataError, match="up to 1000"):
        uploads.cases_of_file(str(file))


def test_a_typed_table_is_read_row_by_row():
    rows = [["The capital of France is", "France", "Lyon", None], ["", None, "", ""]]
    (case,) = uploads.cases_of_table(rows)
    assert (case.edit.subject, case.edit.target) == ("France", "Lyon")
    with pytest.raises(EditError, match="is empty"):
        uploads.cases_of_table([["", "", "", ""]])
    with pytest.raises(EditError, match=r"^Row 1 of the table: The subject"):
        uploads.cases_of_table([["The capital of France is", "Spain", "Lyon", ""]])


def test_the_fields_of_an_edit_are_checked():
    case = uploads.case_of_fields("A is", "B", None, "", "A was\n", "C is => D")
    assert [probe.group for probe in case.probes] == ["rephrase", "locality"]
    for fields in (
        ("", "B", "", "", "", ""),
        ("A is", "", "", "", "", ""),
        ("A is", "B", "C", "", "", ""),
        ("A is", "B", "", "", "", "no arrow"),
        ("A" * 5000, "B", "", "", "", ""),
        ("A is", "B", "", "", "x\n" * 30, ""),
    ):
        with pytest.raises((EditError, DataError)):
            uploads.case_of_fields(*fields)


def test_only_patch_files_are_loaded(tmp_path):
    with pytest.raises(PatchFormatError, match=r"ends in \.safetensors"):
        uploads.patch_file(str(tmp_path / "facts.json"))


# -- windows ----------------------------------------------------------------------------------


def test_a_model_that_cannot_be_chosen_leaves_the_former_one_on_the_page(lm):
    from easyeditor.web.page import _chooser

    offer = service.Service(["a", "b"], lambda _name: lm, method="FT")
    window, request = offer.window("one"), SimpleNamespace(session_hash="one")
    with window.working():
        *_, (_, name), (message, _) = _chooser(offer)("b", request)
    assert name == "a"
    assert offer.present("one") is window
    assert "still at work" in message
    *_, (message, _) = _chooser(offer)("b", request)
    assert "b is chosen" in message
    assert offer.present("one").name == "b"


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("mend", "Train one: easyedit train --method mend"),
        ("ike", "needs demonstrations"),
        ("serac", "Train one: easyedit train --method serac"),
    ],
)
def test_the_page_starts_with_no_method_that_it_does_not_offer(easyedit, folder, method, why):
    result = easyedit("ui", "--model", folder, "--method", method)
    assert result.code == 2
    assert why in " ".join(result.err.replace("│", " ").split())


def test_a_folder_of_archives_that_is_not_there_is_named(easyedit, folder):
    result = easyedit("ui", "--model", folder, "--archives", folder / "nowhere")
    assert result.code == 2
    assert "no folder; name the one that easyedit train wrote to" in " ".join(result.err.split())


def test_a_trained_method_is_offered_where_its_archive_lies(lm, tmp_path):
    from easyeditor.web.archives import archives_in

    place = tmp_path / "MEND" / "a"
    place.mkdir(parents=True)
    (place / "archive.safetensors").touch()
    names = ["owner/a", "b"]
    offer = service.Service(
        names, lambda _name: lm, method="FT", archives=archives_in(tmp_path, names)
    )
    assert "MEND" in offer.methods()
    assert "IKE" not in offer.methods()
    assert "MEND" not in offer.missing()
    assert "SERAC" in offer.missing()
    used = offer.settings("MEND", "owner/a", {})
    assert used.archive == str(place / "archive.safetensors")
    assert offer.shown("MEND", "owner/a", {}) == {"archive": "results/MEND/a"}
    assert offer.settings("FT", "b", {}).alg_name == "FT"
    with pytest.raises(ArchiveError, match=r"no archive of MEND for b\. It has one for owner/a"):
        offer.settings("MEND", "b", {})


@pytest.mark.slow
def test_a_trained_method_edits_with_the_archive_of_its_model(easyedit, folder, tmp_path):
    from easyeditor import load
    from easyeditor.web.archives import archives_in

    near = {"loc": "Berlin is the capital of", "loc_ans": "Germany"}
    records = [
        {"src": outer.PROMPT, "alt": word, "answers": ["Danish"], "rephrase": "Anna speaks", **near}
        for word in ("French", "Rome", "piano", "flute")
    ]
    file = tmp_path / "zsre.json"
    file.write_text(json.dumps(records), encoding="utf-8")
    words = ("train", "--method", "mend", "--model", folder, "--data", file, "--out", tmp_path)
    few = ("max_iters=2", "val_interval=1", "batch_size=2", "device=cpu")
    assert easyedit(*words, *scripting.sets(few)).code == 0
    name = str(folder)
    archives = archives_in(tmp_path, [name])
    offer = service.Service([name], load, method="FT", archives=archives)
    window = offer.window("one")
    before = Snapshot(window.after.model)
    outcome = window.edit([FACT], "MEND", offer.settings("MEND", name, {}))
    assert outcome.result.patch.info.method == "MEND"
    window.undo(outcome.applied.number)
    assert before.differences(window.after.model) == []
    offer.close()


def test_the_page_keeps_a_bounded_number_of_models(lm, monkeypatch):
    loaded = []
    offer = service.Service(list("abcd"), lambda name: loaded.append(name) or lm, method="FT")
    monkeypatch.setattr(service, "MAX_MODELS", 2)
    for name in "abac":  # b was not asked for the longest
        offer.model(name)
    assert loaded == ["a", "b", "c"]
    offer.choose("one", "a")
    offer.choose("two", "c")
    with pytest.raises(ServerBusyError, match="2 models are in use"):
        offer.choose("three", "d")
    assert offer.present("three") is None
    offer.forget("one")
    assert offer.choose("three", "d").name == "d"
    assert loaded == ["a", "b", "c", "d"]
    offer.close()


def test_windows_are_apart_and_forgotten(lm, tmp_path, monkeypatch):
    loaded = []
    offer = service.Service(["a", "b"], lambda name: loaded.append(name) or lm, method="FT")
    one, two = offer.window("one"), offer.window("two")
    assert one is not two
    assert offer.window("one") is one
    assert loaded == ["a"]
    assert offer.choose("one", "b").name == "b"
    assert not one.folder.exists()
    with pytest.raises(ModelLoadError, match="does not offer the model '/etc'"):
        offer.choose("one", "/etc")
    monkeypatch.setattr(service, "MAX_WINDOWS", 2)
    with pytest.raises(ServerBusyError, match="2 windows are open"):
        offer.window("three")
    offer.forget("one")
    offer.forget("nobody")
    assert offer.window("three").edits == []
    offer.close()
    assert offer.present("two") is None


def test_runs_are_named_and_not_placed(lm, tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "run.json").write_text("{}")
    (tmp_path / "other").mkdir()
    offer = service.Service(["a"], lambda _: lm, method="FT", runs=tmp_path)
    assert offer.run_names() == ["first"]
    assert offer.run_folder("first") == tmp_path / "first"
    for name in ("other", "..", "../first", ""):
        with pytest.raises(BenchError, match="There is no run"):
            offer.run_folder(name)


# -- what is shown ----------------------------------------------------------------------------


def test_no_text_of_an_edit_is_markup(window):
    evil = "<script>alert(1)</script>"
    case = Case("0", Edit(f"The {evil} is", evil, evil, evil))
    how = settings.settings_of("FT", "tiny", {**QUICK, "num_steps": 2})
    outcome = window.edit([case], "FT", how)
    pages = (
        views.verdict(outcome, batch=False),
        views.before_and_after(outcome.lines),
        views.many_edits(outcome.cases, outcome.result.metrics),
        views.edit_list(window.edits),
        views.problem(evil),
    )
    assert not any("<script" in page for page in pages)
    assert "&lt;script&gt;" in pages[1]


def test_pictures_are_part_of_the_page():
    page = views.picture("a' onerror='alert(1)", b"\x89PNG")
    assert "onerror='" not in page
    assert "src='data:image/png;base64,iVBORw=='" in page


def test_code_cannot_leave_its_block():
    recipe = recipes.save_recipe("a.safetensors")
    shown = views.code(recipes.Recipe("x = '''````'''", recipe.command))
    assert shown.startswith("`````python\n")


def parses(text: str, commands: dict) -> None:
    """A command has a form that the command line takes; nothing is run."""
    words = shlex.split(text.replace("\\\n", " "), comments=True)
    assert words[:1] == ["easyedit"]
    command = typer.main.get_command(commands[words[1]])
    command.make_context(words[1], words[2:], resilient_parsing=False)


@pytest.fixture(scope="module")
def commands():
    """One application per command, so that its words can be parsed alone."""
    result = {}
    for name, function in {
        "edit": edit_cli.edit,
        "generate": patches_cli.generate,
        "show": patches_cli.show,
        "export": exports.export,
        "trace": trace.trace,
    }.items():
        result[name] = typer.Typer(add_completion=False)
        result[name].command()(function)
    return result


@pytest.mark.parametrize("method", settings.offered())
def test_the_code_of_an_edit_can_be_run(method, commands):
    case = Case(
        "0",
        Edit('The "mother\'s" tongue of Anna is', "$5; rm", "Anna", "It"),
        [Probe("Anna speaks", ("$5; rm",), "rephrase"), Probe("B is", ("C",), "locality/near")],
    )
    recipe = recipes.edit_recipe(
        case, method, "tiny", {"layers": [1]}, file="edit 1.safetensors", force=True
    )
    tree = ast.parse(recipe.python)
    imported = next(node for node in tree.body if isinstance(node, ast.ImportFrom))
    assert all(hasattr(easyeditor, alias.name) for alias in imported.names)
    parses(recipe.command, commands)
    many = recipes.batch_recipe(
        "my facts.csv", method, "tiny", {}, batch=False, force=False, file="x.safetensors"
    )
    ast.parse(many.python)
    parses(many.command, commands)


def test_the_code_of_every_other_action_can_be_run(commands):
    files = ["edit-1-ft.safetensors"]
    for recipe in (
        recipes.compare_recipe("A `b` is", "tiny", files, 40),
        recipes.compare_recipe("A `b` is", "tiny", files, 40, chat=False),
        recipes.undo_recipe(files[0], files, "tiny"),
        recipes.save_recipe(files[0]),
        recipes.load_recipe(files[0], "tiny"),
        recipes.export_recipe(files[0], "lora"),
        recipes.export_recipe(files[0], "gguf-lora"),
        recipes.trace_recipe("A is", "A", ["B"], "lens", "tiny", files),
        recipes.trace_recipe("A is", "A", [], "state", "tiny", []),
    ):
        for node in ast.walk(ast.parse(recipe.python)):
            if isinstance(node, ast.ImportFrom):
                module = __import__(node.module, fromlist=["x"])
                assert all(hasattr(module, alias.name) for alias in node.names)
        parses(recipe.command, commands)
    assert "easyedit bench report" in recipes.report_recipe("runs/first").command
