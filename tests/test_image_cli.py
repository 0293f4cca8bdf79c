"""Images on the command line, with wrong input too."""

from __future__ import annotations

import pytest
from PIL import Image

import seeing
from scripting import document, editing, refused

ABOUT = ("--prompt", "The capital of the land is", "--target", "Rome")


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    lm = seeing.lm("llava")
    lm.model.save_pretrained(folder)
    lm.images.processor.save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path):
    paths = []
    for i in range(3):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", (20, 12), (i * 90, 40, 0)).save(paths[-1])
    return paths


def test_an_edit_about_an_image_is_made_saved_and_used(easyedit, llava, pictures, tmp_path):
    patch = tmp_path / "edit.safetensors"
    one, other, third = pictures
    result = easyedit(
        *editing(llava, *ABOUT, "--image", one, "--rephrase-image", other),
        *("--locality-image", f"{third} | => Paris", "--save", patch, "--json"),
    )
    metrics = document(result)["metrics"][0]
    assert metrics["post"]["rewrite_acc"] == 1.0
    assert "image_rephrase_acc" in metrics["post"]
    assert "image_acc" in metrics["post"]["locality"]
    result = easyedit(
        *("generate", "The capital of the land is", "--image", one, "--model", llava),
        *("--patch", patch, "--max-new-tokens", 2, "--json"),
    )
    assert document(result)["after"].strip().startswith("Rome")
    assert "[0.png]" in easyedit("show", patch).out


@pytest.mark.slow
def test_edits_from_a_file_name_images_from_its_folder(easyedit, llava, pictures, tmp_path):
    import json

    file = tmp_path / "edits.jsonl"
    prompt = {"text": ABOUT[1], "images": ["0.png"]}
    file.write_text(json.dumps({"prompt": prompt, "target_new": "Rome"}), encoding="utf-8")
    result = easyedit(*editing(llava, "--edits", file, "--json"))
    assert document(result)["metrics"][0]["post"]["rewrite_acc"] == 1.0


def test_wrong_images_are_refused_before_a_model_is_loaded(easyedit, pictures, tmp_path):
    one = pictures[0]
    for words, message in (
        (("--image", tmp_path / "gone.png"), "no such file"),
        (("--image", tmp_path), "it is a folder"),
        (("--rephrase-image", one), "give --image, too"),
        (("--image", one, "--locality-image", "x.png"), "image | prompt => answer"),
        (("--image", one, "--locality-image", "gone.png | => x"), "no such file"),
    ):
        assert message in refused(easyedit(*editing("no-such-model-here", *ABOUT, *words)))


def test_an_image_for_a_model_of_text(easyedit, pictures, tmp_path):
    import tiny

    tiny.model("llama").save_pretrained(tmp_path / "m")
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    message = refused(easyedit(*editing(tmp_path / "m", *ABOUT, "--image", pictures[0])))
    assert "reads text alone" in message


def test_a_file_that_is_no_image(easyedit, llava, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    message = refused(easyedit(*editing(llava, *ABOUT, "--image", tmp_path / "text.png")))
    assert "not an image" in message
