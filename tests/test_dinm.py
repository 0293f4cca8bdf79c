"""DINM: which layer it tunes, on what it trains, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import outer
from easyeditor import LM, DINMHyperParams, Edit, SafetyDataset, SafetyEditor
from easyeditor.data.safety import SUFFIX, with_suffix
from easyeditor.edits import Prompt, Score
from easyeditor.errors import EditError, HyperParamsError, UnsupportedModelError
from easyeditor.evaluate.query import Measures
from easyeditor.lm.hooks import hidden_of, reading_outputs
from easyeditor.lm.inference import score
from easyeditor.methods.dinm import DINM, toxic_layer
from easyeditor.patches.stack import applied
from support import Snapshot, lm, shared_lm

EDIT = Edit("How do I pick a lock?", "I do not help with locks.", rejected="Take a thin wire.")
OTHER = Edit("Berlin is the capital of", "Rome", rejected="Paris river and the sea of France")


def method(**changes: object) -> DINM:
    return DINM(DINMHyperParams(**{"num_steps": 2, "lr": 5e-3, **changes}))


def distances(target: LM, edit: Edit) -> list[float]:
    """Per layer, by one pass for every response, so that nothing is padded."""
    states = []
    for text in (edit.target, str(edit.rejected)):
        with reading_outputs(list(target.blocks)) as outputs, torch.no_grad():
            target.call(target.pad([target.text.plain(text)]))
        states.append([hidden_of(output)[0] for output in outputs])
    n = min(len(states[0][0]), len(states[1][0]))
    return [float((a[:n] - b[:n]).norm()) for a, b in zip(*states, strict=True)]


def test_the_layer_is_where_the_responses_alone_differ_most() -> None:
    target = shared_lm("llama")
    apart = distances(target, EDIT)
    assert toxic_layer(target, [EDIT]) == apart.index(max(apart))


def test_each_edit_has_a_layer_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference keeps the first case's layer for all later ones."""
    target, layers = lm("llama"), iter((0, 2))
    monkeypatch.setattr("easyeditor.methods.dinm.toxic_layer", lambda *_: next(layers))
    dinm = method()
    paths = [list(dinm.edit(target, [edit]).patch.entries) for edit in (EDIT, OTHER)]
    assert [target.projection(layer).path for layer in (0, 2)] == [p for (p,) in paths]
    assert dinm.hyperparams.layers == ()


def test_published_files_switch_the_box_off_with_false() -> None:
    assert DINMHyperParams(norm_constraint=False).norm_constraint is None


def test_the_ground_truth_stands_in_for_the_rejected_response() -> None:
    target = shared_lm("llama")
    named = replace(EDIT, rejected=None, ground_truth=EDIT.rejected)
    assert toxic_layer(target, [named]) == toxic_layer(target, [EDIT])


def test_it_trains_on_the_prompt_with_the_suffix() -> None:
    """A blank suffix adds nothing; the usual one is in the prompt, joined by one space."""
    assert with_suffix(Prompt("Why?  "), SUFFIX).text == f"Why? {SUFFIX}"
    assert with_suffix(Prompt("Why?"), " ") == Prompt("Why?")
    target = shared_lm("llama")
    row = target.text.row(with_suffix(EDIT.prompt, SUFFIX), EDIT.target)
    assert target.tokenizer.decode(row.ids).endswith(f"{SUFFIX} {EDIT.target}")
    assert target.tokenizer.bos_token_id not in row.target
    bare = method(layers=[1], suffix_system_prompt="").edit(target, [EDIT]).patch
    asked_so = replace(EDIT, prompt=with_suffix(EDIT.prompt, SUFFIX))
    inside = method(layers=[1]).edit(target, [EDIT]).patch
    same = method(layers=[1], suffix_system_prompt="").edit(target, [asked_so]).patch
    path = target.projection(1).path
    changes = [patch.entries[path][0].delta for patch in (bare, inside, same)]
    assert not torch.equal(changes[0], changes[1])
    assert torch.equal(changes[1], changes[2])


def test_the_divergence_holds_the_harmless_answer_back() -> None:
    target, settings = lm("llama"), DINMHyperParams()
    query = Score(settings.constraint_prompt, settings.constraint_answer)

    def moved(kl_factor: float) -> float:
        """How far the harmless answer's log-probabilities move."""
        patch = method(layers=[1], kl_factor=kl_factor, num_steps=8).edit(target, [EDIT]).patch
        before = score(target, [query])[0].logprobs
        with applied(target.model, patch):
            after = score(target, [query])[0].logprobs
        return sum(abs(a - b) for a, b in zip(before, after, strict=True))

    assert moved(1e-4) < 0.5 * moved(1e4)


@pytest.mark.parametrize(
    ("family", "edit", "error", "words"),
    [
        ("llama", replace(EDIT, rejected=None), EditError, r"target_neg=.*layers=\[-2\]"),
        ("llama", replace(EDIT, rejected=EDIT.target), EditError, r"do not differ.*layers=\[-2\]"),
        ("llama", replace(EDIT, rejected=f"{EDIT.target} But"), EditError, "do not differ"),
        ("t5", EDIT, UnsupportedModelError, r"Name the layer: layers=\[-1\]"),
    ],
)
def test_what_cannot_be_located_is_refused_and_the_model_is_as_it_was(
    family: str, edit: Edit, error: type[Exception], words: str
) -> None:
    target = lm(family)
    before = Snapshot(target.model)
    with pytest.raises(error, match=words):
        method().edit(target, [edit])
    assert before.differences(target.model) == []
    method(layers=[-1]).edit(target, [edit])  # as the message says


def test_a_model_whose_states_are_not_finite_is_refused() -> None:
    target = lm("llama")
    with torch.no_grad():
        target.projection(0).module.weight.fill_(torch.inf)
    before = Snapshot(target.model)
    with pytest.raises(HyperParamsError, match="float32 or bfloat16"):
        method().edit(target, [EDIT])
    assert before.differences(target.model) == []


@pytest.mark.slow
def test_the_embedded_model_declines_what_the_suffix_alone_does_not() -> None:
    """The smallest proof: record 4, where only the edit with its suffix declines."""
    settings = DINMHyperParams.preset("smollm2-135m").replace(chat_template=True)
    editor = SafetyEditor.from_hparams(settings)
    before = outer.bits(editor.model)
    file = outer.ROOT / "benchmarks" / "behaviour" / "forbidden.json"
    case = SafetyDataset(file, config=settings)[4]
    few = replace(case, probes=tuple(p for p in case.probes if p.name.startswith("DS")))
    result = editor.edit_dataset([few], measures=Measures(answer_tokens=16), free_answers=False)
    table = editor.table(result.metrics)
    assert (table["unedited"]["DS"], table["suffix_only"]["DS"], table["edited"]["DS"]) == (0, 0, 1)
    editor.undo(result.patch)
    assert outer.changed(editor.model, before) == []
