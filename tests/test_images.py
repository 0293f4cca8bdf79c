"""Prompts with images: what is read, where it stands in the tokens, and what is shared."""

from __future__ import annotations

import copy
import pickle
import random
import sys
from dataclasses import replace

import pytest
import torch

import seeing
from easyeditor.edits import IMAGE, Edit, Generate, ImageRef, Prompt, Score, check_consistent
from easyeditor.errors import (
    ContradictingEditsError,
    EditError,
    ImageError,
    SubjectNotFoundError,
    UnsupportedModelError,
)
from easyeditor.lm.model import LM

QUESTION = "The capital of the land is"


@pytest.fixture(scope="module")
def llava():
    return seeing.lm("llava")


def png(folder, name, colour=(200, 10, 10), size=(24, 18), mode="RGB", **options):
    from PIL import Image

    Image.new(mode, size, colour).save(folder / name, **options)
    return folder / name


# -- reading ---------------------------------------------------------------------------------------


def test_the_same_image_in_two_files_is_one_image(tmp_path):
    first = png(tmp_path, "a.png")
    (tmp_path / "b.png").write_bytes(first.read_bytes())
    a, b = ImageRef.of(first), ImageRef.of(tmp_path / "b.png")
    assert a == b
    with pytest.raises(ContradictingEditsError):
        check_consistent([Edit(Prompt("It is", (a,)), "red"), Edit(Prompt("It is", (b,)), "blue")])


def test_two_images_with_one_question_are_two_questions(tmp_path):
    a, b = seeing.picture(1), seeing.picture(2)
    check_consistent([Edit(Prompt("a photo of", (a,)), "x"), Edit(Prompt("a photo of", (b,)), "y")])
    assert len({Score(Prompt("It is", (i,)), "red") for i in (a, b)}) == 2
    assert len({Generate(Prompt("It is", (i,)), 5) for i in (a, b)}) == 2


def test_an_image_is_read_upright_and_as_rgb(tmp_path):
    from PIL import Image

    from easyeditor.lm.image_files import open_image

    turned = Image.new("RGB", (4, 2))
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(ImageRef.of(tmp_path / "turned.jpg")).size == (2, 4)
    for mode, colour in (("L", 9), ("P", 3), ("RGBA", (1, 2, 3, 4)), ("I;16", 40_000)):
        image = open_image(ImageRef.of(png(tmp_path, f"{mode[0]}.png", colour, mode=mode)))
        assert image.mode == "RGB"
    assert image.getpixel((0, 0))[0] == 40_000 // 256  # not cut off at 255


def test_files_that_are_no_readable_images(tmp_path, llava, monkeypatch):
    from easyeditor import pictures

    whole = png(tmp_path, "whole.png", size=(200, 200)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    for name, message in (("cut.png", "damaged or cut off"), ("text.png", "not an image")):
        with pytest.raises(ImageError, match=message):
            llava.text.row(Prompt("It is", (ImageRef.of(tmp_path / name),)))
    (tmp_path / "bomb.png").write_bytes(seeing.bomb())
    with pytest.raises(ImageError, match="far too many pixels, and 50 million are read"):
        llava.text.row(Prompt("It is", (ImageRef.of(tmp_path / "bomb.png"),)))
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match="pixels"):
        llava.text.row(Prompt("It is", (ImageRef.of(tmp_path / "whole.png"),)))
    for path, message in (
        (tmp_path / "gone.png", "no such file"),
        (tmp_path, "it is a folder"),
        ("https://example.org/a.png", "URL"),
        (7, "not int"),
    ):
        with pytest.raises(ImageError, match=message):
            ImageRef.of(path)
    gone = ImageRef.of(tmp_path / "whole.png")
    (tmp_path / "whole.png").unlink()
    with pytest.raises(ImageError, match="not there"):
        llava.text.row(Prompt("It is", (gone,)))


def test_a_file_that_was_exchanged_is_not_read_for_the_former_one(tmp_path):
    from PIL import Image

    from easyeditor.edits import as_prompt
    from easyeditor.lm.image_files import open_image

    before = ImageRef.of(png(tmp_path, "a.png"))
    in_memory = ImageRef.of(Image.open(tmp_path / "a.png"))
    stored = as_prompt(Prompt("It is", (in_memory,)).to_json()).images[0]
    assert open_image(stored).getpixel((0, 0)) == (200, 10, 10)  # its digest is of the pixels
    png(tmp_path, "a.png", (10, 10, 200))
    for reference in (before, stored):
        with pytest.raises(ImageError, match="changed since"):
            open_image(reference)
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(ImageError, match="changed since"):
        open_image(before)


def test_images_in_memory_are_told_apart_by_what_is_read_of_them():
    from PIL import Image

    from easyeditor.lm.image_files import open_image

    grey = [ImageRef.of(Image.new("I;16", (4, 2), value)) for value in (30_000, 60_000)]
    assert grey[0] != grey[1]
    assert [open_image(image).getpixel((0, 0))[0] for image in grey] == [117, 234]
    assert open_image(ImageRef.of(Image.new("I;16B", (4, 2), 40_000))).getpixel((0, 0))[0] == 156
    plain, turned = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4))
    for picture in (plain, turned):
        picture.putpixel((0, 0), (255, 0, 0))
    turned.getexif()[0x0112] = 6
    reference = ImageRef.of(plain)
    assert reference != ImageRef.of(turned)
    plain.putpixel((0, 0), (0, 0, 255))  # the caller's picture changes, what was taken does not
    assert open_image(reference).getpixel((0, 0)) == (255, 0, 0)
    for mode in ("I", "F", "La"):
        with pytest.raises(ImageError, match=f"mode '{mode}'"):
            ImageRef.of(Image.new(mode, (4, 2)))


def test_what_is_no_regular_file_or_too_large_is_not_read(tmp_path, monkeypatch):
    import os

    from easyeditor import pictures

    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(ImageError, match="device or a pipe"):
            ImageRef.of(path)
    monkeypatch.setattr(pictures, "MAX_BYTES", 10)
    with pytest.raises(ImageError, match="MiB"):
        ImageRef.of(png(tmp_path, "a.png"))
    for url in ("HTTPS://example.org/a.png", "data:image/png;base64,AAAA"):
        with pytest.raises(ImageError, match="URL"):
            ImageRef.of(url)


# -- tokens ----------------------------------------------------------------------------------------


def test_placeholders_of_two_images_have_the_same_ids_and_are_not_equal(llava):
    rows = [llava.text.row(Prompt(QUESTION, (seeing.picture(i),))).ids for i in (1, 2)]
    assert [*map(int, rows[0])] == [*map(int, rows[1])]
    assert rows[0] != rows[1]
    assert len(set(rows)) == 2
    assert pickle.loads(pickle.dumps(rows[0])) == rows[0]
    ordered = sorted([*rows[0], *rows[1], 4, 300], key=lambda t: t)
    shuffled = random.Random(0).sample(ordered, len(ordered))
    assert sorted(shuffled) == ordered  # a total order, which batches are sorted by


def test_the_subject_is_found_behind_the_expanded_image(llava):
    image = seeing.picture(1)
    row = llava.text.row(Prompt(QUESTION, (image,)), "Rome", subject="capital")
    plain = llava.text.row(QUESTION, "Rome", subject="capital")
    assert row.subject_last - plain.subject_last == 16
    assert row.target == plain.target
    named = llava.text.row(Prompt("The capital <image> is", (image,)), subject="capital")
    assert llava.tokenizer.decode([named.ids[named.subject_last]]).strip() in "capital"
    assert int(named.ids[named.subject_last + 2]) == llava.images.token_id


def test_the_subject_may_be_the_image_itself(llava):
    image, other = seeing.picture(1), seeing.picture(2)
    edit = Edit(Prompt(QUESTION, (image,)), "Rome", IMAGE, keep=[Prompt(QUESTION, (other,))])
    assert edit.prompt.text == f"{IMAGE}{QUESTION}"
    assert edit.keep[0].text == edit.prompt.text
    assert edit.subject_words is None
    plain = llava.text.row(Prompt(QUESTION, (image,)), subject=IMAGE)
    assert llava.text.row(edit.prompt, subject=IMAGE) == plain
    at = [i for i, token in enumerate(plain.ids) if int(token) == llava.images.token_id]
    assert (plain.subject_first, plain.subject_last) == (at[0], at[-1])
    two = llava.text.row(Prompt("Both show", (image, other)), subject=IMAGE)
    assert two.subject_last - two.subject_first == 15
    assert two.ids[two.subject_first].unit == other.sha256
    with pytest.raises(ContradictingEditsError):
        check_consistent([edit, Edit(Prompt(QUESTION, (image,)), "Paris", "capital")])
    with pytest.raises(EditError, match="keeps a prompt that it changes"):
        Edit(Prompt(QUESTION, (image,)), "Rome", IMAGE, keep=[Prompt(QUESTION, (image,))])
    with pytest.raises(SubjectNotFoundError, match="If only the image shows it"):
        Edit(Prompt(QUESTION, (image,)), "Rome", "Germany")
    with pytest.raises(SubjectNotFoundError, match="the prompt has none"):
        Edit(QUESTION, "Rome", IMAGE)
    assert Edit("The tag <image> is", "old", IMAGE).subject_words == IMAGE  # plain text


def test_an_edit_at_the_image_is_made_as_others_are(llava):
    """With contexts, expansions and kept prompts; each has the image where its subject stands."""
    from easyeditor.associative.contrast import kept_rows
    from easyeditor.associative.microbatches import context_rows_of
    from easyeditor.editors.expanding import expanded_cases
    from easyeditor.edits import Case
    from easyeditor.methods.rome import ROME, ROMEHyperParams

    before = {name: weight.clone() for name, weight in llava.model.state_dict().items()}
    image, other = seeing.picture(1), seeing.picture(2)
    edit = Edit(Prompt(QUESTION, (image,)), "Rome", IMAGE, keep=[Prompt(QUESTION, (other,))])
    (case,) = expanded_cases(llava, [Case("0", edit)], True)
    prompts = [one.prompt for one in case.edit.expansions]
    assert len(prompts) > 3
    assert all(prompt.text.count(IMAGE) == len(prompt.images) == 1 for prompt in prompts)
    rows = context_rows_of(llava, 0, case.edit, ("", "She plays. "), 0.1, 0.1)
    assert all(int(row.run.ids[row.run.at]) == llava.images.token_id for row in rows)
    (kept,) = kept_rows(llava, [edit])
    assert kept.ids[kept.subject_last].unit == other.sha256
    settings = {"layers": [1], "mom2_adjustment": False, "v_num_grad_steps": 3}
    method = ROME(ROMEHyperParams(**settings, context_template_length_params=((2, 2),)))
    patch = method.edit(llava, [case.edit], method.initial_state(llava)).patch
    assert all(torch.equal(before[k], v) for k, v in llava.model.state_dict().items())
    patch.apply(llava.model)
    patch.revert(llava.model)
    assert all(torch.equal(before[k], v) for k, v in llava.model.state_dict().items())


def test_another_number_of_places_than_of_images(llava):
    image = seeing.picture(1)
    for prompt in (
        Prompt("<image> and <image> show", (image,)),
        Prompt("<image> shows"),
        Prompt("<image> shows", (image, image)),
    ):
        with pytest.raises(ImageError, match="placeholder"):
            llava.text.row(prompt)
    with pytest.raises(ImageError, match="target"):
        llava.text.row(Prompt("It is", (image,)), "an <image>")
    with pytest.raises(ImageError, match="The context"):
        llava.text.row(Prompt("It is", (image,)), prefix="<image> It rained. ")
    for images in ((), (image,)):
        with pytest.raises(ImageError, match="The system message"):
            llava.text.row(Prompt("It is", images, system="Look: <image>", chat=True))
    with pytest.raises(ImageError, match="as the model reads it has 2"):
        llava.images.expand("<image> and <image>", (image,), None)


def test_an_image_for_a_model_that_reads_text_alone():
    import tiny
    from easyeditor.lm.model import LM

    lm = LM(tiny.model("llama"), tiny.tokenizer())
    with pytest.raises(ImageError, match="reads text alone"):
        lm.text.row(Prompt("It is", (seeing.picture(1),)))


def test_a_cut_never_goes_through_an_image(llava):
    from easyeditor.lm.image_tokens import images_of, through_unit, whole_units

    ids = llava.text.row(Prompt("Here <image> is it", (seeing.picture(1),))).ids
    first = next(i for i, token in enumerate(ids) if int(token) == llava.images.token_id)
    assert [whole_units(ids, n) for n in (first, first + 3, first + 16)] == [
        first,
        first,
        first + 16,
    ]
    assert through_unit(ids, first + 3) == first + 16
    assert through_unit(ids, first) == first
    with pytest.raises(ValueError, match="ends inside"):
        images_of(ids[: first + 3])


# -- passes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", seeing.tiered(seeing.FAST))
def test_one_image_is_never_answered_from_the_states_of_another(name):
    """Long prompts, so that prefixes are shared where they are equal."""
    from easyeditor.lm.inference import score

    lm = seeing.lm(name)
    images = [seeing.picture(1), seeing.picture(2), seeing.picture(3, (40, 20))]
    long = "She plays the piano well. " * 6 + QUESTION
    queries = [
        Score(Prompt(long, (image,)), word) for image in images for word in ("Rome", "Paris")
    ]
    queries += [Score(Prompt(f"<image>{long} now", (images[0],)), "Rome"), Score(long, "Rome")]
    together, alone = score(lm, queries), [score(lm, [query])[0] for query in queries]
    for a, b in zip(together, alone, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=5e-5)
    assert abs(alone[0].logprobs[0] - alone[2].logprobs[0]) > 2e-4


@pytest.mark.parametrize("name", seeing.tiered(seeing.FAST))
def test_what_is_generated_is_what_is_scored_best(name):
    from easyeditor.lm.inference import generate, score
    from easyeditor.lm.sampling import greedy_tokens

    lm = seeing.lm(name)
    prompts = [Prompt(QUESTION, (seeing.picture(i, (24, 12 + 6 * i)),)) for i in (1, 2)]
    rows = [lm.text.row(prompt).ids for prompt in prompts]
    tokens = greedy_tokens(lm, rows, 4)
    texts = [lm.tokenizer.decode(t, skip_special_tokens=True) for t in tokens]
    assert generate(lm, prompts, 4) == texts
    first = score(lm, [Score(prompt, "Rome") for prompt in prompts])
    assert [s.argmax[0] for s in first] == [t[0] for t in tokens]


def test_offsets_that_a_pass_leaves_on_the_model_are_put_back():
    from easyeditor.lm.inference import generate

    lm = seeing.lm("qwen2_vl")
    lm.model.model.rope_deltas = mark = torch.tensor([[7]])
    generate(lm, [Prompt(QUESTION, (seeing.picture(1),))], 2)
    assert lm.model.model.rope_deltas is mark


@pytest.mark.parametrize("site", ["text", "projector", "vision"])
def test_fine_tuning_changes_only_the_site_it_names(llava, site):
    from easyeditor.methods.ft import FT, FTHyperParams

    before = {name: weight.clone() for name, weight in llava.model.state_dict().items()}
    edit = Edit(Prompt(QUESTION, (seeing.picture(1),)), "Rome")
    settings = FTHyperParams(layers=[1], site=site, num_steps=2)
    if site == "projector":
        settings = settings.replace(layers=[0])
    patch = FT(settings).edit(llava, [edit]).patch
    assert all(torch.equal(before[k], v) for k, v in llava.model.state_dict().items())
    patch.apply(llava.model)
    changed = [k for k, v in llava.model.state_dict().items() if not torch.equal(before[k], v)]
    patch.revert(llava.model)
    place = {"text": "language_model", "projector": "projector", "vision": "vision_tower"}[site]
    assert len(changed) == 1
    assert place in changed[0]
    assert all(torch.equal(before[k], v) for k, v in llava.model.state_dict().items())


def test_a_site_that_a_model_does_not_have():
    import tiny
    from easyeditor.lm.model import LM
    from easyeditor.methods.ft import FT, FTHyperParams

    lm = LM(tiny.model("llama"), tiny.tokenizer())
    for site in ("vision", "projector"):
        with pytest.raises(UnsupportedModelError, match=f"site='{site}'"):
            FT(FTHyperParams(site=site)).edit(lm, [Edit(QUESTION, "Rome")])


# -- the editor ------------------------------------------------------------------------------------


def test_the_classic_call(tmp_path, llava):
    from easyeditor import FTHyperParams, MultimodalEditor

    editor = MultimodalEditor.from_pretrained(
        llava.model, llava.images.processor, FTHyperParams(layers=[1], num_steps=3)
    )
    paths = [str(png(tmp_path, f"{i}.png", (i * 60, 0, 90))) for i in range(3)]
    before = llava.model.model.language_model.layers[1].mlp.down_proj.weight.clone()
    metrics, edited, _ = editor.edit(
        prompts=[QUESTION, QUESTION],
        targets=["Rome", "Paris"],
        image=paths[:2],
        rephrase_prompts=["Its capital is", "Its capital is"],
        rephrase_image=paths[1:],
        locality_inputs={
            "text": {"prompt": ["She plays"] * 2, "ground_truth": ["the piano"] * 2},
            "vision": {"image": paths[1:], "prompt": [QUESTION] * 2, "ground_truth": ["x", "y"]},
        },
        force=True,
    )
    assert torch.equal(llava.model.model.language_model.layers[1].mlp.down_proj.weight, before)
    assert edited is not llava.model
    post = metrics[0]["post"]
    assert {"rewrite_acc", "rephrase_acc", "image_rephrase_acc"} <= set(post)
    assert {"text_acc", "image_acc"} <= set(post["locality"])


def test_requests_that_cannot_be_carried_out(tmp_path, llava):
    from easyeditor import FTHyperParams, MultiModalEditor, MultimodalEditor

    assert issubclass(MultiModalEditor, MultimodalEditor)
    settings = FTHyperParams(layers=[1], num_steps=2)
    editor = MultimodalEditor.from_pretrained(llava.model, llava.images.processor, settings)
    before = {name: weight.clone() for name, weight in llava.model.state_dict().items()}
    whole = png(tmp_path, "a.png")
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:40])
    for options, message in (
        ({"image": str(tmp_path / "gone.png")}, "no such file"),
        ({"image": str(whole), "rephrase_image": str(tmp_path / "cut.png")}, "Case 0: .*cut.png"),
        ({"image": str(whole), "file_type": "video"}, "video"),
        ({"prompts": ["It is"] * 2, "targets": ["a"] * 2, "image": [str(whole)]}, "image holds 1"),
    ):
        asked = {"prompts": "It is", "targets": "red", **options}
        with pytest.raises(EditError, match=message):
            editor.edit(**asked)
    assert all(torch.equal(before[k], v) for k, v in llava.model.state_dict().items())


def test_an_editor_of_images_needs_a_model_that_sees():
    import tiny
    from easyeditor import FTHyperParams, MultimodalEditor

    with pytest.raises(UnsupportedModelError, match="reads text alone"):
        MultimodalEditor.from_pretrained(tiny.model("llama"), tiny.tokenizer(), FTHyperParams())


def test_a_broken_image_leaves_the_model_as_it_is_in_every_editor(tmp_path, llava):
    from easyeditor import BaseEditor, Case, FTHyperParams, Probe

    (tmp_path / "text.png").write_text("no image")
    good, bad = seeing.picture(1), ImageRef.of(tmp_path / "text.png")
    prompt = Prompt(QUESTION, (good,))
    case = Case(
        "0", Edit(prompt, "Rome"), [Probe(replace(prompt, images=(bad,)), ("x",), "rephrase")]
    )
    before = {name: weight.clone() for name, weight in llava.model.state_dict().items()}
    with pytest.raises(ImageError, match="not an image"):
        BaseEditor(llava, FTHyperParams(layers=[1])).edit_cases([case])
    assert all(torch.equal(before[k], v) for k, v in llava.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", seeing.WITH_VIDEOS)
def test_torchvision_is_asked_for_by_name(name, tmp_path):
    """Such a folder is read without torchvision; an image then names the install command."""
    import importlib.util

    from easyeditor.errors import MissingExtraError
    from easyeditor.lm.loading import load

    if importlib.util.find_spec("torchvision") is not None:
        pytest.skip("torchvision is installed here")
    lm = seeing.lm(name)
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    lm.images.processor.image_processor.save_pretrained(tmp_path)
    lm = load(str(tmp_path))
    assert lm.text.row("It is").ids
    with pytest.raises(MissingExtraError, match=r'\[vision\]"'):
        lm.text.row(Prompt("It is", (seeing.picture(1),)))


def test_a_processor_of_another_model_is_a_sentence(llava):
    """Its own errors are of any type; the model still answers about text."""
    blind = seeing.lm("qwen2_vl").images.processor.image_processor
    before = {k: v.clone() for k, v in llava.model.state_dict().items()}
    own = llava.images.processor
    wrong = copy.copy(own)
    wrong.image_processor = blind
    mixed = LM(llava.model, llava.tokenizer, processor=wrong)
    with pytest.raises(ImageError, match="cannot read an image"):
        mixed.text.row(Prompt(QUESTION, (seeing.picture(1),)))
    silent = LM(llava.model, llava.tokenizer, processor=own)
    silent.images.token_id = 7
    with pytest.raises(ImageError, match="writes no token 7"):
        silent.text.row(Prompt(QUESTION, (seeing.picture(1),)))
    assert mixed.text.row("It is").ids
    assert all(torch.equal(before[k], v) for k, v in llava.model.state_dict().items())


def test_a_model_that_came_without_its_processor():
    from easyeditor import FTHyperParams, MultimodalEditor
    from easyeditor.errors import ModelLoadError

    model, words = seeing.model("llava"), seeing.tokenizer()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ModelLoadError, match="without its processor of images"):
        MultimodalEditor.from_pretrained(model, words, FTHyperParams())
    lm = LM(model, words)
    assert lm.text.row("It is").ids
    with pytest.raises(ModelLoadError, match=r"AutoProcessor\.from_pretrained"):
        lm.text.row(Prompt("It is", (seeing.picture(1),)))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_more_tokens_than_a_model_reads(llava):
    from easyeditor import FTHyperParams, MultimodalEditor
    from easyeditor.errors import PromptTooLongError

    before = {name: weight.clone() for name, weight in llava.model.state_dict().items()}
    editor = MultimodalEditor(llava, FTHyperParams(layers=[1], num_steps=1))
    with pytest.raises(PromptTooLongError, match="16 of them of its images"):
        editor.edit("It is very " * 70, "red", seeing.picture(1))
    with pytest.raises(PromptTooLongError):
        editor.edit("It is", "very red and " * 70, seeing.picture(1))
    assert all(torch.equal(before[k], v) for k, v in llava.model.state_dict().items())


@pytest.mark.parametrize(
    "name",
    ["llava"]
    + [
        pytest.param(name, marks=pytest.mark.slow)
        for name in seeing.CLASSES
        if name not in {"llava", *seeing.WITH_VIDEOS}
    ],
)
def test_a_saved_model_that_sees_sees_when_it_is_loaded(name, tmp_path):
    """By its processor's form for pillow, where torchvision is not installed, as in these tests."""
    from easyeditor.lm.loading import load, save

    lm = seeing.lm(name)
    prompt = Prompt(QUESTION, (seeing.picture(1),))
    save(lm, tmp_path / "saved")
    again = load(str(tmp_path / "saved"), device="cpu")
    assert again.text.row(prompt, "Rome") == lm.text.row(prompt, "Rome")


def test_one_block_under_two_names_is_refused(llava):
    from easyeditor import FTHyperParams, MultimodalEditor

    block = {"image": seeing.picture(2), "prompt": "It shows a", "ground_truth": "river"}
    with pytest.raises(EditError, match="two names of one block"):
        MultimodalEditor(llava, FTHyperParams(layers=[1])).edit(
            "It is", "red", seeing.picture(1), locality_inputs={"vision": block, "image": block}
        )


def test_pillow_is_asked_for_by_name(monkeypatch):
    from easyeditor.errors import MissingExtraError
    from easyeditor.lm.image_files import open_image

    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r'\[images\]"'):
        open_image(ImageRef("a.png", "0" * 64))
