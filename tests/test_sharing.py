"""A patch that is pulled is the patch that was pushed, or it is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import HfApi

import fake_hub
import pages
import serving_cases
import tiny
from easyeditor import LM, Edit, load_patch, save_patch
from easyeditor.edits import ImageRef, Prompt
from easyeditor.errors import (
    HubError,
    ManifestError,
    OutputError,
    PatchError,
    PatchMismatchError,
    SignatureError,
)
from easyeditor.export.lora import export_lora
from easyeditor.patches.public import public_header
from easyeditor.sharing.hub import pull_repository, push_repository
from easyeditor.sharing.repository import read_repository, write_repository
from easyeditor.sharing.scores import edit_scores
from outer import ROOT, bits, changed
from scripting import DONE, NOT_TAKEN, document, refused
from support import Snapshot, lm, same_bits
from synthetic import patch, some_patch

FILES = {"README.md", "manifest.json", "patch.safetensors"}
ADAPTER = {"adapter_config.json", "adapter_model.safetensors"}


@pytest.fixture(scope="module")
def target() -> LM:
    return lm("llama")


@pytest.fixture
def shared(target, tmp_path) -> Path:
    return write_repository(some_patch(target, 0), tmp_path / "shared").folder


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> Path:
    return new_key(tmp_path_factory.mktemp("keys") / "ada")


def new_key(file: Path) -> Path:
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ada@example", "-f", str(file)]
    subprocess.run(words, check=True)
    return file


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_TOKEN", "secret")
    with fake_hub.running() as (address, hub):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


# -- folders ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["weights", "modules", "route"])
def test_what_is_read_is_what_was_written(kind, target, tmp_path):
    edit = serving_cases.patches(target)[kind]
    written = write_repository(edit, tmp_path / "shared", licence="mit")
    assert names(written.folder) == FILES | (ADAPTER if kind == "weights" else set())
    result = read_repository(written.folder).patch
    assert result.info == edit.info
    one, other = edit.dump()[0], result.dump()[0]
    assert one.keys() == other.keys()
    assert all(same_bits(one[name], other[name]) for name in one)
    before = Snapshot(target.model)
    result.apply(target.model)
    result.revert(target.model)
    assert before.differences(target.model) == []


def test_the_adapter_is_that_of_an_export(target, shared, tmp_path):
    folder = export_lora(some_patch(target, 0), tmp_path / "adapter").folder
    for name in ADAPTER:
        assert (shared / name).read_bytes() == (folder / name).read_bytes()


def test_the_card_says_what_changes(target, tmp_path):
    edit = some_patch(target, 0)
    before = bits(target.model)
    scores = edit_scores(target, edit)
    assert changed(target.model, before) == []
    folder = write_repository(edit, tmp_path / "a", licence="apache-2.0", scores=scores).folder
    card = (folder / "README.md").read_text(encoding="utf-8")
    for text in ("license: apache-2.0", "library_name: peft", "The Eiffel Tower is in", "→"):
        assert text in card
    plain = write_repository(edit, tmp_path / "b").folder / "README.md"
    assert "Nothing was measured" in plain.read_text(encoding="utf-8")
    with pytest.raises(PatchMismatchError):
        edit_scores(lm("gpt2"), edit)


@pytest.mark.parametrize("name", sorted(FILES | ADAPTER))
@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_file_that_is_not_as_written_is_named(shared, name, damage):
    file = shared / name
    if damage == "missing":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with pytest.raises(ManifestError, match="." if name == "manifest.json" else name):
        read_repository(shared)


@pytest.mark.parametrize(
    "change",
    [
        {"easyedit_manifest": 2},
        {"files": {"../patch.safetensors": {"sha256": "0" * 64, "bytes": 1}}},
        {"files": {"a/b": {"sha256": "0" * 64, "bytes": 1}}},
        {"files": {"a": {"sha256": "0", "bytes": 1}}},
        {"files": {"a": {"sha256": "0" * 64, "bytes": True}}},
        {"files": [1]},
        {"about": []},
    ],
)
def test_a_manifest_that_is_none(shared, change):
    file = shared / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ManifestError, match="is not a manifest of EasyEdit"):
        read_repository(shared)


def test_more_than_was_written_is_refused(shared, tmp_path):
    (shared / ".gitattributes").write_text("")
    read_repository(shared)
    (shared / "modeling.py").write_text("")
    with pytest.raises(ManifestError, match=r"modeling.py is not in the manifest"):
        read_repository(shared)
    with pytest.raises(ManifestError, match=r"has no manifest.json"):
        read_repository(tmp_path)
    with pytest.raises(OutputError, match="not an empty folder"):
        write_repository(some_patch(lm("llama"), 0), shared)


def test_a_repository_names_no_place(target, tmp_path):
    (tmp_path / "home").mkdir()
    settings = {
        "archive": "/home/ada/run7/archive.safetensors",
        "stats_dir": "~/moments/",
        "more": {"texts": ["./home/a.txt", r"C:\\home\\b.txt", "home/c/d.txt"]},
        "encoder": "/home/ada/hub/models--org--name/snapshots/0a1b2c",
        "kept": ["shipped", "org/name", "https://a.b/c/d", ". {}", "and / or", "mlp.down_proj", 3],
    }
    seen = Prompt("What is it?", (ImageRef("/home/ada/photo.png", "0" * 64),))
    edits = (
        Edit("/home/ of what?", "/home/is/here", expansions=[Edit(seen, "it")]),
        Edit(seen, "x"),
    )
    edit = some_patch(target, 0)
    info = dataclasses.replace(edit.info, hyperparams=settings, edits=edits)
    written = write_repository(dataclasses.replace(edit, info=info), tmp_path / "shared")
    result = read_repository(written.folder).patch
    assert result.info.hyperparams == {
        "archive": "archive.safetensors",
        "stats_dir": "moments",
        "more": {"texts": ["a.txt", "b.txt", "d.txt"]},
        "encoder": "org/name",
        "kept": settings["kept"],
    }
    assert result.info.edits == edits  # texts as they were, images by their content
    assert result.info.edits[1].prompt.images[0].path == "photo.png"
    card = (written.folder / "README.md").read_text(encoding="utf-8")
    assert "run7" not in card
    assert "archive=archive.safetensors" in card
    stored = load_patch(save_patch(dataclasses.replace(edit, info=info), tmp_path / "stays"))
    assert stored.info.hyperparams == settings


def test_files_that_a_patch_refers_to_are_named_without_their_folders():
    header = {
        "hyperparams": {},
        "model_name": "/home/ada/llama",
        "edits": [],
        "data": {
            "answers": {"file": "/home/ada/serac.safetensors", "config": {"_name_or_path": "/a/b"}},
            "memory": [["id", "/home/ada/ is", "file"]],
            "encoder": None,
        },
    }
    result = public_header(header)
    assert result["model_name"] == "llama"
    assert result["data"] == {
        "answers": {"file": "serac.safetensors", "config": {"_name_or_path": "b"}},
        "memory": header["data"]["memory"],
        "encoder": None,
    }


def test_what_the_adapter_leaves_out_is_said(easyedit, target, tmp_path):
    dense = patch(target, "dense", 0)
    file = save_patch(dense, tmp_path / "dense.safetensors")
    words = ("push", file, "ada/eiffel", "--no-scores", "--rank", 1)
    told = easyedit(*words, "--dry-run", tmp_path / "one", "--json")
    assert told.code == DONE, told.err
    error = max(export_lora(dense, tmp_path / "adapter", rank=1).errors.values())
    card = (tmp_path / "one" / "README.md").read_text(encoding="utf-8")
    line = f"rank 1 and is an approximation: up to {error:.2g}"
    assert line in card
    assert line in " ".join(document(told)["notes"])
    assert "leaves out" in card
    told = easyedit(*words, "--dry-run", tmp_path / "two")
    assert "is an approximation" in told.out
    whole = write_repository(some_patch(target, 0), tmp_path / "whole")
    assert "rank 1 and holds the whole change" in whole.notes[0]
    with pytest.raises(PatchError, match="rank of 1 or more"):
        write_repository(dense, tmp_path / "none", rank=0)
    assert not (tmp_path / "none").exists()


# -- signatures -------------------------------------------------------------------------------


def test_a_signature_is_of_one_key_and_one_manifest(target, key, tmp_path):
    folder = write_repository(some_patch(target, 0), tmp_path / "signed", key=key).folder
    public = key.with_suffix(".pub")
    read_repository(folder, key=public)
    other = new_key(tmp_path / "bo").with_suffix(".pub")
    with pytest.raises(SignatureError, match="not of"):
        read_repository(folder, key=other)
    with pytest.raises(SignatureError, match=r"ends in \.pub"):
        read_repository(folder, key=key)
    file = folder / "manifest.json"
    file.write_text(file.read_text() + "\n")
    read_repository(folder)
    with pytest.raises(SignatureError, match="changed after it was signed"):
        read_repository(folder, key=public)
    (folder / "manifest.json.sig").unlink()
    with pytest.raises(SignatureError, match="is not signed"):
        read_repository(folder, key=public)


def test_keys_that_cannot_sign(target, tmp_path, monkeypatch):
    edit = some_patch(target, 0)
    with pytest.raises(SignatureError, match="No key file"):
        write_repository(edit, tmp_path / "a", key=tmp_path / "nowhere")
    wrong = tmp_path / "wrong"
    wrong.write_text("no key")
    with pytest.raises(SignatureError, match="cannot sign"):
        write_repository(edit, tmp_path / "a", key=wrong)
    monkeypatch.setattr(shutil, "which", lambda _tool: None)
    with pytest.raises(SignatureError, match="Install OpenSSH"):
        write_repository(edit, tmp_path / "a", key=wrong)
    assert not (tmp_path / "a").exists()


# -- the hub ----------------------------------------------------------------------------------


def test_pushed_and_pulled(easyedit, hub, folder, key, tmp_path):
    edited = LM(tiny.model("llama"), tiny.tokenizer())
    file = save_patch(some_patch(edited, 0), tmp_path / "eiffel.safetensors")
    push = ("push", file, "ada/eiffel", "--model", folder, "--sign", key)
    told = easyedit(*push, "--license", "mit", "--json")
    assert told.code == DONE, told.err
    first = document(told)["commit"]
    told = easyedit("pull", "ada/eiffel", "--out", tmp_path / "a", "--key", f"{key}.pub")
    assert told.code == DONE, told.err
    assert "signed by the key" in told.out
    assert names(tmp_path / "a") == FILES | ADAPTER | {"manifest.json.sig"}
    assert (tmp_path / "a" / "patch.safetensors").read_bytes() == file.read_bytes()

    second = save_patch(serving_cases.module_patch(edited), tmp_path / "second.safetensors")
    assert easyedit("push", second, "ada/eiffel", "--no-scores").code == DONE
    assert easyedit("pull", "ada/eiffel", "--out", tmp_path / "b").code == DONE
    assert names(tmp_path / "b") == FILES  # neither the adapter nor the signature of the first
    words = ("pull", "ada/eiffel", "--out", tmp_path / "c", "--revision", first)
    assert easyedit(*words).code == DONE
    assert (tmp_path / "c" / "patch.safetensors").read_bytes() == file.read_bytes()


def test_a_push_deletes_only_files_of_the_former_patch(hub, target, tmp_path):
    first = write_repository(some_patch(target, 0), tmp_path / "first")
    push_repository(first, "ada/eiffel")
    here = {"picture.png": b"1", "adapter_notes.txt": b"2", "base.safetensors": b"3"}
    hub.add("ada/eiffel", {**hub.files("ada/eiffel")[1], **here, "manifest.json.sig": b"old"})
    push_repository(
        write_repository(serving_cases.patches(target)["modules"], tmp_path / "second"),
        "ada/eiffel",
    )
    assert set(hub.files("ada/eiffel")[1]) == FILES | {".gitattributes", *here}


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        (None, "has no manifest.json"),
        (b'{"name": "an extension"}', "not EasyEdit's"),
        (
            b'{"easyedit_manifest": 1, "about": {"kind": "ledger"}, "files": {}}',
            "holds a 'ledger', not a patch",
        ),
    ],
)
def test_a_repository_of_something_else_is_left_alone(hub, target, tmp_path, manifest, why):
    weights = {"model.safetensors": b"weights", "README.md": b"a model", ".gitattributes": b""}
    files = weights if manifest is None else {**weights, "manifest.json": manifest}
    hub.commits["ada/model"] = []
    hub.add("ada/model", files)
    written = write_repository(some_patch(target, 0), tmp_path / "shared")
    for branch in (None, "draft"):
        with pytest.raises(HubError, match=f"{re.escape(why)}.*new repository"):
            push_repository(written, "ada/model", revision=branch)
    assert [files for _, files in hub.commits["ada/model"]] == [files]


def test_a_repository_with_a_card_alone_is_pushed_to(hub, target, tmp_path):
    hub.commits["ada/empty"] = []
    hub.add("ada/empty", {"README.md": b"soon"})
    push_repository(write_repository(some_patch(target, 0), tmp_path / "shared"), "ada/empty")
    assert set(hub.files("ada/empty")[1]) == FILES | ADAPTER


def test_only_what_the_manifest_lists_is_fetched(hub, target, tmp_path):
    fetched = set()

    class Watched(HfApi):
        def snapshot_download(self, *args, **settings):
            folder = super().snapshot_download(*args, **settings)
            fetched.update(file.name for file in Path(folder).iterdir() if file.is_file())
            return folder

    push_repository(write_repository(some_patch(target, 0), tmp_path / "shared"), "ada/eiffel")
    more = {"manifest.json.backup": b"", "manifest.jsonl": b"", "weights.bin": b""}
    hub.add("ada/eiffel", {**hub.files("ada/eiffel")[1], **more})
    pull_repository("ada/eiffel", tmp_path / "pulled", api=Watched())
    assert names(tmp_path / "pulled") == fetched == FILES | ADAPTER


@pytest.mark.slow
def test_what_was_changed_on_the_hub_is_not_pulled(easyedit, hub, target, tmp_path):
    file = save_patch(some_patch(target, 0), tmp_path / "eiffel.safetensors")
    assert easyedit("push", file, "ada/eiffel", "--no-scores").code == DONE
    files = dict(hub.files("ada/eiffel")[1])
    other = save_patch(patch(target, "low", 9), tmp_path / "other.safetensors").read_bytes()
    for change in ({"patch.safetensors": other}, {"manifest.json": b"{}"}):
        hub.add("ada/eiffel", {**files, **change})
        message = refused(easyedit("pull", "ada/eiffel", "--out", tmp_path / "out"))
        assert "(ManifestError)" in message
    del files["patch.safetensors"]
    hub.add("ada/eiffel", files)
    message = refused(easyedit("pull", "ada/eiffel", "--out", tmp_path / "out"))
    assert "patch.safetensors is missing" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_the_hub_refuses(easyedit, hub, target, tmp_path, monkeypatch):
    file = save_patch(some_patch(target, 0), tmp_path / "eiffel.safetensors")
    out = ("--out", tmp_path / "out")
    assert "(HubError)" in refused(easyedit("pull", "ada/nothing", *out))
    assert "(HubError)" in refused(easyedit("pull", "a b/c", *out))
    assert easyedit("push", file, "ada/eiffel", "--no-scores").code == DONE
    words = ("pull", "ada/eiffel", *out, "--revision", "nowhere")
    assert "(HubError)" in refused(easyedit(*words))
    hub.token = "another"
    assert "(HubError)" in refused(easyedit("push", file, "ada/eiffel", "--no-scores"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "(HubError)" in refused(easyedit("push", file, "ada/eiffel", "--no-scores"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "(HubError)" in refused(easyedit("pull", "ada/eiffel", *out))
    assert not (tmp_path / "out").exists()
    assert HubError.__mro__[2] is OSError


def test_a_dry_run_pushes_nothing(easyedit, target, folder, tmp_path):
    file = save_patch(some_patch(target, 0), tmp_path / "eiffel.safetensors")
    words = ("push", file, "ada/eiffel", "--dry-run", tmp_path / "dry")
    told = easyedit(*words, "--model", folder)
    assert told.code == DONE, told.err
    assert "nothing was pushed" in told.out
    read_repository(tmp_path / "dry")
    assert "not an empty folder" in refused(easyedit(*words, "--model", folder))
    assert "No patch file" in refused(easyedit("push", "nowhere.safetensors", "ada/eiffel"))


# -- an export of a ledger --------------------------------------------------------------------


@pytest.mark.slow
def test_an_export_is_signed_and_verified(easyedit, folder, key, tmp_path):
    from easyeditor.ledger.live import create_for
    from easyeditor.lm.loading import load
    from test_serve_cli import _written

    target = load(str(folder))
    book = create_for(tmp_path / "book", target, str(folder))
    _written(book, some_patch(target, 0))
    shipped, public = tmp_path / "shipped", f"{key}.pub"
    told = easyedit("ledger", "export", book.folder, "--out", shipped, "--sign", key)
    assert told.code == DONE, told.err
    assert f"--key {public}" in told.out
    about = json.loads((shipped / "manifest.json").read_text())["about"]
    assert (about["kind"], about["active"]) == ("ledger", [1])
    told = easyedit("ledger", "verify", shipped, "--key", public)
    assert (told.code, "all files are as exported" in told.out) == (DONE, True)
    other = new_key(tmp_path / "bo")
    told = easyedit("ledger", "verify", shipped, "--key", f"{other}.pub", "--json")
    assert told.code == NOT_TAKEN
    assert [f["problem"] for f in document(told)["findings"]] == ["signature"]
    (shipped / "history.jsonl").write_text("")
    (shipped / "edits.jsonl").unlink()
    (shipped / "more").write_text("")
    told = easyedit("ledger", "verify", shipped, "--key", public, "--json")
    assert told.code == NOT_TAKEN
    problems = {f["problem"]: Path(f["file"]).name for f in document(told)["findings"]}
    assert problems == {"missing": "edits.jsonl", "changed": "history.jsonl", "added": "more"}
    assert "a ledger is not signed" in refused(
        easyedit("ledger", "verify", book.folder, "--key", public)
    )


@pytest.mark.slow
def test_the_page_shows_what_runs(easyedit, folder, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for suffix in ("", ".pub"):
        shutil.copy(f"{key}{suffix}", tmp_path / f"id_ed25519{suffix}")
    edited = LM(tiny.model("llama"), tiny.tokenizer())
    save_patch(some_patch(edited, 0), tmp_path / "eiffel.safetensors")
    assert easyedit("ledger", "init", "corrections", "--model", folder).code == DONE
    for words in pages.commands("sharing.md"):
        told = easyedit(*words, *(["--model", folder] if words[0] == "push" else []))
        assert (told.code, bool(told.out)) == (DONE, True), (words, told.err)
    assert (tmp_path / "signed" / "manifest.json.sig").is_file()
    assert "docs/sharing.md" in (ROOT / "README.md").read_text(encoding="utf-8")
