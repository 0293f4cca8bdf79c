"""Methods on a small model that sees: an edit, its undo, and what is learnt first."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import seeing
from cases import plain_values
from easyeditor.edits import Case, Edit, Probe, Prompt, Score
from easyeditor.errors import ImageError, UnsupportedModelError
from easyeditor.methods import METHODS

QUESTION = "The capital of the land is"
METHODS_TRIED = ("LoRA", "IKE", "GRACE", "WISE", "MEMIT")


def case(i: int) -> Case:
    """A case with text and image probes; every i has other pictures."""
    images = [seeing.picture(10 * i + k) for k in range(3)]
    target = ("Rome", "Paris", "Berlin")[i % 3]
    about = Prompt(QUESTION, (images[0],))
    probes = (
        Probe(about.with_text("Its capital is"), (target,), "rephrase/text"),
        Probe(Prompt(QUESTION, (images[1],)), (target,), "rephrase/image"),
        Probe("She plays the", ("piano",), "locality/text"),
        Probe(Prompt("It shows a", (images[2],)), ("river",), "locality/image"),
    )
    return Case(str(i), Edit(about, target, subject="capital", ground_truth="Italy"), probes)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS_TRIED)
def test_an_edit_with_an_image_is_made_and_undone_to_the_bit(name):
    from easyeditor.lm.inference import score

    lm = seeing.lm("llava")
    before = {key: weight.clone() for key, weight in lm.model.state_dict().items()}
    kind = METHODS.get(name)
    changes = {"use_icl_examples": False} if name == "IKE" else {}
    method = kind(kind.hyperparams_class(**plain_values(name, **changes)))
    edits = [case(0).edit]
    queries = [Score(probe.prompt, probe.answers[0]) for probe in case(0).probes]
    replies = score(lm, queries)
    patch = method.edit(lm, edits, method.initial_state(lm)).patch
    patch.apply(lm.model)
    score(lm, queries)
    patch.revert(lm.model)
    assert score(lm, queries) == replies
    assert all(torch.equal(before[key], w) for key, w in lm.model.state_dict().items())


def test_a_context_shows_the_picture_with_its_fact():
    from easyeditor.methods.ike.ike import IKE, IKEHyperParams

    lm = seeing.lm("llava")
    patch = IKE(IKEHyperParams(use_icl_examples=False)).edit(lm, [case(0).edit]).patch
    about, text = case(1).edit.prompt, "She plays the"
    seen, unseen = (rerouted.prompt for rerouted in patch.reroute(lm, [about, text]))
    assert seen.images == (*case(0).edit.prompt.images, *about.images)
    assert seen.text.count("<image>") == 2
    assert unseen.images == case(0).edit.prompt.images
    assert lm.text.row(seen).ids


def test_of_two_pictures_with_one_question_the_fact_of_the_one_asked_about_is_told():
    from easyeditor.methods.ike.ike import IKE, IKEHyperParams
    from easyeditor.methods.ike.patch import Context

    class Same:
        name = "same"

        def encode(self, texts):
            return torch.ones(len(texts), 1)

    facts = [case(0).edit, case(1).edit, Edit("Italy is", "far")]
    plain = IKE(IKEHyperParams(use_icl_examples=False)).edit(seeing.lm("llava"), facts).patch
    contexts = [
        Context("", edit.target, (score,))
        for edit, score in zip(facts, (1.0, 2.0, 3.0), strict=True)
    ]
    patch = replace(plain, contexts=tuple(contexts), sentences=Same())
    unseen = Prompt(QUESTION, (seeing.picture(99),))
    fronts = patch._fronts(
        seeing.lm("llava"), [facts[0].prompt, facts[1].prompt, "Italy is", unseen]
    )
    for front, edit in zip(fronts, [*facts, facts[2]], strict=True):
        assert edit.target in front.text
        assert front.images == edit.prompt.images


def test_a_context_brings_its_picture_where_the_file_is_gone(tmp_path):
    from easyeditor.edits import ImageRef
    from easyeditor.lm.image_files import open_image
    from easyeditor.methods.ike.ike import IKE, IKEHyperParams
    from easyeditor.methods.ike.patch import ContextPatch
    from easyeditor.patches.files import load_patch, save_patch

    in_memory = case(0).edit.prompt.images[0]
    in_memory.picture.save(tmp_path / "a.jpg")
    on_disk = ImageRef.of(tmp_path / "a.jpg")
    pixels = open_image(on_disk).tobytes()
    edits = [Edit(Prompt(QUESTION, (image,)), "Rome") for image in (in_memory, on_disk)]
    method = IKE(IKEHyperParams(use_icl_examples=False))
    lm = seeing.lm("llava")
    patches = [method.edit(lm, [edit]).patch for edit in edits]
    (tmp_path / "a.jpg").unlink()
    again = load_patch(save_patch(ContextPatch.merge(patches), tmp_path / "patch.safetensors"))
    again = load_patch(save_patch(again, tmp_path / "again.safetensors"))
    first, second = (edit.prompt.images[0] for edit in again.info.edits)
    assert open_image(first).tobytes() == in_memory.picture.tobytes()
    assert open_image(second).tobytes() == pixels
    assert again.info.edits == tuple(edits)
    with pytest.raises(ImageError, match="not there"):
        method.edit(lm, edits[1:])


@pytest.mark.parametrize("name", seeing.tiered(("llava",)))
def test_images_are_told_apart_by_what_the_model_makes_of_them(name):
    from easyeditor.lm.image_features import image_vectors

    lm = seeing.lm(name)
    if name == "mllama":
        with pytest.raises(UnsupportedModelError, match="gives no features of an image"):
            image_vectors(lm, [(seeing.picture(1),)])
        return
    one, other = seeing.picture(1), seeing.picture(2)
    vectors = image_vectors(lm, [(one,), (one,), (other,), ()])
    distances = torch.cdist(vectors, vectors) ** 2
    assert distances[0, 1] < 1e-6 < distances[0, 2] <= 4.001
    assert distances[0, 3] == pytest.approx(5, abs=1e-3)


@pytest.mark.slow
def test_mend_is_trained_on_images_and_edits_with_its_archive(tmp_path):
    from easyeditor import MENDHyperParams, MENDMultimodalTrainingHparams, MultimodalTrainer
    from easyeditor.methods.mend.mend import MEND

    lm = seeing.lm("llava")
    before = {key: weight.clone() for key, weight in lm.model.state_dict().items()}
    config = MENDMultimodalTrainingHparams(
        model_name="tiny", results_dir=str(tmp_path), max_iters=2, batch_size=2, layers=[1, 2]
    )
    MultimodalTrainer(config, [case(i) for i in range(3)], [case(3)], lm=lm).run()
    method = MEND(MENDHyperParams(archive=str(tmp_path / "MEND" / "tiny")))
    patch = method.edit(lm, [case(0).edit], method.initial_state(lm)).patch
    assert patch.rows()
    assert all(torch.equal(before[key], w) for key, w in lm.model.state_dict().items())


@pytest.mark.slow
def test_serac_is_trained_on_images_and_answers_the_picture_of_the_edit(tmp_path):
    """With one question about three pictures, of which one is edited."""
    import tiny
    from easyeditor import MultimodalTrainer, SERACHyperParams, SERACMultimodalTrainingHparams
    from easyeditor.lm.inference import score
    from easyeditor.methods.serac.serac import SERAC

    for part in (tiny.model("gpt2", seed=2), tiny.tokenizer()):
        part.save_pretrained(tmp_path / "encoder")
    lm = seeing.lm("llava")
    before = {key: weight.clone() for key, weight in lm.model.state_dict().items()}
    config = SERACMultimodalTrainingHparams(
        model_name="tiny",
        results_dir=str(tmp_path),
        cls_name=str(tmp_path / "encoder"),
        max_iters=2,
        batch_size=2,
    )
    MultimodalTrainer(config, [case(i) for i in range(3)], [case(3)], lm=lm).run()
    prompts = [case(i).edit.prompt for i in range(3)] + [Prompt(QUESTION)]
    queries = [Score(prompt, "Rome") for prompt in prompts]
    replies = score(lm, queries)
    archive = str(tmp_path / "SERAC" / "tiny")
    for weight, told_apart in ((100.0, True), (0.0, False)):
        method = SERAC(SERACHyperParams(archive=archive, image_weight=weight))
        patch = method.edit(lm, [case(0).edit], method.initial_state(lm)).patch
        similar = [score for _, score in patch.scores(lm, prompts)]
        assert similar[0] == pytest.approx(1, abs=1e-4)
        patch.apply(lm.model)
        after = score(lm, queries)
        assert after[0] != replies[0]
        assert (after[1:3] == replies[1:3]) == told_apart
        patch.revert(lm.model)
    assert score(lm, queries) == replies
    assert all(torch.equal(before[key], w) for key, w in lm.model.state_dict().items())


def test_a_trainer_of_images_needs_a_model_that_sees(tmp_path):
    import tiny
    from easyeditor import MENDTrainingHparams, MultimodalTrainer
    from easyeditor.lm.model import LM

    config = MENDTrainingHparams(model_name="tiny", results_dir=str(tmp_path), max_iters=1)
    lm = LM(tiny.model("llama"), tiny.tokenizer())
    trainer = MultimodalTrainer(config, [case(0)], [case(1)], lm=lm)
    with pytest.raises((UnsupportedModelError, ImageError), match="reads text alone"):
        trainer.run()
