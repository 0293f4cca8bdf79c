"""Images on the command line, with wrong input too."""

from __future__ import annotations

import pytest
from PIL import Image

import seeing
from scripting import ROME, document, editing, refused

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
    seeing.picture(1, (60, 60)).picture.save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "bomb.png").write_bytes(seeing.bomb())
    patch = tmp_path / "patch.safetensors"
    for words, message in (
        (("--image", tmp_path / "cut.png"), "(ImageError): The image"),
        (("--image", tmp_path / "cut.png"), "damaged or cut off"),
        (("--image", tmp_path / "text.png"), "not an image"),
        (("--image", tmp_path / "bomb.png"), "far too many pixels"),
        (("--image", one, "--rephrase-image", tmp_path / "text.png"), "not an image"),
        (("--image", one, "--keep-image", tmp_path / "cut.png"), "damaged or cut off"),
        (("--image", one, "--locality-image", f"{tmp_path / 'text.png'} | => x"), "not an image"),
        (("--keep-image", one), "give --image, too"),
        (("--image", "https://example.org/a.png"), "URL"),
        (("--subject", "<image>"), "the prompt has none"),
        (("--image", tmp_path / "gone.png"), "no such file"),
        (("--image", tmp_path), "it is a folder"),
        (("--rephrase-image", one), "give --image, too"),
        (("--image", one, "--locality-image", "x.png"), "image | prompt => answer"),
        (("--image", one, "--locality-image", "gone.png | => x"), "no such file"),
    ):
        result = easyedit(*editing("no-such-model-here", *ABOUT, *words, "--save", patch))
        assert message in refused(result)
        assert not patch.exists()


def test_an_image_for_a_model_of_text(easyedit, pictures, tmp_path):
    import tiny

    tiny.model("llama").save_pretrained(tmp_path / "m")
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    message = refused(easyedit(*editing(tmp_path / "m", *ABOUT, "--image", pictures[0])))
    assert "reads text alone" in message


def test_what_only_the_model_can_tell(easyedit, llava, pictures, tmp_path):
    """Nothing is edited and no patch is written."""
    import shutil

    blind = tmp_path / "blind"
    shutil.copytree(llava, blind)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (blind / name).unlink(missing_ok=True)
    one, patch = ("--image", pictures[0]), tmp_path / "patch.safetensors"
    two = ("--prompt", "<image> and <image> show", "--target", "Rome")
    long = ("--prompt", "It is very " * 70, "--target", "Rome")
    for folder, words, message in (
        (llava, two, "2 placeholders and 1 image"),
        (llava, ("--prompt", "It is", "--target", "<image>"), "placeholder of an image"),
        (llava, long, "16 of them of its images"),
        (blind, ABOUT, "AutoProcessor.from_pretrained"),
    ):
        result = easyedit(*editing(folder, *words, *one, "--save", patch))
        assert message in refused(result)
        assert not patch.exists()


def test_the_subject_may_be_the_picture(easyedit, llava, pictures, tmp_path):
    patch = tmp_path / "edit.safetensors"
    words = editing(
        llava, *ABOUT, "--image", pictures[0], "--subject", "<image>", method="rome", settings=ROME
    )
    document(easyedit(*words, "--save", patch, "--json"))
    assert "<image>" in easyedit("show", patch).out
