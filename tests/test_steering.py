"""Steering vectors: the formula, who is steered where, exact undo, files, what is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from easyeditor import LM, load_patch, save_patch
from easyeditor.data.contrast import Contrast, contrast_of, read_contrast, read_pairs, read_texts
from easyeditor.edits import Score
from easyeditor.errors import (
    DataError,
    EditError,
    HyperParamsError,
    ModelLoadError,
    PatchError,
    PatchMismatchError,
    UnsupportedModelError,
)
from easyeditor.lm.forward.context import ForwardContext
from easyeditor.lm.hooks import hidden_of, reading_output, stopping
from easyeditor.lm.inference import generate, score
from easyeditor.patches.adapter import AddVector
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.patch import merge
from easyeditor.patches.stack import applied
from easyeditor.steering.activations import read_activations
from easyeditor.steering.conditions import conditions_between
from easyeditor.steering.report import PROMPT_ONLY, RANDOM, STEERED, UNSTEERED, steering_report
from easyeditor.steering.vectors import SteeringVectors, contrast_vectors, prompt_vectors
from easyeditor.tensor_file import read_tensor_file, write_tensor_file
from support import Snapshot, lm, logits, same_bits, shared_lm
from synthetic import PROMPTS
from tiers import tiered

POSITIVE = ["The river is in Paris", "Anna Lind is home", "She plays well", "Rome is in Italy"]
NEGATIVE = ["The river is in Rome", "Anna Lind is inside", "She plays piano", "Rome is in Germany"]
FAMILIES = ["llama", "gpt2", "opt", "bloom", "gemma2", "mistral", "gptj", "t5", "qwen3", "falcon"]
FAST = ("llama", "gpt2")
STEERED_FAST = ("llama",)


def contrast() -> Contrast:
    return contrast_of(POSITIVE, NEGATIVE)


def vectors(target: LM, **changes: Any) -> SteeringVectors:
    return contrast_vectors(target, contrast(), **{"layers": [1], **changes})


def strong(target: LM, **changes: Any) -> ModulePatch:
    """A patch that changes what a tiny model writes, its own vector being small."""
    one = vectors(target)
    return one.patch(60 / float(one.vectors[1].norm()), **changes)


def said(target: LM, prompts: Sequence[str], **options: Any) -> list[str]:
    return generate(target, prompts, 6, min_new_tokens=6, **options)


# -- the vector -------------------------------------------------------------------------------


def block_states(target: LM, ids: Sequence[int], layer: int) -> torch.Tensor:
    """The output of a block, by a plain pass of one text."""
    with (
        target.at_rest(),
        torch.no_grad(),
        reading_output(target.blocks[layer], stop=True) as seen,
        stopping(),
    ):
        target.model(input_ids=torch.tensor([list(ids)]))
    return hidden_of(seen[0])[0]


@pytest.mark.parametrize("read", ["answer", "last"])
def test_the_vector_is_the_mean_difference_of_the_pairs(read: str) -> None:
    target = shared_lm("llama")
    texts = contrast()
    differences = []
    for one, other in zip(texts.positive, texts.negative, strict=True):
        means = []
        for example in (one, other):
            row = target.text.row(example.prompt, example.answer)
            start = row.prompt_length if read == "answer" else len(row.ids) - 1
            means.append(block_states(target, row.ids, 1)[start:].mean(0))
        differences.append(means[0] - means[1])
    expected = torch.stack(differences).mean(0)
    result = vectors(target, read=read)
    assert torch.allclose(result.vectors[1], expected, atol=1e-5)
    assert vectors(target, method="mean", read=read).norms == pytest.approx(result.norms)
    assert result.settings.norms[0] == pytest.approx(float(expected.norm()), rel=1e-3)
    assert result.random(0).norms == pytest.approx(result.norms)


def test_what_a_pair_shares_is_its_prompt() -> None:
    texts = contrast()
    assert [e.prompt.text for e in texts.positive[:3]] == [
        "The river is in",
        "Anna Lind is",
        "She plays",
    ]
    assert texts.negative[1].answer == " inside"
    alone = contrast_of(["one two three", "four five"], ["six seven"])
    assert [e.prompt.text for e in (*alone.positive, *alone.negative)] == ["one", "four", "six"]
    assert contrast_of(["a happy day"], ["a happyish day"]).positive[0].answer == " happy day"


def test_a_prompt_vector_is_what_an_instruction_changes() -> None:
    target = shared_lm("llama")
    result = prompt_vectors(target, PROMPTS[:3], "You can see.", layers=[1])
    states = [
        [block_states(target, target.text.row(f"{led}{p}").ids, 1)[-1] for p in PROMPTS[:3]]
        for led in ("You can see.\n", "")
    ]
    expected = torch.stack(states[0]).mean(0) - torch.stack(states[1]).mean(0)
    assert torch.allclose(result.vectors[1], expected, atol=1e-5)


def test_patches_that_the_model_carries_are_not_read() -> None:
    target = lm("llama")
    plain = vectors(target)
    with applied(target.model, strong(target)):
        again = vectors(target)
    assert same_bits(plain.vectors[1], again.vectors[1])


# -- who is steered, and where ----------------------------------------------------------------


@pytest.mark.parametrize("family", tiered(FAMILIES, FAST))
def test_strength_0_has_the_base_models_bits_and_undo_is_exact(family: str) -> None:
    target = lm(family)
    target.model.eval()
    before, plain = Snapshot(target.model), logits(target.model)
    for one in (strong(target), strong(target, positions="answer")):
        one.apply(target.model)
        assert not same_bits(logits(target.model), plain)
        one.revert(target.model)
        assert same_bits(logits(target.model), plain)
    nothing = vectors(target).patch(0.0)
    with applied(target.model, nothing):
        assert same_bits(logits(target.model), plain)
    assert before.differences(target.model) == []


@pytest.mark.parametrize("positions", ["all", "prompt", "answer", "after_prompt"])
@pytest.mark.parametrize("family", tiered(FAMILIES, STEERED_FAST))
def test_the_same_text_with_and_without_cache_and_in_any_batch(family: str, positions: str) -> None:
    target = lm(family)
    target.model.eval()
    plain = said(target, PROMPTS)
    strong(target, positions=positions).apply(target.model)
    together = said(target, PROMPTS)
    assert together == said(target, PROMPTS, use_cache=False)
    assert together == [said(target, [prompt])[0] for prompt in PROMPTS]
    if family in FAST:  # a tiny model of another family may be steered without writing otherwise
        assert together != plain
    # Teacher forcing acts on the same tokens as writing does.
    queries = [Score(p, text) for p, text in zip(PROMPTS, together, strict=True) if text.strip()]
    alone = [score(target, [query])[0].logprobs for query in queries]
    for row, other in zip(score(target, queries), alone, strict=True):
        assert row.logprobs == pytest.approx(other, abs=1e-4)


def test_positions_are_the_tokens_they_say() -> None:
    target = lm("llama")
    target.model.eval()
    prompt, answer = "Berlin is the capital of", "Italy and Rome"
    row = target.text.row(prompt, answer)
    at = row.prompt_length
    plain = block_states(target, row.ids, 1)
    expected = {
        "all": range(len(row.ids)),
        "prompt": range(at),
        "answer": range(at - 1, len(row.ids)),
        "after_prompt": range(at, len(row.ids)),
    }
    for positions, steered in expected.items():
        with (
            applied(target.model, strong(target, positions=positions)),
            reading_output(target.blocks[1], stop=True) as seen,
            stopping(),
        ):
            target.call(target.pad([row.ids]), prompt_end=[at - 1])
        hidden = hidden_of(seen[0]).reshape(len(row.ids), -1)
        moved = (hidden - plain).norm(dim=1) > 1
        assert moved.tolist() == [i in steered for i in range(len(row.ids))], positions


@pytest.mark.parametrize("family", tiered(["llama", "gpt2", "t5"], ("llama",)))
def test_the_condition_is_read_per_row(family: str) -> None:
    target = lm(family)
    target.model.eval()
    plain = said(target, PROMPTS)
    gate = conditions_between(target, PROMPTS[:1], PROMPTS[1:4], [1])
    one = strong(target, condition=gate)
    everywhere = strong(target)
    with applied(target.model, everywhere):
        steered = said(target, PROMPTS)
    with applied(target.model, one):
        together = said(target, PROMPTS)
        assert together == said(target, PROMPTS, use_cache=False)
        assert together == [said(target, [prompt])[0] for prompt in PROMPTS]
        twin = lm(family)  # carries nothing: a condition is no state of a class
        assert said(twin, PROMPTS) == plain
    rows = [target.text.row(prompt) for prompt in PROMPTS]
    states = read_activations(target, rows, [1], "block", "last").means[:, 0]
    met = (states @ gate[1].direction > gate[1].threshold).tolist()
    assert met[0]
    assert not any(met[1:3])  # PROMPTS[3] was held out and may lie on either side
    assert together == [a if steer else b for a, b, steer in zip(steered, plain, met, strict=True)]


def test_conditions_read_the_output_before_other_vectors_are_added() -> None:
    target = lm("llama")
    target.model.eval()
    gate = conditions_between(target, PROMPTS[:1], PROMPTS[1:4], [1])
    conditional, first = strong(target, condition=gate), strong(target, positions="prompt")
    with applied(target.model, first), applied(target.model, conditional):
        both = logits(target.model, PROMPTS[1])
    with applied(target.model, first):
        assert same_bits(both, logits(target.model, PROMPTS[1]))


def test_every_layer_adds_its_own_vector() -> None:
    target = lm("llama")
    target.model.eval()
    one = vectors(target, layers=[0, 2])
    patch = one.patch(3.0)
    assert not torch.equal(one.vectors[0], one.vectors[2])
    row = target.text.row(PROMPTS[0])
    plain = block_states(target, row.ids, 0)
    with applied(target.model, patch):
        change = block_states(target, row.ids, 0) - plain
        final = block_states(target, row.ids, 2)
    assert torch.allclose(change, (3.0 * one.vectors[0]).expand_as(change), atol=1e-5)
    ((name, _), (_, last)) = patch.adapters.items()
    below = ModulePatch({name: patch.adapters[name]}, patch.info)
    with applied(target.model, below):
        change = final - block_states(target, row.ids, 2)
    assert torch.allclose(change, (3.0 * last[0].vector).expand_as(change), atol=1e-5)


def test_the_sum_is_rounded_once_in_16_bits() -> None:
    vector = torch.full((4,), 1.003)
    one = AddVector(vector, strength=2.0)
    y = torch.full((1, 1, 4), 100.0, dtype=torch.bfloat16)
    mask = torch.ones(1, 1, dtype=torch.long)
    out = one(y, y, ForwardContext(mask, torch.zeros(1, dtype=torch.long)))
    assert out.dtype == torch.bfloat16
    assert same_bits(out, (y.float() + 2.0 * vector).to(torch.bfloat16))


def test_stacked_saved_and_undone_in_any_order(tmp_path: Path) -> None:
    target = lm("llama")
    target.model.eval()
    before, plain = Snapshot(target.model), logits(target.model)
    gate = conditions_between(target, PROMPTS[:1], PROMPTS[1:4], [1])
    one, other = strong(target, positions="answer", condition=gate), vectors(target).patch(2.0)
    one.apply(target.model)
    other.apply(target.model)
    both = logits(target.model)
    file = save_patch(merge([one, other]), tmp_path / "both.safetensors")
    one.revert(target.model)
    other.revert(target.model)
    assert same_bits(logits(target.model), plain)
    loaded = load_patch(file)
    loaded.apply(target.model)
    assert same_bits(logits(target.model), both)
    loaded.revert(target.model)
    assert before.differences(target.model) == []
    assert loaded.info.method == "CAA"
    assert loaded.rows()[0]["adapter"] == "AddVector"


def test_files_of_former_versions_load(tmp_path: Path) -> None:
    target = lm("llama")
    file = save_patch(strong(target, positions="answer"), tmp_path / "new.safetensors")
    content = read_tensor_file(file, "easyedit", "a patch", "", PatchError)
    (described,) = content.header["data"]["adapters"].values()
    described[0][1] = {"answer_only": True}
    old = write_tensor_file(
        tmp_path / "old.safetensors", content.tensors, "easyedit", content.header
    )
    patch = load_patch(old)
    assert isinstance(patch, ModulePatch)
    ((adapter,),) = patch.adapters.values()
    assert adapter.settings() == {"positions": "answer", "strength": 1.0}


def test_an_edit_on_a_steered_model_is_that_of_its_bits() -> None:
    import outer

    editor = outer.editor("ROME")
    patch = strong(editor.lm)
    before = Snapshot(editor.lm.model)
    with applied(editor.lm.model, patch):
        result = editor.edit(outer.PROMPT, outer.TARGET, subject=outer.SUBJECT, verbose=False)
        editor.undo(result.patch)
    assert result.patch.info.method == "ROME"
    assert before.differences(editor.lm.model) == []


# -- the report -------------------------------------------------------------------------------


def test_the_report_has_its_controls_and_leaves_the_model_alone() -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    report = steering_report(
        target,
        vectors(target),
        contrast(),
        [0.0, 5.0],
        instruction="You can see.",
        prompts=PROMPTS[:1],
        text="We went home. You can see the river from here.",
        max_new_tokens=4,
        random_vectors=2,
    )
    names = [UNSTEERED, PROMPT_ONLY, RANDOM, STEERED, RANDOM, STEERED]
    assert [row.name for row in report.rows] == names
    base, _, _, nothing, noise, steered = report.rows
    assert (nothing.effect, nothing.perplexity) == (base.effect, base.perplexity)
    assert nothing.texts == base.texts
    assert steered.effect.value != noise.effect.value != base.effect.value
    document = report.to_json()
    assert document["rows"][1]["perplexity"] is None
    assert before.differences(target.model) == []


def test_the_cost_is_that_of_every_token_and_every_row() -> None:
    target = lm("llama")
    gate = conditions_between(target, PROMPTS[:1], PROMPTS[1:4], [1])
    wanted: dict[str, Any] = {"instruction": "You can see.", "random_vectors": 1}
    wanted["text"] = "We went home. You can see the river from here."
    reports = [
        steering_report(target, vectors(target), contrast(), [5.0], **wanted, **how)
        for how in ({}, {"positions": "after_prompt"}, {"condition": gate})
    ]
    costs = [[row.perplexity for row in report.named(STEERED)] for report in reports]
    assert costs[0] == costs[1] == costs[2]
    assert costs[0] != [reports[0].rows[0].perplexity]
    effects = [report.named(STEERED)[0].effect.value for report in reports]
    assert effects[0] != effects[1]


def test_only_pairs_are_scored_as_pairs(tmp_path: Path) -> None:
    target, plain = shared_lm("llama"), contrast()
    wanted: dict[str, Any] = {"instruction": "You", "random_vectors": 1, "text": "We went home."}
    rows = []
    for texts in (plain, plain.as_pairs()):
        report = steering_report(target, vectors(target), texts, [1.0], **wanted)
        assert report.to_json()["paired"] is texts.paired
        rows.append(report.rows[0])
    loose, pairs = rows
    assert loose.effect.value == pytest.approx(pairs.effect.value)
    assert (loose.effect.n, pairs.effect.n) == (8, 4)
    assert math.isnan(loose.preferred)
    assert math.isnan(loose.effect.low)
    assert 0 <= pairs.preferred <= 1
    halves = plain.as_pairs().split()
    assert [half.in_chat().paired for half in halves] == [True, True]
    assert not plain.split()[1].paired
    with pytest.raises(DataError, match="as many of each"):
        contrast_of(POSITIVE, NEGATIVE[:3]).as_pairs()


def test_effect_against_cost_is_drawn() -> None:
    pytest.importorskip("matplotlib")
    from easyeditor.bench.drawing import png
    from easyeditor.bench.steering_picture import strength_picture

    target = shared_lm("llama")
    how: dict[str, Any] = {"instruction": "You", "text": "We went home.", "random_vectors": 1}
    report = steering_report(target, vectors(target), contrast(), [1.0, 4.0], **how)
    assert png(strength_picture(report)).startswith(b"\x89PNG")
    one = steering_report(target, vectors(target), contrast(), [1.0], **how)
    with pytest.raises(DataError, match="several strengths"):
        strength_picture(one)


# -- files of llama.cpp -----------------------------------------------------------------------


def test_a_control_vector_has_the_names_llama_cpp_reads(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from easyeditor.export.control_vector import export_control_vector, import_control_vector

    target = lm("llama")
    target.model.eval()
    one = vectors(target, layers=[1, 2])
    patch = one.patch(3.0)
    export = export_control_vector(merge([patch, one.patch(1.0)]), tmp_path / "out")
    reader = gguf.GGUFReader(export.file)
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "llama"
    assert reader.get_field("controlvector.layer_count").contents() == 2
    tensors = {t.name: torch.tensor(t.data) for t in reader.tensors}
    assert set(tensors) == {"direction.1", "direction.2"}
    for layer in (1, 2):
        assert torch.allclose(tensors[f"direction.{layer}"], 4.0 * one.vectors[layer])
    again = import_control_vector(target, export.file)
    with applied(target.model, again):
        steered = logits(target.model)
    with applied(target.model, one.patch(4.0)):
        assert torch.allclose(steered, logits(target.model), atol=1e-5)
    with pytest.raises(ModelLoadError, match="No control vector"):
        import_control_vector(target, tmp_path / "none.gguf")
    with pytest.raises(PatchError, match="has 2 blocks of 32"):
        import_control_vector(lm("llama", num_hidden_layers=2), export.file)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"layers": [0]}, "added at block 0"),
        ({"module": "mlp"}, "which is no block's output"),
        ({"positions": "answer"}, "some tokens"),
        ({"condition": True}, "it has a condition"),
    ],
)
def test_what_llama_cpp_cannot_hold_is_refused(
    how: dict[str, Any], why: str, tmp_path: Path
) -> None:
    from easyeditor.export.control_vector import export_control_vector

    target = lm("llama")
    before = Snapshot(target.model)
    positions = how.pop("positions", "all")
    gate = (
        conditions_between(target, PROMPTS[:1], PROMPTS[1:2], [1])
        if how.pop("condition", 0)
        else None
    )
    patch = vectors(target, **how).patch(1.0, positions, gate)
    with pytest.raises(PatchError, match=why):
        export_control_vector(patch, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert before.differences(target.model) == []


# -- mistakes ---------------------------------------------------------------------------------


def test_mistakes_in_files(tmp_path: Path) -> None:
    empty, texts = tmp_path / "empty.txt", tmp_path / "texts.txt"
    empty.write_text("\n\n")
    texts.write_text("\n".join(POSITIVE))
    with pytest.raises(DataError, match="is empty; it holds one text per line"):
        read_contrast(texts, empty)
    with pytest.raises(DataError, match="cannot be read as a file of texts"):
        read_contrast(texts, tmp_path / "none.txt")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"question": "Rome is", "matching": "big", "not_matching": "small"}\n')
    assert read_pairs(pairs).negative[0].answer == "small"
    assert read_pairs(pairs).paired
    assert read_texts(pairs) == ["Rome is"]
    with pytest.raises(DataError, match=r"One of .* holds plain texts and the other records"):
        read_contrast(texts, pairs_with_answers(tmp_path))
    pairs.write_text('{"question": "Rome is", "matching": "big"}\n')
    with pytest.raises(DataError, match="line 1: it needs a text under 'negative'"):
        read_pairs(pairs)
    with pytest.raises(DataError, match="Pair 1 is the same text twice"):
        contrast_of(["a b"], ["a b"])
    with pytest.raises(DataError, match="needs two words at least"):
        contrast_of(["word"], ["other word", "third word"])
    with pytest.raises(DataError, match="no negative texts"):
        contrast_of(["a b"], [])


def pairs_with_answers(folder: Path) -> Path:
    file = folder / "answers.jsonl"
    file.write_text('{"prompt": "Rome is", "answer": "big"}\n')
    return file


@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"layers": [9]}, HyperParamsError, "the model has 3 layers"),
        ({"module": "head"}, HyperParamsError, "block, attention, mlp"),
        ({"read": "first"}, HyperParamsError, "answer or last"),
        ({"method": "pca"}, HyperParamsError, "'caa' \\(pairs\\) or 'mean'"),
    ],
)
def test_mistakes_in_settings(changes: dict[str, Any], error: type[Exception], why: str) -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    with pytest.raises(error, match=why):
        vectors(target, **changes)
    assert before.differences(target.model) == []


def test_more_mistakes_leave_the_model_alone() -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    uneven = contrast_of([*POSITIVE, "Paris is big"], NEGATIVE)
    with pytest.raises(DataError, match="5 positive and 4 negative texts"):
        contrast_vectors(target, uneven)
    assert contrast_vectors(target, uneven, method="mean").settings.positive == 5
    with pytest.raises(HyperParamsError, match="added at all, prompt, answer, after_prompt"):
        vectors(target).patch(1.0, "everywhere")
    with pytest.raises(HyperParamsError, match="strength"):
        vectors(target).patch(float("nan"))
    with pytest.raises(EditError, match="no direction between them"):
        contrast_vectors(target, Contrast(contrast().positive, contrast().positive))
    with pytest.raises(DataError, match="0 prompts"):
        prompt_vectors(target, [], "You")
    with pytest.raises(DataError, match="none of 'unless'"):
        conditions_between(target, PROMPTS, [], [1])
    with pytest.raises(EditError, match="no condition tells them apart"):
        conditions_between(target, PROMPTS[:1], PROMPTS[:1], [1])
    with pytest.raises(DataError, match="needs a strength, an instruction"):
        steering_report(target, vectors(target), contrast(), [], instruction="")
    other = lm("llama", num_hidden_layers=2)
    with pytest.raises(PatchMismatchError):
        steering_report(other, vectors(target), contrast(), [1.0], instruction="You")
    assert before.differences(target.model) == []


def test_a_model_without_the_part_is_refused() -> None:
    target = lm("mamba")
    before = Snapshot(target.model)
    with pytest.raises(UnsupportedModelError, match="no attention"):
        vectors(target, module="attention")
    assert before.differences(target.model) == []


# -- served, and from real weights ------------------------------------------------------------


def test_a_served_model_is_steered_under_a_name_of_its_own() -> None:
    from easyeditor.serving.names import ServedModels

    target = lm("llama")
    patch = strong(target, positions="answer")
    served = ServedModels(target, patches={"glad": patch})
    base, steered = (served.get(name).lm for name in (served.base, f"{served.base}+glad"))
    plain = said(base, PROMPTS)
    with applied(target.model, patch):
        expected = said(target, PROMPTS)
    assert said(steered, PROMPTS) == expected != plain
    assert plain == said(target, PROMPTS)


@pytest.mark.slow
@pytest.mark.real
def test_a_mood_is_steered_on_the_embedded_model() -> None:
    import outer
    from easyeditor import load

    texts = outer.ROOT / "benchmarks" / "steering"
    mood = read_contrast(texts / "mood-positive.txt", texts / "mood-negative.txt")
    training, held_out = mood.as_pairs().split()
    target = load("smollm2-135m", device="cpu")
    report = steering_report(
        target,
        contrast_vectors(target, training),
        held_out,
        [-0.5, 0.5, 1.0],
        instruction="Everything is great.",
        random_vectors=2,
    )
    base = report.rows[0]
    away, half, whole = (row.effect.value for row in report.named(STEERED))
    assert away < base.effect.value < half < whole
    for row, noise in zip(report.named(STEERED)[1:], report.named(RANDOM)[1:], strict=True):
        assert row.effect.low > noise.effect.high
        assert row.perplexity <= 1.2 * base.perplexity
