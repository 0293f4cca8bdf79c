"""The script ``easyedit`` through its entry point: JSON, exit codes, files that load."""

from __future__ import annotations

import io
import json

import pytest
import torch
import typer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import outer
import tiny
from cases import CASES
from easyeditor import load_patch
from easyeditor.cli import catalog
from easyeditor.cli.info import write_presets
from easyeditor.cli.peek import peek
from easyeditor.errors import PatchFormatError
from easyeditor.hyperparams import KNOWN_MODELS
from easyeditor.lm.families import FAMILIES
from easyeditor.methods import METHODS
from outer import FACTS, PROMPT, SUBJECT, TARGET
from scripting import (
    BAD_INPUT,
    DONE,
    NOT_TAKEN,
    ONE,
    ROME,
    WEAK,
    document,
    editing,
)


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    """A patch file of a dense and of a low-rank method, made in Python for the same model."""
    from easyeditor import save_patch

    place = tmp_path_factory.mktemp("patches")
    for method in ("FT", "ROME"):
        made = outer.editor(method).edit(PROMPT, TARGET, subject=SUBJECT, keep_original_weight=True)
        save_patch(made.patch, place / f"{method.lower()}.safetensors")
    return place


# -- edit -------------------------------------------------------------------------------------


def test_edit_as_json(easyedit, folder, tmp_path):
    file = tmp_path / "p.safetensors"
    told = easyedit(
        *editing(folder, *ONE, "--json", "--save", file, "--ground-truth", "Danish"),
        *("--rephrase", "Anna Lind speaks", "--rephrase", "Anna Lind is"),
        *("--locality", "She plays the => piano", "--portability", "Berlin is => the capital"),
    )
    assert told.code == DONE
    found = document(told)
    (metric,) = found["metrics"]
    assert metric["post"]["rewrite_acc"] == 1.0
    assert {"rephrase_acc", "rephrase_success"} <= set(metric["post"])
    names = {f"neighborhood_{what}" for what in ("acc", "success", "diff")}
    assert set(metric["post"]["locality"]) == names
    assert set(metric["post"]["portability"]) == {"one_hop_acc"}
    assert found["averages"]["post"]["rewrite_acc"] == 1.0
    assert (found["method"], found["model"]) == ("FT", str(folder))
    assert found["patch"]["path"] == str(file)
    assert found["patch"]["edits"] == [
        {"prompt": PROMPT, "target": TARGET, "subject": SUBJECT, "ground_truth": "Danish"}
    ]
    assert found["patch"]["hyperparams"]["num_steps"] == 60
    lines = [(line["kind"], line["prompt"], line["new"]) for line in found["before_after"]]
    assert lines == [
        ("prompt", PROMPT, TARGET),
        ("rephrase", "Anna Lind speaks", TARGET),
        ("rephrase", "Anna Lind is", TARGET),
        ("neighbour", "She plays the", TARGET),
        ("one_hop", "Berlin is", "the capital"),
    ]
    first = found["before_after"][0]
    assert first["after"]["p_new"] > first["before"]["p_new"]
    edited = tiny.model("llama")
    load_patch(file).apply(edited)
    assert outer.share(*outer.said(edited, PROMPT, TARGET)) == 1.0
    for model, when in ((tiny.model("llama"), "before"), (edited, "after")):
        assert first[when]["continuation"] == written(model, 12)


def written(model, n):
    """Greedy continuation of the prompt, by transformers alone."""
    ids = tiny.tokenizer()(PROMPT, return_tensors="pt")["input_ids"]
    out = model.generate(ids, do_sample=False, max_new_tokens=n)
    return tiny.tokenizer().decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_edit_for_people(easyedit, folder, tmp_path):
    told = easyedit(*editing(folder, *ONE, "--save", tmp_path / "p.safetensors"))
    assert told.code == DONE
    assert all(word in told.out for word in ("Scores", TARGET, "easyedit generate", "1.00"))
    assert "Ship it: easyedit apply" in told.out
    assert "Traceback" not in told.err


def test_an_edit_that_is_in_no_weight_is_served(easyedit, folder, tmp_path):
    settings = ("layers=[1]", "eps=0.05", "n_iter=60")
    file = tmp_path / "p.safetensors"
    told = easyedit(*editing(folder, *ONE, "--save", file, method="grace", settings=settings))
    assert "Serve it: easyedit serve" in told.out
    assert "easyedit apply" not in told.out


@pytest.mark.parametrize("json_too", [True, False])
def test_an_edit_that_does_not_take(easyedit, folder, json_too):
    told = easyedit(*editing(folder, *ONE, settings=WEAK), *["--json"] * json_too)
    assert told.code == NOT_TAKEN
    if json_too:
        assert document(told)["metrics"][0]["post"]["rewrite_acc"] < 1
    else:
        assert "Edit 1 did not take" in told.err


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("more", [[], ["--one-by-one"]])
def test_many_edits(easyedit, folder, tmp_path, suffix, more):
    records = [{"prompt": p, "subject": s, "target_new": t, "case_id": t} for p, s, t in FACTS]
    file = tmp_path / f"edits.{suffix}"
    lines = [json.dumps(record) for record in records]
    file.write_text(f"[{','.join(lines)}]" if suffix == "json" else "\n".join(lines))
    told = easyedit(*editing(folder, "--edits", file, "--json", *more), "--set", "batch_size=3")
    found = document(told)
    assert [metric["case_id"] for metric in found["metrics"]] == [t for _, _, t in FACTS]
    taken = all(metric["post"]["rewrite_acc"] == 1 for metric in found["metrics"])
    assert told.code == (DONE if taken else NOT_TAKEN)
    assert len(found["patch"]["edits"]) == 3


def test_many_edits_for_people(easyedit, folder, tmp_path):
    file = tmp_path / "edits.csv"
    file.write_text("prompt,subject,target_new\n" + "\n".join(",".join(f) for f in FACTS))
    told = easyedit(*editing(folder, "--edits", file, method="memit", settings=ROME[1:]))
    assert told.code in {DONE, NOT_TAKEN}
    assert "mean" in told.out


def test_interrupted_edits_are_kept_and_gone_on_from(easyedit, folder, tmp_path, monkeypatch):
    from easyeditor.editors.session import EditSession

    file, whole = tmp_path / "edits.json", tmp_path / "whole.safetensors"
    file.write_text(json.dumps([{"prompt": p, "target_new": t} for p, _, t in FACTS]))
    words = editing(folder, "--edits", file, "--one-by-one", "--save")
    assert easyedit(*words, whole).code in {DONE, NOT_TAKEN}
    assert not list(tmp_path.glob("*.journal"))
    real, left = EditSession.attempt, [1, 2]

    def two(self, *args, **options):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return real(self, *args, **options)

    out = tmp_path / "p q.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(EditSession, "attempt", two)
        told = easyedit(*words, out)
    assert told.code == 130
    assert "goes on from there" in told.err
    assert not out.exists()
    other = easyedit(*words, out, "--set", "num_steps=3")
    assert other.code == BAD_INPUT
    assert "another request" in other.err
    left.append(1)  # the one that is missing
    with monkeypatch.context() as patched:
        patched.setattr(EditSession, "attempt", two)
        told = easyedit(*words, out)
    assert told.code in {DONE, NOT_TAKEN}
    assert f"--patch '{out}'" in told.out
    assert not list(tmp_path.glob("*.journal"))
    one, two_ = load_patch(out), load_patch(whole)
    assert all(torch.equal(one.dense(path), two_.dense(path)) for path in one.entries)


def test_what_the_model_says_already_is_left_alone(easyedit, folder, patches, tmp_path):
    file, place, one = tmp_path / "p.safetensors", tmp_path / "edited", ONE[:4]
    assert easyedit(*editing(folder, *one, "--save", file)).code == DONE
    assert easyedit("apply", file, "--model", folder, "--out", place).code == DONE
    file.unlink()
    told = easyedit(*editing(place, *one, "--save", file))
    assert told.code == DONE
    assert "says so already" in told.err
    assert not file.exists()
    assert document(easyedit(*editing(place, *one, "--json")))["unchanged"] == ["0"]
    assert "metrics" in document(easyedit(*editing(place, *one, "--force", "--json")))


def test_two_records_of_one_name(easyedit, folder, tmp_path):
    file = tmp_path / "edits.json"
    file.write_text(
        json.dumps([{"prompt": p, "target_new": t, "case_id": "same"} for p, _, t in FACTS])
    )
    found = document(easyedit(*editing(folder, "--edits", file, "--json", settings=WEAK)))
    assert "error" in found or all("post" in metric for metric in found["metrics"])


def test_settings_from_a_file(easyedit, folder, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("alg_name: FT\nlayers: [2]\nnum_steps: 2\nlr: 5e-4\n")
    told = easyedit(*editing(folder, *ONE, settings=["num_steps=3"]), "--hparams", file, "--json")
    used = document(told)["patch"]["hyperparams"]
    assert (used["layers"], used["num_steps"], used["lr"]) == ([2], 3, 5e-4)


def test_the_model_on_disk_stays_as_it_is(easyedit, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    easyedit(*editing(folder, *ONE, settings=WEAK))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# -- patches ----------------------------------------------------------------------------------


def test_apply_writes_a_plain_model(easyedit, folder, patches, tmp_path):
    out = tmp_path / "edited"
    told = easyedit(
        "apply", patches / "rome.safetensors", "--model", folder, "--out", out, "--json"
    )
    assert told.code == DONE
    assert document(told) == {
        "out": str(out),
        "patches": [str(patches / "rome.safetensors")],
        "edits": 1,
    }
    plain = AutoModelForCausalLM.from_pretrained(out).eval()
    expected = tiny.model("llama")
    load_patch(patches / "rome.safetensors").apply(expected)
    assert torch.equal(outer.logits(plain), outer.logits(expected))
    assert not torch.equal(outer.logits(plain), outer.logits(tiny.model("llama")))
    again = AutoTokenizer.from_pretrained(out)
    assert again(PROMPT)["input_ids"] == tiny.tokenizer()(PROMPT)["input_ids"]


def test_apply_several(easyedit, folder, patches, tmp_path):
    files = [patches / "rome.safetensors", patches / "ft.safetensors"]
    told = easyedit("apply", *files, "--model", folder, "--out", tmp_path / "edited")
    assert told.code == DONE
    assert "2 edits of 2 patches" in told.out
    expected = tiny.model("llama")
    for file in files:
        load_patch(file).apply(expected)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "edited").eval()
    assert torch.equal(outer.logits(plain), outer.logits(expected))


def test_apply_into_an_empty_folder(easyedit, folder, patches, tmp_path):
    told = easyedit(
        "apply", patches / "ft.safetensors", "--model", folder, "--out", tmp_path, "--json"
    )
    assert told.code == DONE


@pytest.mark.parametrize("occupied", ["file", "folder"])
def test_apply_never_overwrites(easyedit, folder, patches, tmp_path, occupied):
    out = tmp_path / "out"
    inside = out / "thesis.txt" if occupied == "folder" else out
    inside.parent.mkdir(exist_ok=True)
    inside.write_text("kept")
    told = easyedit("apply", patches / "ft.safetensors", "--model", folder, "--out", out)
    assert (told.code, told.out) == (BAD_INPUT, "")
    assert "name a new one" in told.err
    assert inside.read_text() == "kept"
    assert sum(1 for _ in tmp_path.rglob("*")) == (2 if occupied == "folder" else 1)


@pytest.mark.parametrize("command", ["apply", "generate"])
def test_a_patch_for_another_model(easyedit, patches, tmp_path, command):
    other = tmp_path / "other"
    tiny.model("llama", seed=1).save_pretrained(other)
    tiny.tokenizer().save_pretrained(other)
    patch = patches / "rome.safetensors"
    words = {
        "apply": ["apply", patch, "--out", tmp_path / "edited"],
        "generate": ["generate", "--patch", patch, PROMPT],
    }[command]
    told = easyedit(*words, "--model", other, "--json")
    assert told.code == BAD_INPUT
    assert document(told)["error"]["type"] == "PatchMismatchError"
    assert not (tmp_path / "edited").exists()
    assert easyedit(*words, "--model", other, "--force", "--json").code == DONE


@pytest.mark.parametrize("method", ["rome", "ft"])
def test_export(easyedit, patches, tmp_path, method):
    out = tmp_path / "adapter"
    patch = load_patch(patches / f"{method}.safetensors")
    told = easyedit("export", patches / f"{method}.safetensors", "--out", out, "--json")
    assert told.code == DONE
    found = document(told)
    assert (found["out"], found["format"]) == (str(out), "lora")
    assert found["rank"] == (1 if method == "rome" else 32)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] == found["rank"]
    tensors = load_file(out / "adapter_model.safetensors")
    for path in patch.entries:
        name = f"base_model.model.{path.removesuffix('.weight')}"
        product = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        assert torch.allclose(product, patch.dense(path).T, atol=1e-6)
        lost = (product - patch.dense(path).T).norm() / patch.dense(path).norm()
        assert found["relative_errors"][path] == pytest.approx(float(lost), abs=1e-6)


def test_export_of_a_lower_rank_tells_its_error(easyedit, patches, tmp_path):
    words = ("export", patches / "ft.safetensors", "--rank", 2, "--out")
    found = document(easyedit(*words, tmp_path / "a", "--json"))
    whole = next(iter(load_patch(patches / "ft.safetensors").entries))
    values = torch.linalg.svdvals(load_patch(patches / "ft.safetensors").dense(whole))
    expected = float(values[2:].norm() / values.norm())
    assert expected > 1e-3
    assert found["rank"] == 2
    assert found["relative_errors"][whole] == pytest.approx(expected, rel=1e-3)
    assert "truncated SVD" in easyedit(*words, tmp_path / "b").out
    assert "not an empty folder" in easyedit(*words, tmp_path / "b").err


def test_show(easyedit, patches):
    found = document(easyedit("show", patches / "rome.safetensors", "--json"))
    assert found["method"] == "ROME"
    assert found["edits"][0]["target"] == TARGET
    (matrix,) = found["matrices"].values()
    assert (matrix["shape"], matrix["rank"]) == ([64, 32], 1)
    assert matrix["norm"] > 0
    told = easyedit("show", patches / "rome.safetensors")
    assert told.code == DONE
    assert all(word in told.out for word in ("ROME patch", TARGET, "down_proj", "Settings"))


def test_show_reads_the_same_with_and_without_torch(patches):
    from easyeditor.cli.patches import _described

    for file in patches.iterdir():
        assert peek(file) == json.loads(json.dumps(_described(file)))
    damaged = bytearray((patches / "ft.safetensors").read_bytes())
    damaged[-9] ^= 1
    other = patches.parent / "damaged.safetensors"
    other.write_bytes(damaged)
    assert peek(other) is None
    other.write_bytes((patches / "ft.safetensors").read_bytes() + b"more")
    assert peek(other) is None


def test_show_refuses_the_headers_that_are_refused_with_torch(easyedit, patches, tmp_path):
    from easyeditor.tensor_file import read_tensor_file, write_tensor_file

    content = read_tensor_file(patches / "rome.safetensors", "easyedit", "", "", PatchFormatError)
    file, header = tmp_path / "odd.safetensors", content.header
    wrong = [{"prompt": PROMPT, "target": TARGET, "subject": "someone else"}], [{"prompt": 1}], None
    odd = {
        "edits": wrong,
        "method": (5, None),
        "seconds": ({"values": "long"}, [], {"values": float("nan")}),
        "versions": ({"torch": 2}, "x"),
        "hyperparams": ([], "x"),
        "data": ({}, {"in_out": "x"}, {"in_out": [1]}),
        "model": ({**header["model"], "packed": [10**6]}, {}),
        "more": (1,),
    }
    for name, values in odd.items():
        for value in values:
            write_tensor_file(file, content.tensors, "easyedit", {**header, name: value})
            assert peek(file) is None, (name, value)
            with pytest.raises(PatchFormatError):
                load_patch(file)
    assert easyedit("show", file).code == BAD_INPUT


def test_a_patch_through_pipes(easyedit, folder, patches, monkeypatch):
    content = (patches / "rome.safetensors").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert document(easyedit("show", "-", "--json"))["method"] == "ROME"
    record = json.dumps({"prompt": PROMPT, "target_new": TARGET})
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(record.encode())))
    told = easyedit(*editing(folder, "--edits", "-", "--json", settings=WEAK))
    assert document(told)["patch"]["edits"][0]["target"] == TARGET
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PROMPT}\n"))
    assert document(easyedit("generate", "-", "--model", folder, "--json"))["prompt"] == PROMPT


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("json_too", [True, False])
def test_any_text_in_any_encoding(easyedit, folder, encoding, json_too, monkeypatch):
    text = "[/bold] \x1b[31m\x07 日本 \U0001f600 :smile: is"
    streams = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
    script = ("generate", text, "--model", folder, "--max-new-tokens", 2, *["--json"] * json_too)
    monkeypatch.setattr("sys.stdout", streams[0])
    monkeypatch.setattr("sys.stderr", streams[1])
    assert easyedit(*script).code == DONE
    streams[0].flush()
    shown = streams[0].buffer.getvalue().decode(encoding)
    assert "\x1b" not in shown
    if json_too:
        assert json.loads(shown)["prompt"] == text
    else:
        assert "[/bold]" in shown
        assert ":smile:" in shown


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
@pytest.mark.parametrize("json_too", [True, False])
def test_half_a_character_is_refused_in_any_encoding(
    easyedit, folder, encoding, json_too, monkeypatch
):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
    monkeypatch.setattr("sys.stdout", streams[0])
    monkeypatch.setattr("sys.stderr", streams[1])
    told = easyedit("generate", "a \udc80 is", "--model", folder, *["--json"] * json_too)
    assert told.code == BAD_INPUT
    streams[0].flush()
    if json_too:
        shown = json.loads(streams[0].buffer.getvalue().decode(encoding))
        assert shown["error"]["type"] == "EditError"


def test_generate_before_and_after(easyedit, folder, patches):
    words = ("generate", "--model", folder, "--max-new-tokens", 8)
    plain = document(easyedit(*words, PROMPT, "--json"))
    assert set(plain) == {"prompt", "model", "before"}
    patched = document(easyedit(*words, "--patch", patches / "ft.safetensors", PROMPT, "--json"))
    assert patched["before"] == plain["before"]
    assert patched["after"] != plain["before"]
    assert plain["before"] == written(tiny.model("llama"), 8)
    assert easyedit(*words, PROMPT).code == DONE
    told = easyedit(*words, "--patch", patches / "ft.safetensors", PROMPT)
    assert all(word in told.out for word in ("before", "after"))


# -- what there is ----------------------------------------------------------------------------


def test_the_catalogue_says_what_the_classes_say():
    stored = json.loads(catalog.FILE.read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(catalog.describe())), (
        "methods, presets or families changed; run: make catalog"
    )


def test_methods(easyedit):
    found = document(easyedit("methods", "--json"))
    assert [item["name"] for item in found] == list(METHODS)
    told = easyedit("methods")
    assert told.code == DONE
    assert all(name in told.out for name in METHODS)


def test_models(easyedit):
    found = document(easyedit("models", "--json"))
    assert set(found["families"]) == set(FAMILIES)
    assert found["presets"] == KNOWN_MODELS
    assert found["embedded"] == {"name": "smollm2-135m", "in_cache": False}
    told = easyedit("models")
    assert told.code == DONE
    assert all(name in told.out for name in FAMILIES)


def test_hparams(easyedit, tmp_path):
    found = document(easyedit("hparams", "ls", "--json"))
    assert list(found)[: len(list(METHODS))] == list(METHODS)
    assert set(found) - set(METHODS) == {f"TRAINING/{case.name}" for case in CASES if case.trainer}
    assert "gpt2-xl" in found["ROME"]
    assert "gpt2-xl" in easyedit("hparams", "ls").out
    shown = document(easyedit("hparams", "show", "rome", "gpt2-xl", "--json"))
    assert (shown["layers"], shown["alg_name"]) == ([17], "ROME")
    assert "layers:\n- 17" in easyedit("hparams", "show", "rome", "gpt2-xl").out
    told = document(easyedit("hparams", "write", "--out", tmp_path / "mine", "--json"))
    expected = write_presets(tmp_path / "theirs")
    assert [path.removeprefix(str(tmp_path / "mine")) for path in told] == [
        str(path).removeprefix(str(tmp_path / "theirs")) for path in expected
    ]
    for path, mine in zip(expected, told, strict=True):
        with open(mine, "rb") as file:
            assert file.read() == path.read_bytes()


def test_version(easyedit):
    import torch
    import transformers

    from easyeditor import __version__

    versions = {"easyeditor": __version__, "torch": torch, "transformers": transformers}
    expected = [f"{name} {getattr(v, '__version__', v)}" for name, v in versions.items()]
    assert easyedit("--version").out.splitlines() == expected


def test_a_command_imports_its_module_alone(easyedit):
    from easyeditor.cli import main
    from easyeditor.cli.app import app

    for word in (*main.COMMANDS, "frobnicate"):
        main.register([word, "--help"])
        names = {one.name or one.callback.__name__ for one in app.registered_commands}
        names |= {group.name for group in app.registered_groups}
        words = {w for w, m in main.COMMANDS.items() if m == main.COMMANDS.get(word)}
        assert names == (words or set(main.COMMANDS))


def commands(command=None, path=()):
    """Every command and group of the script."""
    if command is None:
        from easyeditor.cli import bench, data, demo, edit, exports, info, patches
        from easyeditor.cli.app import app

        app.registered_commands.clear()
        app.registered_groups.clear()
        for module in (demo, edit, bench, exports, patches, data, info):
            module.register(app)
        command = typer.main.get_command(app)
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


def test_the_commands_are_all_there():
    expected = "apply bench data demo edit export generate hparams methods models show"
    assert " ".join(sorted({path[0] for path in commands() if path})) == expected


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_help_shows_an_example(easyedit, path):
    told = easyedit(*path, "--help")
    assert told.code == DONE
    assert "Example" in told.out or not path
    assert " ".join(("easyedit", *path)) in told.out.split("Usage", 1)[1].split("\n", 1)[1]
