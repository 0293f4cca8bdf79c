"""In-context editing: what is put before a prompt, which demonstrations, and what it does."""

from __future__ import annotations

import builtins
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import outer
from easyeditor import LM, BaseEditor, Case, Edit, IKEHyperParams, Probe, load_patch, save_patch
from easyeditor.encoders.sentence_encoder import Sentences
from easyeditor.errors import (
    ContradictingEditsError,
    DataError,
    EditError,
    MissingExtraError,
    ModelLoadError,
    PatchFormatError,
    PatchMismatchError,
    PatchStateError,
)
from easyeditor.lm.inference import generate, score
from easyeditor.methods.ike.ike import IKE
from easyeditor.methods.ike.patch import ContextPatch
from scripting import DONE, document, refused
from support import Snapshot, lm, logprobs

EDIT = Edit("Berlin is the capital of", "Italy")
OTHER = Edit("She plays the", "river", ground_truth="piano")


def case(name: str, *groups: str) -> Case:
    answers = {"rephrase": f"new {name}", "locality/near": f"own {name}"}
    probes = tuple(Probe(f"{group} of {name}", (answers[group],), group) for group in groups)
    return Case(name, Edit(f"{name} is", f"new {name}"), probes)


CORPUS = [case(f"c{i}", "rephrase", "locality/near") for i in range(8)]


class Counted(Sentences):
    """Texts lie on a circle by the first digit in them, so who is near whom is plain."""

    def __init__(self, name: str = "counted") -> None:
        super().__init__(name)
        self.asked: list[list[str]] = []

    def encode(self, texts: list[str]) -> torch.Tensor:
        self.asked.append(list(texts))
        digits = [next((int(c) for c in text if c.isdigit()), 0) for text in texts]
        angles = torch.tensor(digits, dtype=torch.float32) * 0.3
        return torch.stack([angles.cos(), angles.sin()], 1)


@pytest.fixture
def sentences(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counted:
    monkeypatch.setenv("EASYEDITOR_CACHE", str(tmp_path))
    return Counted()


def ike(sentences: Counted | None = None, **changes: object) -> IKE:
    method = IKE(IKEHyperParams(**changes))
    if sentences is not None:
        method._sentences = sentences
    return method


def front(patch: ContextPatch, target: LM, prompt: str = "Q") -> str:
    (turn,) = patch.reroute(target, [prompt])
    return turn.prompt


# -- what is said -----------------------------------------------------------------------------


def test_the_fact_alone_is_one_line_and_the_question() -> None:
    target = lm("gpt2")
    patch = ike(use_icl_examples=False).edit(target, [EDIT]).patch
    assert front(patch, target, "You can see") == (
        "New Fact: Berlin is the capital of Italy\nPrompt: You can see"
    )
    assert patch.rows() == []


def test_demonstrations_are_the_nearest_of_three_kinds_the_nearest_last(sentences) -> None:
    target = lm("gpt2", n_positions=2048)
    method = ike(sentences, k=8)
    method.use_corpus(CORPUS)
    said = front(method.edit(target, [Edit("c3 4 is", "X")]).patch, target)
    shown = said.split("\n\n")
    assert shown.pop() == "New Fact: c3 4 is X\nPrompt: Q"
    nearest = [text.split("\n")[0] for text in reversed(shown)]
    # c3 first; then both neighbours of each distance
    assert nearest[0] == "New Fact: c3 is new c3"
    assert {text[10:12] for text in nearest[1:3]} == {"c2", "c4"}
    kinds = [text.split("\nPrompt: ")[1].split()[0] for text in reversed(shown)]
    assert kinds.count("locality/near") == 4
    assert kinds.count("rephrase") == 3
    assert kinds[-1] not in {"rephrase", "locality/near"}
    assert "locality/near of c3 own c3" in shown[-1]


def test_a_fact_is_no_example_of_itself(sentences) -> None:
    target = lm("gpt2", n_positions=2048)
    method = ike(sentences, k=32)
    method.use_corpus(CORPUS)
    said = front(method.edit(target, [Edit("c3 is", "X")]).patch, target)
    assert said.count("New Fact: c3") == 1
    assert said.count("New Fact:") == len(CORPUS)


@pytest.mark.parametrize("groups", [(), ("rephrase",)])
def test_a_corpus_without_probes_shows_what_it_has(sentences, groups) -> None:
    target = lm("gpt2", n_positions=2048)
    method = ike(sentences, k=4)
    method.use_corpus([case("c1", *groups), case("c2", *groups)])
    said = front(method.edit(target, [EDIT]).patch, target)
    asked = "rephrase of c1 new c1" if groups else "Prompt: c1 is new c1"
    assert asked in said


def test_only_what_fits_is_shown(sentences, caplog) -> None:
    target = lm("gpt2", n_positions=230)
    method = ike(sentences, k=8)
    method.use_corpus(CORPUS)
    with caplog.at_level("INFO", logger="easyeditor"):
        said = front(method.edit(target, [EDIT]).patch, target)
    assert 1 < said.count("New Fact:") < 9
    assert len(target.text.row(said, "answer").ids) < 230
    assert "demonstrations fit" in caplog.text


def test_a_corpus_is_encoded_once(sentences) -> None:
    method = ike(sentences)
    method.use_corpus(CORPUS)
    target = lm("gpt2", n_positions=2048)
    for edit in (EDIT, OTHER):
        method.edit(target, [edit])
    again = ike(Counted())
    again.use_corpus(CORPUS)
    again.edit(target, [EDIT])
    assert [len(texts) for texts in sentences.asked] == [len(CORPUS), 1, 1]
    assert [len(texts) for texts in again._sentences.asked] == [1]  # from the file


def test_of_several_facts_the_nearest_is_told(sentences) -> None:
    target = lm("gpt2", n_positions=2048)
    method = ike(sentences, k=1)
    method.use_corpus(CORPUS)
    edits = [Edit("c1 or", "one"), Edit("c7 or", "seven")]
    patch = method.edit(target, edits).patch
    assert "New Fact: c7 or seven\nPrompt: 6" in front(patch, target, "6")
    assert "c7 or seven" not in front(patch, target, "2")
    alone = [method.edit(target, [edit]).patch for edit in edits]
    assert front(ContextPatch.merge(alone), target, "6") == front(patch, target, "6")


def test_without_an_encoder_all_facts_are_told_and_the_later_one_counts() -> None:
    target = lm("gpt2")
    method = ike(use_icl_examples=False)
    first, second = (
        method.edit(target, [EDIT, OTHER]).patch,
        method.edit(target, [Edit(EDIT.prompt, "X")]).patch,
    )
    both = ContextPatch.merge([first, second])
    assert front(both, target) == (
        "New Fact: She plays the river\nNew Fact: Berlin is the capital of X\nPrompt: Q"
    )
    assert [edit.target for edit in both.info.edits] == ["river", "X"]


def test_facts_with_and_without_vectors_are_all_told(sentences, tmp_path) -> None:
    target = lm("gpt2", n_positions=2048)
    method = ike(sentences, k=1)
    method.use_corpus(CORPUS)
    alone = ike(use_icl_examples=False).edit(target, [OTHER]).patch
    for order in (
        [method.edit(target, [EDIT]).patch, alone],
        [alone, method.edit(target, [EDIT]).patch],
    ):
        both = ContextPatch.merge(order)
        loaded = load_patch(save_patch(both, tmp_path / "both.safetensors"))
        for patch in (both, loaded):
            said = front(patch, target)
            assert "New Fact: She plays the river\n" in said
            assert "New Fact: Berlin is the capital of Italy\n" in said


def test_a_file_of_it_says_the_same(sentences, tmp_path) -> None:
    target = lm("gpt2", n_positions=2048)
    method = ike(sentences, k=2)
    method.use_corpus(CORPUS)
    patch = method.edit(target, [EDIT, Edit("c7 or", "seven")]).patch
    loaded = load_patch(save_patch(patch, tmp_path / "ike.safetensors"))
    assert isinstance(loaded, ContextPatch)
    assert loaded.contexts == patch.contexts
    assert loaded.info.edits == patch.info.edits
    assert loaded.sentences.name == "counted"


@pytest.mark.parametrize(
    "data", [{"contexts": []}, {"contexts": [["a", "b"]] * 3}, {"contexts": 1}]
)
def test_a_damaged_file_is_refused(tmp_path, data, monkeypatch) -> None:
    target = lm("gpt2")
    patch = ike(use_icl_examples=False).edit(target, [EDIT]).patch
    monkeypatch.setattr(
        ContextPatch,
        "dump",
        lambda self: (
            {"vectors": torch.zeros(len(data["contexts"]) if data["contexts"] != 1 else 1, 0)},
            {"encoder": None, **data},
        ),
    )
    file = save_patch(patch, tmp_path / "ike.safetensors")
    with pytest.raises(PatchFormatError, match="does not fit"):
        load_patch(file)


def test_an_encoder_that_only_a_file_names_is_not_loaded(tmp_path) -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    plain = ike(use_icl_examples=False).edit(target, [EDIT, OTHER]).patch
    contexts = tuple(replace(context, vector=(1.0, 0.0)) for context in plain.contexts)
    name = str(tmp_path / "encoder")
    theirs = replace(plain, contexts=contexts, sentences=Sentences(name))
    file = save_patch(theirs, tmp_path / "theirs.safetensors")
    loaded = load_patch(file)
    with pytest.raises(PatchStateError, match="may run code of its own"):
        loaded.apply(target.model)
    with pytest.raises(PatchStateError, match="encoder="):
        loaded.reroute(target, ["You"])
    with pytest.raises(PatchMismatchError, match="was made with"):
        load_patch(file, encoder="another")
    assert before.differences(target.model) == []
    load_patch(file, encoder=name).apply(target.model)  # nothing is loaded before a prompt is asked


# -- through the editor -------------------------------------------------------------------------


def test_the_edited_model_answers_with_the_fact_in_front(sentences) -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    editor = BaseEditor(target, IKEHyperParams(use_icl_examples=False))
    result = editor.edit(EDIT.prompt, EDIT.target, keep_original_weight=True)
    assert before.differences(target.model) == []
    told = "New Fact: Berlin is the capital of Italy\nPrompt: "
    edited = LM(result.edited_model, target.tokenizer)
    assert generate(edited, ["You can"], 5) == generate(target, [f"{told}You can"], 5)
    (mine,), (its,) = (
        logprobs(edited, [("You can", "see")]),
        logprobs(target, [(f"{told}You can", "see")]),
    )
    assert mine == pytest.approx(its, abs=1e-5)
    post = result.metrics[0]["post"]["rewrite_prob"]["target_new"]
    (expected,) = score(target, [(told + EDIT.prompt.text, EDIT.target)])
    assert post == pytest.approx(float(torch.tensor(expected.mean_logprob).exp()), rel=1e-3)


def test_a_sequence_accumulates_and_is_undone() -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    editor = BaseEditor(target, IKEHyperParams(use_icl_examples=False))
    result = editor.edit([EDIT.prompt, OTHER.prompt], [EDIT.target, OTHER.target])
    assert len(result.patch.contexts) == 2
    said = generate(target, ["You can"], 5)
    editor.undo(result.patch)
    assert generate(target, ["You can"], 5) != said or before.differences(target.model) == []
    assert before.differences(target.model) == []


def test_train_ds_is_the_corpus_and_only_for_those_that_take_one() -> None:
    editor = outer.editor("FT")
    before = outer.bits(editor.model)
    with pytest.raises(EditError, match="FT takes no train_ds"):
        editor.edit(outer.PROMPT, outer.TARGET, train_ds=CORPUS)
    assert outer.changed(editor.model, before) == []
    editor = BaseEditor(lm("gpt2", n_positions=2048), IKEHyperParams(k=2))
    editor.method._sentences = Counted()
    result = editor.edit(EDIT.prompt, EDIT.target, train_ds=CORPUS)
    assert result.patch.contexts[0].demonstrations.count("New Fact:") == 2


def test_the_commands_take_it(easyedit, folder, tmp_path) -> None:
    file, corpus = tmp_path / "fact.safetensors", tmp_path / "corpus.json"
    told = easyedit(
        "edit", "--model", folder, "--method", "ike", "--set", "use_icl_examples=false",
        "--prompt", EDIT.prompt, "--target", EDIT.target, "--save", file, "--json",
    )  # fmt: skip
    assert document(told)["patch"]["method"] == "IKE"
    shown = easyedit("show", file)
    assert shown.code == DONE
    assert "changes no weight" in shown.out
    both = document(easyedit("generate", "--model", folder, "--patch", file, "You can", "--json"))
    target = outer.editor("FT").lm
    assert (
        both["after"]
        == generate(target, [f"New Fact: {EDIT.prompt} Italy\nPrompt: You can"], 30)[0]
    )
    assert both["before"] == generate(target, ["You can"], 30)[0]
    for words in (
        ("apply", file, "--model", folder, "--out", tmp_path / "model"),
        ("export", file, "--out", tmp_path / "adapter"),
    ):
        assert "changes no weight" in refused(easyedit(*words))
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "adapter").exists()
    words = ("edit", "--model", folder, "--method", "ike", "--set", f"corpus={corpus}")
    assert "corpus.json" in refused(easyedit(*words, "--prompt", "A b", "--target", "c"))


# -- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"corpus": "nowhere.json"}, DataError, r"nowhere\.json"),
        ({"corpus": "EMPTY"}, DataError, "no edits|holds no|no record|empty"),
        ({"sentence_model_name": "/no/such/encoder"}, ModelLoadError, "/no/such/encoder"),
    ],
)
def test_wrong_settings(changes, error, words, tmp_path) -> None:
    empty = tmp_path / "empty.json"
    empty.write_text("[]", encoding="utf-8")
    changes = {k: str(empty) if v == "EMPTY" else v for k, v in changes.items()}
    editor = BaseEditor(lm("llama"), IKEHyperParams(**changes))
    if "corpus" not in changes:
        editor.method.use_corpus(CORPUS)
    before = outer.bits(editor.model)
    with pytest.raises(error, match=words):
        editor.edit(EDIT.prompt, EDIT.target)
    assert outer.changed(editor.model, before) == []
    assert editor.applied == []


def test_an_empty_corpus() -> None:
    with pytest.raises(DataError, match="no edits"):
        ike().use_corpus([])


def test_contradictions() -> None:
    with pytest.raises(ContradictingEditsError):
        ike().edit(lm("gpt2"), [EDIT, Edit(EDIT.prompt, "X")])


def test_no_corpus_is_said_aloud(caplog) -> None:
    ike().edit(lm("gpt2"), [EDIT])
    assert "without demonstrations" in caplog.text


def test_a_missing_retriever_names_the_command(monkeypatch) -> None:
    honest = builtins.__import__

    def without(name: str, *args: object, **more: object) -> object:
        if name.startswith("sentence_transformers"):
            raise ImportError(name)
        return honest(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    method = ike(sentence_model_name="never loaded before")
    method.use_corpus(CORPUS)
    with pytest.raises(MissingExtraError, match=r'pip install "easyedit-lm\[retrieval\]"'):
        method.edit(lm("gpt2"), [EDIT])


@pytest.mark.real
def test_the_embedded_encoder_knows_a_paraphrase() -> None:
    vectors = Sentences("sentence-transformers/all-MiniLM-L6-v2").encode(
        [
            "The Eiffel Tower is located in the city of",
            "The city that is home to the Eiffel Tower is",
            "My sister plays the violin in an orchestra.",
        ]
    )
    near, far = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
    assert near > 0.8
    assert abs(far) < 0.2
    assert vectors.norm(dim=1) == pytest.approx([1.0] * 3, abs=1e-5)
