"""The editor's numbers against one prompt at a time, by transformers alone."""

from __future__ import annotations

import math

import pytest

import outer
import tiny
from easyeditor import BaseEditor, Case, Edit, Probe
from outer import PROMPT, PROMPTS, TARGET, TARGETS
from three_edits import LOCALITY, METHODS, PORTABILITY, REPHRASES, all_three


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_what_one_prompt_at_a_time_gives(method):
    editor, result = all_three(method, evaluate_when="end")
    old, new = tiny.model("llama"), editor.model
    seen = set()
    for i, metric in enumerate(result.metrics):
        for model, half in ((old, metric["pre"]), (new, metric["post"])):
            assert half["rewrite_acc"] == outer.share(*outer.said(model, PROMPTS[i], TARGETS[i]))
            texts = [REPHRASES[i]] if isinstance(REPHRASES[i], str) else REPHRASES[i]
            expected = [outer.share(*outer.said(model, text, TARGETS[i])) for text in texts]
            assert half["rephrase_acc"] == pytest.approx(sum(expected) / len(expected))
            block = PORTABILITY["one_hop"]
            expected = outer.share(*outer.said(model, block["prompt"][i], block["ground_truth"][i]))
            assert half["portability"]["one_hop_acc"] == expected
            told = half["rewrite_prob"]["target_new"]
            assert told == pytest.approx(probability(model, PROMPTS[i], TARGETS[i]), rel=1e-4)
        for name, block in LOCALITY.items():
            prompts, answers = block["prompt"][i], block["ground_truth"][i]
            if isinstance(prompts, str):
                prompts, answers = [prompts], [answers]
            expected = [
                outer.share(outer.said(old, p, a)[1], outer.said(new, p, a)[1])
                for p, a in zip(prompts, answers, strict=True)
            ]
            told = metric["post"]["locality"][f"{name}_acc"]
            assert told == pytest.approx(sum(expected) / len(expected))
            seen.add(told)
    assert len(seen) > 1 or method != "FT"  # else the comparison would say nothing


def probability(model, prompt, answer):
    """Geometric mean per token, one prompt at a time."""
    tokens, _ = outer.said(model, prompt, answer)
    start = outer.first_token(prompt, answer)
    chances = outer.logits(model, f"{prompt} {answer}")[start - 1 : -1].log_softmax(-1)
    return math.exp(chances[range(len(tokens)), tokens].mean())


def test_locality_is_about_the_edit_not_the_truth():
    """A model that was wrong before and says the same after has locality 1."""
    editor = outer.editor(lr=1e-12)
    near = {"n": {"prompt": "She plays the", "ground_truth": "river from Rome"}}
    metric = editor.edit(PROMPT, TARGET, locality_inputs=near).metrics[0]
    tokens, best = outer.said(tiny.model("llama"), "She plays the", "river from Rome")
    assert outer.share(tokens, best) < 1
    assert metric["post"]["locality"]["n_acc"] == 1.0


def test_locality_is_measured_against_the_weights_the_call_met():
    editor = outer.editor(lr=3e-2)
    near = {"n": {"prompt": "Anna Lind is", "ground_truth": "Danish"}}
    editor.edit(PROMPT, TARGET)
    met = tiny.model("llama")
    met.load_state_dict(editor.model.state_dict())
    found = editor.edit(PROMPTS[1], TARGETS[1], locality_inputs=near).metrics[0]
    pair = ("Anna Lind is", "Danish")
    expected = outer.share(outer.said(met, *pair)[1], outer.said(editor.model, *pair)[1])
    assert found["post"]["locality"]["n_acc"] == expected


@pytest.mark.parametrize("target", ["French", "xqj zvk wpf", "The river inside Berlin well"])
def test_t5_scores_as_labels_do(target):
    """A T5 that repeats what its decoder is fed: only an unshifted target would score 1."""
    model = tiny.model("t5")
    for block in model.decoder.block:
        for writes in (
            block.layer[0].SelfAttention.o,
            block.layer[1].EncDecAttention.o,
            block.layer[2].DenseReluDense.wo,
        ):
            writes.weight.data.zero_()
    asked, labels = (
        tiny.tokenizer()(text, return_tensors="pt")["input_ids"] for text in (PROMPT, target)
    )
    leaking = model(input_ids=asked, decoder_input_ids=labels).logits.argmax(-1)
    assert outer.share(leaking[0].tolist(), labels[0].tolist()) > 0.9
    tokens, best = outer.said(model, PROMPT, target)
    editor = BaseEditor.from_pretrained(model, tiny.tokenizer(), outer.settings(layers=[1]))
    found = editor.edit(PROMPT, target, keep_original_weight=True).metrics[0]
    assert found["pre"]["rewrite_acc"] == outer.share(tokens, best)
    assert found["pre"]["rewrite_acc"] < 0.5


def test_t5_learns_and_is_measured():
    editor = outer.editor("FT", "t5", num_steps=40, lr=1e-2, layers=[1, 2])
    near = {"n": {"prompt": ["She plays the"], "ground_truth": ["piano well"]}}
    hop = {"h": {"prompt": ["Anna Lind is"], "ground_truth": ["French to us"]}}
    found = editor.edit(PROMPT, TARGET, locality_inputs=near, portability_inputs=hop).metrics[0]
    old, new = tiny.model("t5"), editor.model
    assert found["post"]["rewrite_acc"] == 1.0
    assert found["post"]["rewrite_acc"] == outer.share(*outer.said(new, PROMPT, TARGET))
    before, after = (outer.said(m, "She plays the", "piano well")[1] for m in (old, new))
    assert found["post"]["locality"]["n_acc"] == outer.share(before, after)
    for model, half in ((old, "pre"), (new, "post")):
        told = found[half]["portability"]["h_acc"]
        assert told == outer.share(*outer.said(model, "Anna Lind is", "French to us"))


def test_probes_do_not_reach_the_method(monkeypatch):
    editor, given = outer.editor(), []
    real = editor.method.edit

    def seen(lm, edits, state):
        given.append(edits)
        return real(lm, edits, state)

    monkeypatch.setattr(editor.method, "edit", seen)
    case = Case("a", Edit(PROMPT, TARGET), (Probe("Anna Lind is", ("Danish",), "locality/n"),))
    editor.edit_cases([case])
    assert given == [[case.edit]]
