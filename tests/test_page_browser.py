"""The page in a real browser: edit, compare, undo, upload, cancel, download, load; wrong inputs."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

import browsing
import outer

pytestmark = pytest.mark.slow

QUICK = "layers=[1]\nnum_steps=25\nlr=0.005\nobjective_optimization=target_new"
ENDLESS = "layers=[1]\nnum_steps=1000000\nlr=1e-12\nobjective_optimization=target_new"
FIELDS = {
    "edit_prompt": outer.PROMPT,
    "edit_target": "French",
    "edit_subject": outer.SUBJECT,
    "edit_truth": "Italian",
    "edit_rephrases": "Anna Lind speaks",
    "edit_neighbours": "Berlin is the capital of => Germany",
}


@pytest.fixture(scope="module")
def address():
    with browsing.serving() as url:
        yield url


@pytest.fixture(scope="module")
def opened():
    with browsing.browser() as player:
        yield player


@pytest.fixture
def new_window(opened, address):
    """Opens windows that are closed after the test."""
    windows = []

    def make():
        windows.append(browsing.Window(opened, address))
        return windows[-1]

    yield make
    for window in windows:
        window.page.context.close()


def edited(window):
    """The window, in which one fact was edited."""
    window.write(**FIELDS)
    window.set("edit", QUICK)
    message = window.press("edit-button", "edit-status")
    assert "took" in message
    return window


def compared(window):
    window.open("Compare")
    window.write(compare_prompt=outer.PROMPT)
    window.press("compare-button", "compare-status")
    return window.value("compare-before-plain"), window.value("compare-after-plain")


def test_edit_compare_undo_download_and_load(new_window, tmp_path):
    window = edited(new_window())
    assert "Anna Lind speaks" in window.text("edit-table")
    assert "What else moved" in window.text("edit-moved")
    before, after = compared(window)
    assert after.strip().startswith("French")
    assert not before.strip().startswith("French")

    window.open("Edits")
    assert "French" in window.text("edits-table")
    assert "edit-1-ft.safetensors" in window.press("edits-save", "edits-status")
    file = window.download("edits-download", tmp_path)
    assert file.name == "edit-1-ft.safetensors"
    assert "undone" in window.press("edits-undo", "edits-status")
    before, after = compared(window)
    assert after == before

    window.open("Edits")
    window.upload("edits-upload", file)
    window.page.wait_for_selector("#edits-table :text('French')")
    before, after = compared(window)
    assert after.strip().startswith("French")

    window.open("Edits")
    assert "adapter" in window.press("edits-export", "edits-status")
    assert window.download("edits-download", tmp_path).suffix == ".zip"
    assert window.foreign == []


def test_windows_do_not_disturb_each_other(new_window):
    first, second = edited(new_window()), new_window()
    before, after = compared(second)
    assert before == after
    assert compared(first)[1].strip().startswith("French")
    second.open("Edits")
    assert "No edit is applied" in second.text("edits-table")
    assert first.foreign == second.foreign == []


def test_a_file_of_edits_is_uploaded_and_a_long_edit_cancelled(new_window, tmp_path):
    window = new_window()
    window.open("Edit many")
    file = tmp_path / "facts.csv"
    file.write_text(
        "prompt,subject,target_new\n"
        f"{outer.PROMPT},{outer.SUBJECT},French\n"
        "Berlin is the capital of,Berlin,Italy\n"
    )
    window.upload("batch-file", file)
    window.page.wait_for_selector("#batch-file :text('facts')")
    window.set("batch", ENDLESS)
    window.start("batch-button", "batch-status")
    window.page.wait_for_selector("#batch-status :text('fine-tuning')")
    window.page.click("#batch-cancel")
    assert "Cancelled. The model is as it was." in window.ended("batch-status")
    window.set("batch", QUICK)
    assert "took" in window.press("batch-button", "batch-status")
    assert "Berlin is the capital of" in window.text("batch-result")
    window.page.get_by_role("button", name="The same in Python").locator("visible=true").click()
    window.page.wait_for_selector("#batch-recipe :text('--edits facts.csv')")
    assert window.foreign == []


def test_wrong_inputs_are_answered_with_a_sentence(new_window, tmp_path):
    window = new_window()
    window.write(**FIELDS)
    cases = (
        ({"edit_prompt": ""}, "", "prompt is empty"),
        ({**FIELDS, "edit_target": ""}, "", "target"),
        ({**FIELDS, "edit_subject": "Berlin"}, "", "does not occur in the prompt"),
        ({**FIELDS, "edit_neighbours": "no arrow"}, "", "=>"),
        (FIELDS, "lrr=1", "Did you mean 'lr'"),
        (FIELDS, "layers=[77]", "the model has 3 layers"),
    )
    for fields, settings, words in cases:
        window.write(**fields)
        window.set("edit", settings)
        message = window.press("edit-button", "edit-status")
        assert words in message
        assert "Traceback" not in message

    window.open("Edit many")
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"prompt": "x"\n')
    window.upload("batch-file", wrong)
    window.page.wait_for_selector("#batch-file :text('wrong')")
    message = window.press("batch-button", "batch-status")
    assert message.startswith("wrong.jsonl")

    window.open("Edits")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\x07" * 100)
    window.upload("edits-upload", damaged)
    assert "damaged.safetensors" in window.ended("edits-status")
    assert "No edit is chosen" in window.press("edits-undo", "edits-status")
    assert "Traceback" not in window.page.content()


def test_a_heat_map_is_drawn_and_a_model_chosen(new_window):
    window = new_window()
    window.open("Look inside")
    window.write(inside_prompt=outer.PROMPT, inside_subject=outer.SUBJECT, inside_answers="French")
    window.press("inside-button", "inside-status")
    window.page.wait_for_selector("#inside-picture img")
    window.page.get_by_label("hidden states").click()
    assert "Rows are tokens" in window.press("inside-button", "inside-status")
    window.choose("model", "other")
    assert "other is chosen" in window.ended("model-status")
    assert window.foreign == []


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=../../../../etc/passwd",
        "gradio_api/file=README.md",
        "file=/etc/passwd",
    ],
)
def test_no_file_of_the_disk_is_served(address, path):
    assert status_of(f"{address}/{path}") in (403, 404)


def test_another_name_of_this_machine_is_refused(address):
    assert status_of(address) == 200
    assert status_of(address, Host="evil.example") == 403


def status_of(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as ok:
            return ok.status
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code
