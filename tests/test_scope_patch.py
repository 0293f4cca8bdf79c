"""A memory of edits: who is asked, what stays to the bit, forgetting, undoing, files."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import tiny
from easyeditor import LM, Edit, load_patch, save_patch
from easyeditor.encoders.network_config import tokenizer_json
from easyeditor.encoders.text_encoder import LONGEST, TextEncoder
from easyeditor.encoders.tokenizer_compat import differences, signature
from easyeditor.errors import (
    ModelLoadError,
    PatchFormatError,
    PatchMismatchError,
    PatchStateError,
)
from easyeditor.methods.serac.patch import Remembered, Scope, ScopePatch, distances, told
from easyeditor.patches.copies import edited_copy
from easyeditor.patches.files import KEY
from easyeditor.patches.patch import merge
from easyeditor.patches.stack import is_patched
from easyeditor.tensor_file import DIGEST, content_digest
from scoping import answers, classifier, counterfactual, remembering, scope, small, written
from support import EDITS, Snapshot, lm

ELSEWHERE = ["She plays the", "Rome is the capital of", "Berlin is the capital of no"]
MIXED = [EDITS[0].prompt.text, ELSEWHERE[0], EDITS[1].prompt.text, ELSEWHERE[1], ELSEWHERE[2]]
FAMILIES = ("gpt2", "llama", "t5")
every = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def shared(tmp_path: Path) -> Scope:
    return scope(tmp_path)


# -- who is asked -----------------------------------------------------------------------------


@every
def test_a_mixed_batch(family: str, tmp_path: Path) -> None:
    target = lm(family)
    before = Snapshot(target.model)
    alone = answers(target, MIXED)
    patch = remembering(target, EDITS[:2], scope(tmp_path, family))
    patch.apply(target.model)
    scores, texts = answers(target, MIXED)
    edits = {edit.prompt: edit for edit in EDITS}
    asked = [told(patch.scope.template, edits[p], p) for p in MIXED if p in edits]
    other = answers(counterfactual(target, family), asked)
    for i, prompt in enumerate(MIXED):
        if prompt in edits:
            place = [p for p in MIXED if p in edits].index(prompt)
            assert scores[i].argmax == other[0][place].argmax
            assert scores[i].logprobs == pytest.approx(other[0][place].logprobs, abs=1e-4)
            assert texts[i] == other[1][place]
            assert scores[i] != alone[0][i]
        else:  # to the last bit
            assert scores[i] == alone[0][i]
            assert texts[i] == alone[1][i]
    patch.revert(target.model)
    assert before.differences(target.model) == []
    assert answers(target, MIXED) == alone


def test_one_pass_of_the_classifier_for_a_batch(shared: Scope) -> None:
    target, passes = lm("gpt2"), []
    patch = remembering(target, EDITS, shared)
    handle = shared.classifier.body.register_forward_hook(lambda *_: passes.append(1))
    reroute = patch.reroute(target, MIXED)
    handle.remove()
    assert len(passes) == 1
    assert [turn is not None for turn in reroute] == [True, False, True, False, False]
    assert [turn.prompt for turn in reroute if turn] == [
        "The mother tongue of Anna Lind is Italy The mother tongue of Anna Lind is",
        f"{EDITS[1].prompt} Rome {EDITS[1].prompt}",
    ]
    assert len({id(turn.lm) for turn in reroute if turn}) == 1


def test_the_threshold_decides(shared: Scope) -> None:
    target = lm("gpt2")
    patch = remembering(target, EDITS[:1], shared)
    shared.classifier.head.weight.data.div_(100)  # nearly everything is similar now
    try:
        loose = remembering(target, EDITS[:1], shared)
        (near,) = loose.scores(target, ELSEWHERE[:1])
        assert near[0] == loose.ids[0]
        assert 0.5 < near[1] < 1
        for threshold, wanted in ((near[1] - 1e-3, True), (near[1] + 1e-3, False)):
            shared.threshold = threshold
            assert (loose.reroute(target, ELSEWHERE[:1])[0] is not None) == wanted
    finally:
        shared.classifier.head.weight.data.mul_(100)
    assert patch.scores(target, [EDITS[0].prompt])[0][1] == pytest.approx(1.0)


def test_white_space_around_a_prompt_does_not_matter(shared: Scope) -> None:
    target = lm("gpt2")
    patch = remembering(target, EDITS[:1], shared)
    (turn,) = patch.reroute(target, [f"  {EDITS[0].prompt}\n"])
    assert turn is not None
    assert turn.prompt.endswith(f"  {EDITS[0].prompt}\n")  # it is asked as it was written


def test_braces_in_texts_are_texts() -> None:
    edit = Edit("Is {query} {target} or {}", "{prompt}")
    assert told("{target}: {prompt} {query}!", edit, "{target}?") == (
        "{prompt}: Is {query} {target} or {} {target}?!"
    )


def test_distances_of_equals_are_exactly_zero() -> None:
    vectors = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)) * 30
    assert (distances(vectors, vectors).diagonal() == 0).all()
    wanted = ((vectors[:1] - vectors[1:2]) ** 2).sum()
    assert torch.allclose(distances(vectors[:1], vectors[1:2])[0, 0], wanted)


# -- the memory -------------------------------------------------------------------------------


def test_edits_accumulate_and_the_later_of_one_prompt_wins(shared: Scope) -> None:
    target = lm("gpt2")
    later = Edit(EDITS[0].prompt, "piano", EDITS[0].subject)
    first, second = (remembering(target, edits, shared) for edits in (EDITS[:2], [later]))
    both = merge([first, second])
    assert isinstance(both, ScopePatch)
    assert both.ids == (*first.ids, *second.ids)
    assert len(set(both.ids)) == 3
    assert both.info.edits == (*EDITS[:2], later)
    (turn,) = both.reroute(target, [later.prompt])
    assert turn is not None
    assert "piano" in turn.prompt
    (turn,) = merge([second, first]).reroute(target, [later.prompt])  # the other way round
    assert turn is not None
    assert "Italy" in turn.prompt


def test_the_same_edit_again_is_one_edit(shared: Scope) -> None:
    target = lm("gpt2")
    twice = [remembering(target, EDITS[:1], shared) for _ in range(2)]
    for patch in twice:
        patch.apply(target.model)
    both = merge(twice)
    assert both.ids == twice[0].ids == twice[1].ids
    assert both.without(both.ids[0]).ids == ()
    routed = answers(target, MIXED)
    twice[0].revert(target.model)  # made twice, undone once
    assert answers(target, MIXED) == routed


def test_forgetting_one_by_its_id(shared: Scope) -> None:
    target = lm("gpt2")
    alone = answers(target, MIXED)
    later = Edit(EDITS[0].prompt, "piano")
    patch = remembering(target, [*EDITS[:2], later], shared)
    less = patch.without(patch.ids[2])
    assert less.ids == patch.ids[:2]
    assert less.info.edits == EDITS[:2]
    (turn,) = less.reroute(target, [later.prompt])  # what it had replaced counts again
    assert turn is not None
    assert "Italy" in turn.prompt
    assert patch.ids[2] == Remembered.of(later).id  # the patch itself still remembers
    none = less.without(less.ids[0]).without(less.ids[1])
    assert none.ids == ()
    none.apply(target.model)
    assert answers(target, MIXED) == alone


def test_forgetting_what_is_not_remembered(shared: Scope) -> None:
    target = lm("gpt2")
    patch = remembering(target, EDITS[:1], shared)
    wrong = f"{patch.ids[0][:-1]}x"
    with pytest.raises(PatchStateError, match=rf"{wrong}.*Did you mean '{patch.ids[0]}'"):
        patch.without(wrong)
    empty = patch.without(patch.ids[0])
    with pytest.raises(PatchStateError, match="holds: none"):
        empty.without(patch.ids[0])
    with pytest.raises(PatchStateError, match="empty"):
        empty.scores(target, ["x"])


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_undone_in_any_order(order: tuple[int, ...], shared: Scope) -> None:
    target, prompts = lm("gpt2"), [*(edit.prompt for edit in EDITS), *ELSEWHERE]
    before, alone = Snapshot(target.model), answers(target, prompts)
    patches = [remembering(target, [edit], shared) for edit in EDITS]
    for patch in patches:
        patch.apply(target.model)
    left = list(patches)
    for i in order:
        patches[i].revert(target.model)
        left.remove(patches[i])
        fresh = lm("gpt2")
        for patch in left:
            patch.apply(fresh.model)
        assert answers(target, prompts) == answers(fresh, prompts)
    assert before.differences(target.model) == []
    assert answers(target, prompts) == alone


def test_a_copy_that_carries_it(shared: Scope) -> None:
    target = lm("llama")
    alone = answers(target, MIXED)
    twin = edited_copy(target.model, remembering(target, EDITS, shared))
    edited = LM(twin, tiny.tokenizer())
    scores, texts = answers(edited, MIXED)
    assert answers(target, MIXED) == alone
    assert [a == b for a, b in zip(scores, alone[0], strict=True)] == [False, True] * 2 + [True]
    batch = tiny.tokenizer()(
        MIXED, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False
    )
    made = twin.generate(**batch, max_new_tokens=5, do_sample=False)
    width = batch["input_ids"].shape[1]
    said = tiny.tokenizer().batch_decode(made[:, width:], skip_special_tokens=True)
    assert [said[i] for i in (0, 2)] == [texts[i] for i in (0, 2)]


def test_edits_of_two_trainings_cannot_share_a_memory(shared: Scope, tmp_path: Path) -> None:
    target = lm("gpt2")
    first = remembering(target, EDITS[:1], shared)
    other = Scope(classifier(), written(tmp_path / "b.safetensors", tiny.model("gpt2", seed=3)))
    second = remembering(target, EDITS[1:2], other)
    first.apply(target.model)
    routed = answers(target, MIXED)
    with pytest.raises(PatchMismatchError, match=r"other counterfactual models.*one archive"):
        second.apply(target.model)
    assert answers(target, MIXED) == routed
    steep = Scope(classifier(seed=1), shared.answers, "{query} {prompt} {target}", 0.9)
    third = remembering(target, EDITS[1:2], steep)
    with pytest.raises(PatchMismatchError, match="classifiers and other templates and other thre"):
        third.apply(target.model)
    first.revert(target.model)
    assert not is_patched(target.model)


# -- files ------------------------------------------------------------------------------------


@every
def test_saved_and_read(family: str, tmp_path: Path) -> None:
    target = lm(family)
    patch = remembering(target, EDITS, scope(tmp_path, family))
    patch.apply(target.model)
    routed = answers(target, MIXED)
    patch.revert(target.model)
    file = save_patch(patch, tmp_path / "edit.safetensors")
    with safe_open(file, "pt") as opened:  # the counterfactual model is not copied into it
        names = set(opened.keys())
    assert names == {"memory", *(f"classifier.{n}" for n in classifier().state_dict())}
    found = load_patch(file)
    assert isinstance(found, ScopePatch)
    assert (found.ids, found.memory, found.info) == (patch.ids, patch.memory, patch.info)
    found.apply(target.model)
    assert answers(target, MIXED) == routed
    found.revert(target.model)
    again = merge([found, load_patch(file)])  # of two files, of one training
    assert again.ids == patch.ids
    empty = save_patch(patch.without(patch.ids[0]).without(patch.ids[1]), tmp_path / "e")
    assert load_patch(empty).ids == patch.ids[2:]


def saved(target: LM, folder: Path) -> Path:
    return save_patch(remembering(target, EDITS[:1], scope(folder)), folder / "edit.safetensors")


@pytest.mark.parametrize(
    ("harm", "error", "match"),
    [
        ("gone", PatchFormatError, r"small\.safetensors, which is not there.*Put it back"),
        ("cut", PatchFormatError, r"cannot be read.*make the edit again"),
        ("text", PatchFormatError, "cannot be read"),
        ("other", PatchMismatchError, "not the one the edit was made with"),
    ],
)
def test_the_counterfactual_model_must_be_in_its_place(
    harm: str, error: type[Exception], match: str, tmp_path: Path
) -> None:
    target = lm("gpt2")
    file, model = saved(target, tmp_path), tmp_path / "small.safetensors"
    whole = model.read_bytes()
    if harm == "gone":
        model.unlink()
    elif harm == "cut":
        model.write_bytes(whole[: len(whole) // 2])
    elif harm == "text":
        model.write_text("no weights")
    else:
        written(model, tiny.model("gpt2", seed=3))
    before, alone = Snapshot(target.model), answers(target, MIXED)
    patch = load_patch(file)  # it can be looked at
    assert patch.info.edits == EDITS[:1]
    for force in (False, True):
        with pytest.raises(error, match=match):
            patch.apply(target.model, force=force)
    assert before.differences(target.model) == []
    assert answers(target, MIXED) == alone
    model.write_bytes(whole)
    patch.apply(target.model)
    assert answers(target, MIXED) != alone


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    patch = load_patch(saved(lm("gpt2"), tmp_path))
    other = LM(tiny.model("gpt2"), other_tokenizer())
    with pytest.raises(PatchMismatchError, match="another tokenizer"):
        patch.apply(other.model)
    assert not is_patched(other.model)
    with pytest.raises(PatchMismatchError, match="another tokenizer"):
        patch.reroute(other, [EDITS[0].prompt])


def test_another_model_is_refused(tmp_path: Path) -> None:
    patch, other = load_patch(saved(lm("gpt2"), tmp_path)), lm("gptj")
    with pytest.raises(PatchMismatchError, match="does not belong to this model"):
        patch.apply(other.model)
    assert not is_patched(other.model)
    alone = answers(other, MIXED)
    patch.apply(other.model, force=True)  # the same tokenizer: it answers
    assert [a == b for a, b in zip(answers(other, MIXED)[0], alone[0], strict=True)] == [
        False,
        *[True] * 4,
    ]


HARMS = {
    "no vectors": lambda tensors, data: tensors.pop("memory"),
    "too few vectors": lambda tensors, data: tensors.update(memory=tensors["memory"][:0]),
    "not a number": lambda tensors, data: tensors["memory"].fill_(torch.nan),
    "no classifier": lambda tensors, data: data.pop("classifier"),
    "no such network": lambda tensors, data: data["classifier"]["config"].update(model_type="?"),
    "no tokenizer": lambda tensors, data: data["classifier"].update(tokenizer="{}"),
    "a weight less": lambda tensors, data: tensors.pop("classifier.head.bias"),
    "no reference": lambda tensors, data: data.pop("answers"),
    "half a reference": lambda tensors, data: data["answers"].pop("digest"),
    "many layers": lambda tensors, data: data["classifier"]["config"].update(
        dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), 200_000)
    ),
    "a large vocabulary": lambda tensors, data: data["classifier"]["config"].update(
        vocab_size=12_000_000
    ),
    "many labels": lambda tensors, data: data["classifier"]["config"].update(num_labels=10**9),
    "names code": lambda tensors, data: data["classifier"]["config"].update(
        auto_map={"AutoModel": "there--net.Net"}
    ),
    "half an edit": lambda tensors, data: data["memory"][0].pop(),
    "no template": lambda tensors, data: data.pop("template"),
    "a threshold that is none": lambda tensors, data: data.update(threshold="high"),
}


@pytest.mark.parametrize("name", HARMS)
def test_a_damaged_file(name: str, tmp_path: Path) -> None:
    file = saved(lm("gpt2"), tmp_path)
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()[KEY])
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    HARMS[name](tensors, header["data"])
    text = json.dumps(header)
    save_file(tensors, file, metadata={KEY: text, DIGEST: content_digest(text, tensors)})
    with pytest.raises(PatchFormatError, match=r"edit\.safetensors"):
        load_patch(file)


# -- the encoder and the vocabulary -----------------------------------------------------------


def other_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny one with two tokens exchanged."""
    core = json.loads(tiny.tokenizer().backend_tokenizer.to_str())
    vocabulary = core["model"]["vocab"]
    one, two = "a", "e"
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(core)), pad_token="<pad>", eos_token="</s>"
    )


@pytest.mark.parametrize("family", ["gpt2", "t5", "llama", "gpt_neo"])
def test_any_network_is_an_encoder(family: str) -> None:
    made = TextEncoder(tiny.model(family).base_model, tokenizer_json(tiny.tokenizer())).eval()
    texts = [*MIXED, "x"]
    with torch.no_grad():
        vectors = made(texts)
        alone = torch.cat([made([text]) for text in texts])
    assert vectors.shape == (6, made.width)
    assert torch.allclose(vectors, alone, atol=1e-5)  # padding does not count
    assert torch.allclose(vectors.norm(dim=1), torch.ones(6))  # the map starts as the identity
    twin = TextEncoder.built(json.loads(json.dumps(made.description)))
    twin.load_state_dict(made.state_dict())
    with torch.no_grad():
        assert torch.equal(twin(texts), vectors)


def test_building_an_encoder_draws_no_lots() -> None:
    state = torch.get_rng_state()
    TextEncoder.built(classifier().description)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_long_text_is_read_from_its_end() -> None:
    made = classifier()
    end = "Rome is the capital of Italy. " * LONGEST
    with torch.no_grad():
        one, two, other = made(["Berlin. " + end, "She plays. " + end, end + "She plays."])
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_no_such_encoder(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"nothing.*all-minilm"):
        TextEncoder.load(str(tmp_path / "nothing"))


def test_vocabularies() -> None:
    mine, other = tiny.tokenizer(), other_tokenizer()
    assert differences(mine, mine) == ""
    assert "of which" in differences(mine, other)
    assert signature(mine) != signature(other)
    more = PreTrainedTokenizerFast(
        tokenizer_object=mine.backend_tokenizer, pad_token="<pad>", eos_token="</s>"
    )
    more.add_tokens(["<extra>"], special_tokens=True)  # as GPT-J's has
    assert differences(mine, more) == ""
    assert signature(mine) == signature(more)


def test_the_small_model_is_another_one() -> None:
    assert not torch.equal(
        small("gpt2").get_input_embeddings().weight,
        tiny.model("gpt2").get_input_embeddings().weight,
    )
