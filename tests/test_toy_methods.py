"""A method of each kind of patch is one file and one line: edit, kill, resume, save, load, undo."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch

import benching
import toy_package
from benching import MEASURES, killed_after, numbers
from easyeditor import BaseEditor, Edit, load_patch
from easyeditor.bench.config import BenchmarkConfig
from easyeditor.bench.runner import run
from easyeditor.bench.worker import Worker
from easyeditor.editors.state_file import state_file
from easyeditor.errors import PatchFormatError, UnknownMethodError
from easyeditor.lm.inference import generate, score
from easyeditor.methods import METHODS
from outer import PROMPT, SUBJECT, TARGET
from scripting import document, sets
from support import EDITS, Snapshot, lm

toys = toy_package.toys
pytestmark = pytest.mark.usefixtures("toys")
NAMES = sorted(toy_package.SETTINGS)


def settings(name: str, corpus: str, stats_dir: str) -> Any:
    kind = METHODS.get(name).hyperparams_class
    more = {"mom2_dataset": corpus, "stats_dir": stats_dir} if name == "TOY_ALPHAEDIT" else {}
    return kind(**toy_package.SETTINGS[name], **more)


@pytest.fixture
def editor_of(corpus: str, stats_dir: str) -> Any:
    def build(name: str) -> BaseEditor:
        target = lm("llama")
        return BaseEditor.from_pretrained(
            target.model, target.tokenizer, settings(name, corpus, stats_dir)
        )

    return build


def asked(editor: BaseEditor) -> tuple[Any, Any]:
    prompts = [edit.prompt for edit in EDITS]
    return score(editor.lm, [(e.prompt, e.target) for e in EDITS]), generate(editor.lm, prompts, 4)


def edit(editor: BaseEditor, change: Edit) -> Any:
    result = editor.edit(str(change.prompt), change.target, subject=change.subject, verbose=False)
    return result.patch


@pytest.mark.parametrize("name", NAMES)
def test_edits_accumulate_are_saved_loaded_and_undone(name, editor_of, tmp_path) -> None:
    whole, first_part, second_part = (editor_of(name) for _ in range(3))
    before, unedited = Snapshot(whole.model), asked(whole)
    first = edit(whole, EDITS[0])
    after_first = asked(whole)
    assert after_first != unedited
    second = edit(whole, EDITS[1])
    # Saved after the first edit and taken up by another editor: the second edit is the same.
    file = first_part.save(edit(first_part, EDITS[0]), tmp_path / "edit.safetensors")
    assert state_file(file).is_file() == (METHODS.get(name).state_class is not None)
    loaded = second_part.load(file)
    assert asked(second_part) == after_first
    edit(second_part, EDITS[1])
    assert asked(second_part) == asked(whole)
    assert [e.target for e in loaded.info.edits] == [EDITS[0].target]
    # Undone in the order of application, and the other way.
    whole.undo(first)
    whole.undo(second)
    assert asked(whole) == unedited
    assert before.differences(whole.model) == []


@pytest.mark.parametrize("name", NAMES)
def test_an_undone_edit_leaves_no_trace(name, editor_of) -> None:
    once, twice = editor_of(name), editor_of(name)
    twice.undo(edit(twice, EDITS[0]))
    edit(once, EDITS[1])
    edit(twice, EDITS[1])
    assert asked(once) == asked(twice)


@pytest.mark.parametrize("name", NAMES)
def test_two_wrappers_give_one_patch(name, editor_of) -> None:
    """Also where the second is built when the model carries an edit."""
    one = editor_of(name)
    method = METHODS.get(name)(one.hparams)
    state = method.initial_state(one.lm)
    edit(one, EDITS[0])
    again = type(one.lm)(one.model, one.tokenizer)
    other = METHODS.get(name)(one.hparams).initial_state(again)
    if state is None:
        assert other is None
        return
    (tensors, data), (other_tensors, other_data) = state.dump(), other.dump()
    assert data == other_data
    assert all(torch.equal(tensor, other_tensors[key]) for key, tensor in tensors.items())


def sequence(name: str, corpus: str, stats_dir: str) -> BenchmarkConfig:
    methods = {name: settings(name, corpus, stats_dir)}
    return BenchmarkConfig(methods, benching.CASES, "sequential", measures=MEASURES, data="facts")


@pytest.mark.parametrize("name", ["STEER", "TOY_ALPHAEDIT"])
def test_killed_processes_leave_a_sequence_that_goes_on_with_its_state(
    name, corpus, stats_dir, tmp_path
) -> None:
    """Killed after the unedited model and one edit, then after two edits."""
    assert METHODS.get(name).state_class is not None
    plan, out = sequence(name, corpus, stats_dir), tmp_path / "out"
    for _ in range(2):
        assert killed_after(2, lambda: run(benching.lm(), plan, out))
    assert not killed_after(2, lambda: run(benching.lm(), plan, out))
    assert numbers(out) == numbers(run(benching.lm(), plan, tmp_path / "whole"))


@pytest.mark.parametrize("name", NAMES)
def test_a_sequence_that_breaks_off_goes_on_with_its_state(
    name, corpus, stats_dir, tmp_path, monkeypatch
) -> None:
    plan = sequence(name, corpus, stats_dir)
    whole = run(benching.lm(), plan, tmp_path / "whole")
    out, real = tmp_path / "out", Worker.run_task
    for _ in range(12):
        with monkeypatch.context() as patched:
            left = iter("ab")  # two tasks, then the process dies

            def dying(self, task, left=left):
                if next(left, None) is None:
                    raise KeyboardInterrupt
                return real(self, task)

            patched.setattr(Worker, "run_task", dying)
            with suppress(KeyboardInterrupt):
                run(benching.lm(), plan, out)
                break
    assert numbers(out) == numbers(whole)


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line(name, easyedit, folder, corpus, stats_dir, tmp_path) -> None:
    patch = tmp_path / "edit.safetensors"
    given = settings(name, corpus, stats_dir).model_dump(mode="json", exclude_defaults=True)
    words = sets(tuple(f"{key}={_word(value)}" for key, value in given.items()))
    one = ("--prompt", PROMPT, "--target", TARGET, "--subject", SUBJECT)
    told = easyedit(
        "edit", "--model", folder, "--method", name.lower(), *words, *one, "--save", patch, "--json"
    )
    assert told.code in {0, 1}, told.err
    assert document(told)["patch"]["method"] == name
    assert load_patch(patch).info.method == name
    shown = document(easyedit("show", patch, "--json"))
    assert shown["method"] == name
    written = easyedit("generate", "--model", folder, "--patch", patch, PROMPT, "--json")
    assert written.code == 0, written.err
    listed = document(easyedit("methods", "--json"))
    assert name in [entry["name"] for entry in listed]


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).replace("'", '"')


def test_a_state_of_another_patch_is_refused(editor_of, tmp_path) -> None:
    editor = editor_of("STEER")
    file = editor.save(edit(editor, EDITS[0]), tmp_path / "a.safetensors")
    other = editor.save(edit(editor, EDITS[1]), tmp_path / "b.safetensors")
    state_file(other).replace(state_file(file))
    fresh = editor_of("STEER")
    before = Snapshot(fresh.model)
    with pytest.raises(PatchFormatError, match="another patch"):
        fresh.load(file)
    state_file(file).write_bytes(b"damaged")
    with pytest.raises(PatchFormatError, match="initial state"):
        fresh.load(file)
    assert before.differences(fresh.model) == []


def test_a_name_that_is_taken_or_an_entry_that_names_no_class() -> None:
    with pytest.raises(UnknownMethodError, match="'ROME' is registered already"):
        METHODS.add("rome", "toys.steer:Steer")
    with pytest.raises(UnknownMethodError, match=r"package\.module:ClassName"):
        METHODS.add("OTHER", "toys.steer")
