"""The contract of an edit with images, on every class of vision-language model."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

import seeing
from easyeditor.edits import IMAGE, Edit, ImageRef, Prompt, Score
from easyeditor.errors import ContradictingEditsError, ImageError

QUESTION = "The capital of the land is"
RESUMED = tuple(name for name in seeing.CLASSES if name not in {"mllama", "blip-2", "instructblip"})
TEXT = {"idefics2": "text_model", "idefics3": "text_model", "smolvlm": "text_model"}
"""The column that is edited; ``language_model`` elsewhere."""
tiers = seeing.tiered(seeing.FAST[:2])


def edits(n: int = 2) -> list[Edit]:
    """Edits about images of different sizes; the subject stands in the text."""
    targets = ("Rome", "Paris", "Berlin")[:n]
    return [
        Edit(Prompt(QUESTION, (seeing.picture(i, (24, 12 + 8 * i)),)), target, subject="capital")
        for i, target in enumerate(targets)
    ]


def bits(model) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def same(model, before) -> bool:
    return all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def rome(**changes):
    from easyeditor.methods.rome import ROME, ROMEHyperParams

    usual = {"layers": [1], "mom2_adjustment": False, "v_num_grad_steps": 4}
    return ROME(ROMEHyperParams(**{**usual, **changes}))


def fine_tuning(**changes):
    from easyeditor.methods.ft import FT, FTHyperParams

    return FT(FTHyperParams(**{"layers": [1], "num_steps": 2, **changes}))


@pytest.mark.parametrize("name", tiers)
def test_logits_are_those_of_the_processor_and_the_model(name):
    """What transformers itself gives for the prompt: tokens, pixels and positions are right."""
    from easyeditor.lm.tokens import Row

    lm = seeing.lm(name)
    image = seeing.picture(2, (40, 20))
    row = lm.text.row(Prompt(QUESTION, (image,)))
    from easyeditor.lm.image_files import open_image

    front = "" if "blip" in name else lm.images.placeholder
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the processors' own code
        inputs = lm.images.processor(
            images=[open_image(image)], text=[f"{front}{QUESTION}"], return_tensors="pt"
        )
    inputs = {k: v for k, v in inputs.items() if k not in {"labels", "rows", "cols"}}
    assert inputs["input_ids"][0].tolist() == [int(token) for token in row.ids]
    wanted = [k for k in inputs if k in lm._accepts]
    if "mm_token_type_ids" in lm._accepts:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == lm.images.token_id).long()
        wanted.append("mm_token_type_ids")
    with torch.no_grad(), lm.at_rest():
        theirs = lm.model(**{k: inputs[k] for k in dict.fromkeys(wanted)}).logits[0, -1]
        ours = lm.target_logits([Row((*row.ids, 5), (5,))])[0]
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("name", tiers)
def test_alone_as_in_a_batch(name):
    """Images of several sizes, other lengths, and text without an image."""
    from easyeditor.lm.inference import generate, score

    lm = seeing.lm(name)
    prompts = [edit.prompt for edit in edits(3)]
    prompts += [prompts[0].with_text(f"{QUESTION} now"), Prompt(QUESTION)]
    queries = [Score(prompt, word) for prompt in prompts for word in ("Rome", "Paris and Rome")]
    together, alone = score(lm, queries), [score(lm, [query])[0] for query in queries]
    for a, b in zip(together, alone, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    assert abs(alone[0].logprobs[0] - alone[2].logprobs[0]) > 1e-5  # another image, other numbers
    assert generate(lm, prompts, 3) == [generate(lm, [prompt], 3)[0] for prompt in prompts]


@pytest.mark.parametrize("name", tiers)
def test_the_column_of_text_is_found_beside_a_deeper_tower(name):
    from easyeditor.lm.discovery import discover

    model = seeing.model(name, num_hidden_layers=6, depth=6)
    blocks = discover(model).decoder.blocks
    assert f"{TEXT.get(name, 'language_model')}." in blocks
    assert len(model.get_submodule(blocks)) == (4 if name == "mllama" else 3)


@pytest.mark.parametrize("subject", ["capital", IMAGE])
@pytest.mark.parametrize("name", tiers)
def test_the_resumed_search_finds_the_same(name, subject):
    from easyeditor.lm.forward.partial import RESUMABLE, EditRow, FullForward, Site, open_forward

    lm = seeing.lm(name)
    rows = [lm.text.row(edit.prompt, edit.target, subject=subject) for edit in edits(3)]
    if subject == IMAGE:  # of the text before it a prefix is kept
        prompt = Prompt(f"Here {IMAGE} is it", edits(1)[0].prompt.images)
        rows[1] = lm.text.row(prompt, "Rome", subject=IMAGE, prefix="She plays. ")
        assert {int(row.ids[row.subject_last]) for row in rows} == {lm.images.token_id}
    runs = [
        EditRow(row.ids[:-1], row.subject_last, (row.prompt_length - 1, len(row.ids) - 2))
        for row in rows
    ]
    site = Site(1, "down")
    width = lm.projection(1).d_out
    delta = torch.randn(len(runs), width, generator=torch.Generator().manual_seed(0))
    with lm.at_rest(), torch.no_grad():
        resumed = open_forward(lm, site, runs)
        part = resumed.keep(torch.tensor([2, 0]))
        full = FullForward(lm, site, runs)
        assert torch.allclose(resumed.logits(delta), full.logits(delta), atol=1e-4)
        chosen = delta[[2, 0]]
        wanted = full.keep(torch.tensor([2, 0])).logits(chosen)
        assert torch.allclose(part.logits(chosen), wanted, atol=1e-4)
        if subject == IMAGE:  # what is proven of it is not taken for texts behind an image
            rows = [lm.text.row(edit.prompt, edit.target, subject="capital") for edit in edits(3)]
            runs = [EditRow(row.ids[:-1], row.subject_last, (len(row.ids) - 2,)) for row in rows]
            open_forward(lm, site, runs)
    *proven, last = RESUMABLE(lm).values()
    assert last == (name in RESUMED)
    assert proven in ([], [name in RESUMED and name != "gemma3"])


@pytest.mark.parametrize("name", tiers)
def test_an_edit_leaves_every_bit_and_its_patch_changes_the_declared_weights(name):
    lm = seeing.lm(name)
    before = bits(lm.model)
    column = TEXT.get(name, "language_model")
    layer = 2 if name == "mllama" else 1  # the other reads images
    for method, batch, place in (
        (rome(layers=[layer]), edits(1), f"{column}."),
        (fine_tuning(), edits(2), f"{column}."),
        (fine_tuning(site="projector", layers=[0]), edits(2), ""),
        (fine_tuning(site="vision", layers=[0]), edits(2), "vis"),
    ):
        patch = method.edit(lm, batch, method.initial_state(lm)).patch
        assert same(lm.model, before)
        patch.apply(lm.model)
        changed = [k for k, v in lm.model.state_dict().items() if not torch.equal(before[k], v)]
        assert changed == list(patch.entries)
        assert len(changed) == 1
        assert place in changed[0]
        assert place or column not in changed[0]
        patch.revert(lm.model)
        assert same(lm.model, before)


@pytest.mark.parametrize("name", tiers)
def test_edits_are_undone_in_any_order_saved_and_loaded(name, tmp_path):
    from easyeditor.lm.inference import score
    from easyeditor.patches.files import load_patch, save_patch

    lm = seeing.lm(name)
    before = bits(lm.model)
    queries = [Score(edit.prompt, edit.target) for edit in edits(2)]
    first = fine_tuning().edit(lm, edits(1)).patch
    first.apply(lm.model)
    second = fine_tuning(site="projector", layers=[0]).edit(lm, edits(2)[1:]).patch
    second.apply(lm.model)
    third = fine_tuning().edit(lm, edits(2)[1:]).patch  # of the weight that the first changes
    third.apply(lm.model)
    edited, replies = bits(lm.model), score(lm, queries)
    first.revert(lm.model)
    without_first = bits(lm.model)
    second.revert(lm.model)
    third.revert(lm.model)
    assert same(lm.model, before)
    loaded = [
        load_patch(save_patch(patch, tmp_path / f"{i}.safetensors"))
        for i, patch in enumerate((first, second, third))
    ]
    for patch in loaded[1:]:
        patch.apply(lm.model)
    assert same(lm.model, without_first)
    loaded[1].revert(lm.model)
    loaded[2].revert(lm.model)
    for patch in loaded:
        patch.apply(lm.model)
    assert same(lm.model, edited)
    assert score(lm, queries) == replies
    assert loaded[0].info.edits[0].prompt == edits(1)[0].prompt  # the same image, by its digest
    for patch in reversed(loaded):
        patch.revert(lm.model)
    assert same(lm.model, before)


@pytest.mark.parametrize("name", tiers)
def test_a_failing_edit_leaves_every_bit(name):
    lm = seeing.lm(name)
    before = bits(lm.model)
    one = edits(1)[0]
    with pytest.raises(ContradictingEditsError):
        fine_tuning().edit(lm, [one, replace(one, target="Paris")])
    places = replace(one, prompt=one.prompt.with_text(QUESTION + " <image>" * 2))
    gone = replace(one, prompt=replace(one.prompt, images=(ImageRef("gone.png", "0" * 64),)))
    for edit, message in ((places, "placeholders"), (gone, "not there")):
        for method in (rome(), fine_tuning()):
            with pytest.raises(ImageError, match=message):
                method.edit(lm, [edit], method.initial_state(lm))
    assert same(lm.model, before)
