"""A direction taken out of a model: the weights are the hooks, and undo is exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from easyeditor import LM, load_patch, save_patch
from easyeditor.errors import (
    DataError,
    EditError,
    HyperParamsError,
    PatchFormatError,
    UnsupportedModelError,
)
from easyeditor.patches.ablation import Ablate
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.stack import applied
from easyeditor.steering.ablating import ablation_hooks, ablation_weights
from easyeditor.steering.refusal import (
    all_applied,
    refusal_direction,
    refusal_score,
)
from easyeditor.steering.refusal_report import refusal_report
from easyeditor.tensor_file import read_tensor_file, write_tensor_file
from scripting import document, refused
from support import Snapshot, lm, logits, same_bits
from test_steering import block_states
from tiers import tiered

FAMILIES = [
    *("llama", "gpt2", "opt", "bloom", "gemma2", "mistral", "gptj", "gpt_neox", "falcon", "phi"),
    *("olmo2", "granite", "qwen3", "cohere"),
]
FAST = ("llama", "gemma2")
HARMFUL = [f"{name} is in Rome" for name in ("Paris", "Italy", "Germany", "Berlin", "Anna", "She")]
HARMLESS = [
    f"{name} can see the river" for name in ("Paris", "Italy", "You", "Berlin", "Anna", "I")
]


def direction_of(target: LM, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(target.model.config.get_text_config().hidden_size, generator=draw)


def stirred(family: str) -> LM:
    """A tiny model with biases and norms that are not 0 and 1."""
    target = lm(family)
    target.model.eval()
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in target.model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=draw)
    return target


@pytest.mark.parametrize("family", tiered(FAMILIES, FAST))
def test_the_weights_are_the_hooks(family: str) -> None:
    target = stirred(family)
    before, plain = Snapshot(target.model), logits(target.model)
    direction = direction_of(target)
    with applied(target.model, ablation_hooks(target, direction)):
        by_hooks = logits(target.model)
    ablation = ablation_weights(target, direction)
    with all_applied(target, ablation.patches):
        in_weights = logits(target.model)
    assert (in_weights - by_hooks).abs().max() < 1e-4
    assert (by_hooks - plain).abs().max() > 1e-3
    assert same_bits(logits(target.model), plain)
    assert before.differences(target.model) == []


@pytest.mark.parametrize(
    ("family", "tied", "activations"),
    [
        ("llama", False, []),
        ("llama", True, ["model.embed_tokens"]),
        ("gpt2", True, ["transformer.wte"]),
    ],
)
def test_a_tied_embedding_is_left_alone(family: str, tied: bool, activations: list[str]) -> None:
    target = lm(family, tie_word_embeddings=tied)
    ablation = ablation_weights(target, direction_of(target))
    assert ablation.weights is not None
    changed = set(ablation.weights.entries)
    embedding = next(
        n
        for n, p in target.model.named_parameters()
        if p is target.model.get_input_embeddings().weight
    )
    assert (embedding in changed) is not tied
    rest = [] if ablation.activations is None else list(ablation.activations.adapters)
    assert rest == activations
    if family == "gpt2":
        assert {"transformer.wpe.weight", "transformer.h.0.mlp.c_proj.bias"} <= changed
    assert all(row["rank"] == 1 for row in ablation.weights.rows())


def test_norms_behind_the_sublayers_are_changed_by_adapters() -> None:
    ablation = ablation_weights(lm("gemma2"), direction_of(lm("gemma2")))
    assert ablation.weights is None
    assert ablation.activations is not None
    assert "model.layers.0.post_feedforward_layernorm" in ablation.activations.adapters


def test_saved_and_loaded(tmp_path: Path) -> None:
    target = stirred("llama")
    before = Snapshot(target.model)
    patch = ablation_hooks(target, direction_of(target))
    with applied(target.model, patch):
        expected = logits(target.model)
    file = save_patch(patch, tmp_path / "hooks.safetensors")
    loaded = load_patch(file)
    with applied(target.model, loaded):
        assert same_bits(logits(target.model), expected)
    assert before.differences(target.model) == []
    content = read_tensor_file(file, "easyedit", "a patch", "", PatchFormatError)
    longer = {name: 2 * tensor for name, tensor in content.tensors.items()}
    write_tensor_file(file, longer, "easyedit", content.header)
    with pytest.raises(PatchFormatError, match="a direction of length 2, not 1"):
        load_patch(file)


def test_the_score_is_the_log_odds_of_a_refusal() -> None:
    log_p = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2]]).log()
    expected = (torch.tensor([0.75, 0.8]).logit()).mean()
    assert refusal_score(log_p, [0, 1]) == pytest.approx(float(expected))


def test_a_direction_that_is_known_by_construction_is_found() -> None:
    target = stirred("llama")
    before = Snapshot(target.model)
    result = refusal_direction(
        target, HARMFUL, HARMLESS, refusals=["Rome"], layers=[0, 1], tokens=1
    )
    assert [(c.token, c.layer) for c in result.candidates] == [(-1, 0), (-1, 1)]
    states = [
        torch.stack(
            [
                block_states(target, target.text.row(prompt).ids, result.chosen.layer)[-1]
                for i, prompt in enumerate(kind)
                if i % 3 != 2
            ]
        ).mean(0)
        for kind in (HARMFUL, HARMLESS)
    ]
    assert torch.allclose(result.vector, states[0] - states[1], atol=1e-5)
    assert result.chosen == min(
        [c for c in result.candidates if c.eligible] or result.candidates, key=lambda c: c.ablated
    )
    report = refusal_report(
        target, result, HARMFUL, HARMLESS, refusals=["Rome"], text="We went home.", max_new_tokens=3
    )
    assert [row.name for row in report.rows][:2] == ["unedited", "direction ablated"]
    assert report.difference < 1e-4
    assert report.rows[0].kl == 0
    assert report.to_json()["rows"][3]["name"] == "direction added"
    assert before.differences(target.model) == []


def test_what_cannot_be_done_is_refused() -> None:
    target = lm("llama")
    before = Snapshot(target.model)
    good = direction_of(target)
    for wrong in (good[:-1], good * 0, good * float("nan")):
        with pytest.raises(HyperParamsError, match="the residual stream of"):
            ablation_weights(target, wrong)
    with pytest.raises(DataError, match="3 harmful and harmless prompts at least"):
        refusal_direction(target, HARMFUL[:2], HARMLESS)
    with pytest.raises(HyperParamsError, match=r"read below 0.8 of the depth; give 0 to 4"):
        refusal_direction(lm("llama", num_hidden_layers=6), HARMFUL, HARMLESS, layers=[-1])
    with pytest.raises(HyperParamsError, match="the shortest prompt has"):
        refusal_direction(target, HARMFUL, HARMLESS, tokens=50)
    with pytest.raises(EditError, match="the same activations"):
        refusal_direction(target, HARMFUL, HARMFUL, tokens=1)
    with pytest.raises(DataError, match="must hold a word"):
        refusal_direction(target, HARMFUL, HARMLESS, refusals=["Rome", " "], tokens=1)
    with pytest.raises(DataError, match="prompts of both kinds"):
        refusal_report(target, None, [], HARMLESS)  # type: ignore[arg-type]
    assert before.differences(target.model) == []
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        ablation_hooks(lm("t5"), good)
    experts = lm("mixtral")
    with pytest.raises(UnsupportedModelError, match="writes into its residual stream elsewhere"):
        ablation_weights(experts, direction_of(experts))
    with pytest.raises(ValueError, match="a direction of"):
        Ablate(torch.ones(2, 2))


def test_an_empty_refusal_is_refused_before_loading(easyedit, tmp_path):
    prompts = tmp_path / "p.txt"
    prompts.write_text("\n".join(HARMFUL))
    words = ("refusal", "--harmful", prompts, "--harmless", prompts, "--refusal", "")
    assert "a text is empty" in refused(easyedit(*words, "--model", tmp_path / "none"))


@pytest.mark.slow
def test_from_the_command_line(easyedit, folder, tmp_path):
    for name, prompts in (("bad", HARMFUL), ("good", HARMLESS)):
        (tmp_path / f"{name}.txt").write_text("\n".join(prompts))
    words = ("refusal", "--harmful", tmp_path / "bad.txt", "--harmless", tmp_path / "good.txt")
    words += ("--model", folder, "--layer", "1", "--tokens", "1", "--refusal", "Rome", "--plain")
    file = tmp_path / "r.safetensors"
    result = document(easyedit(*words, "--as", "hooks", "--save", file, "--json"))
    assert result["patches"] == [str(file)]
    assert result["weights_and_hooks_differ_by"] < 1e-4
    assert [row["name"] for row in result["rows"]][2] == "random direction ablated"
    assert isinstance(load_patch(file), ModulePatch)
    (tmp_path / "bad.txt").write_text("one\n")
    assert "holds 1 prompts; give 4 at least" in refused(easyedit(*words))
