"""Mixtures of experts, recurrent models and hybrids: where their parts are, and what edits them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from easyeditor import LM, BaseEditor, Edit
from easyeditor.associative.keys import keys_at, subject_rows, values_at, write_scale
from easyeditor.errors import HyperParamsError, UnknownFamilyError, UnsupportedModelError
from easyeditor.lm import discover
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.inference import generate, score
from easyeditor.methods.ft import FT, FTHyperParams
from easyeditor.methods.ike.ike import IKEHyperParams
from easyeditor.methods.kn import KN, KNHyperParams
from easyeditor.methods.mend.mend import MEND, MENDHyperParams
from easyeditor.methods.rome import ROME, ROMEHyperParams
from easyeditor.patches.files import load_patch, save_patch
from easyeditor.patches.stack import pop, push
from mending import stirred
from support import EDITS, Interrupt, Snapshot, failing_at, lm, same_bits, shared_lm

# Per family and layer: the down-projection of every token, or the routed experts' fused ones.
SHARED = "mlp.shared_expert.down_proj"
ROUTED = "mlp.experts.down_proj"
DOWN: dict[str, tuple[str, str, str]] = {
    "mixtral": (ROUTED,) * 3,
    "qwen2_moe": (SHARED,) * 3,
    "qwen3_moe": (ROUTED,) * 3,
    "olmoe": (ROUTED,) * 3,
    "granitemoe": ("block_sparse_moe.experts.down_proj",) * 3,
    "gpt_oss": (ROUTED,) * 3,
    "deepseek_v3": ("mlp.down_proj", *("mlp.shared_experts.down_proj",) * 2),
    "llama4_text": (
        "feed_forward.down_proj",
        "feed_forward.shared_expert.down_proj",
        "feed_forward.down_proj",
    ),
    "minimax": (ROUTED,) * 3,
    "qwen3_next": (SHARED,) * 3,
    "jamba": (
        "feed_forward.down_proj",
        "feed_forward.experts.down_proj",
        "feed_forward.down_proj",
    ),
    "mamba": ("mixer.out_proj",) * 3,
    "mamba2": ("mixer.out_proj",) * 3,
    "recurrent_gemma": ("mlp_block.down_proj",) * 3,
}
EDIT = EDITS[1]
every_family = pytest.mark.parametrize("name", tiny.MIXED)


def is_routed(name: str, layer: int) -> bool:
    return ".experts." in DOWN[name][layer]


def edited(target: LM, method: object, edit: Edit = EDIT):
    outcome = method.edit(target, [edit])
    return getattr(outcome, "patch", outcome)


def ft(**changes: object) -> FT:
    settings = {"layers": [1], "num_steps": 2, "objective_optimization": "target_new", **changes}
    return FT(FTHyperParams(**settings))


def rome(layer: int) -> ROME:
    quick = {"v_num_grad_steps": 2, "context_template_length_params": [[3, 1]]}
    return ROME(ROMEHyperParams(layers=[layer], mom2_adjustment=False, **quick))


# -- structure -----------------------------------------------------------------------------------


@every_family
def test_every_layer_names_what_writes_the_mlps_output(name: str) -> None:
    target = shared_lm(name)
    blocks = target.family.decoder.blocks
    for layer in range(target.n_layers):
        paths = target.family.decoder.at(layer)
        path = f"{blocks}.{layer}.{DOWN[name][layer]}"
        assert (paths.down or paths.expert_down) == DOWN[name][layer]
        (weight,) = target.weights([layer])
        assert weight.path.removesuffix(".weight") == path
        if is_routed(name, layer):
            assert len(weight.shape) == 3
            with pytest.raises(UnsupportedModelError, match=rf"Block {layer} .*routes every token"):
                target.projection(layer)
        else:
            assert target.projection(layer).d_out == 32
    routed = [layer for layer in range(3) if is_routed(name, layer)]
    assert target.layers_with_down == tuple(i for i in range(3) if i not in routed)


@every_family
def test_attention_and_mixers_are_named(name: str) -> None:
    target = shared_lm(name)
    for layer, block in enumerate(target.blocks):
        paths = target.family.decoder.at(layer)
        if name.startswith("mamba"):
            continue  # the mixer stands for the MLP
        assert block.get_submodule(paths.attn_out).out_features == 32
        assert all(block.get_submodule(path).in_features == 32 for path in paths.attn_in)
        assert paths.attn_in
        assert not {paths.down, paths.attn_out, *paths.attn_in} & set(paths.up)


def test_a_memory_per_expert_in_a_list_is_routed_too() -> None:
    model = tiny.model("llama")
    for block in model.model.layers:
        experts = [block.mlp.__class__(model.config) for _ in range(2)]
        block.mlp.experts = torch.nn.ModuleList(experts)
        del block.mlp.down_proj, block.mlp.up_proj, block.mlp.gate_proj
    row = discover(model).decoder
    assert (row.down, row.expert_down) == ("", "mlp.experts.{}.down_proj")


# -- scoring and generation ----------------------------------------------------------------------


@every_family
def test_a_batch_says_what_each_row_says_alone(name: str) -> None:
    target = shared_lm(name)
    pairs = [(edit.prompt, "Rome") for edit in EDITS] + [(EDITS[0].prompt, "Paris river")]
    alone = [score(target, [pair])[0].logprobs for pair in pairs]
    together = [scores.logprobs for scores in score(target, pairs)]
    for a, b in zip(alone, together, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    prompts = [edit.prompt for edit in EDITS]
    assert generate(target, prompts, 5) == [generate(target, [p], 5)[0] for p in prompts]


def test_an_unknown_architecture_is_scored_and_continued() -> None:
    target = lm("bart")
    assert target.encoder_decoder
    assert len(score(target, [(EDIT.prompt, "Rome")])[0].logprobs) > 0
    assert len(generate(target, [EDIT.prompt], 3)) == 1
    before = Snapshot(target.model)
    with pytest.raises(UnknownFamilyError, match="change no weight work all the same"):
        edited(target, rome(1))
    assert before.differences(target.model) == []


@pytest.mark.parametrize("name", ["bart", "mixtral", "mamba"])
def test_a_method_that_changes_no_weight_needs_no_row(name: str) -> None:
    model = tiny.model(name)
    before = Snapshot(model)
    settings = IKEHyperParams(use_icl_examples=False)
    editor = BaseEditor.from_pretrained(model, tiny.tokenizer(), settings)
    metrics, _, patch = editor.edit(
        prompts=[EDIT.prompt.text], target_new=[EDIT.target], keep_original_weight=True
    )
    assert len(metrics) == 1
    assert patch.info.method == "IKE"
    assert before.differences(model) == []


# -- edits ---------------------------------------------------------------------------------------


@every_family
def test_fine_tuning_keeps_the_contract(name: str, tmp_path: Path) -> None:
    target = lm(name)
    before, said = Snapshot(target.model), score(target, [(EDIT.prompt, "Rome")])
    patch = edited(target, ft())
    assert before.differences(target.model) == []
    push(target.model, patch)
    with_patch = score(target, [(EDIT.prompt, "Rome")])
    changed = dict(target.model.named_parameters())[next(iter(patch.entries))].detach().clone()
    assert with_patch != said
    pop(target.model, patch)
    assert before.differences(target.model) == []
    save_patch(patch, tmp_path / "edit.safetensors")
    again = load_patch(tmp_path / "edit.safetensors")
    push(target.model, again)
    assert same_bits(dict(target.model.named_parameters())[next(iter(again.entries))], changed)
    pop(target.model, again)
    assert before.differences(target.model) == []


@pytest.mark.parametrize(("name", "layer"), [(name, layer) for name in DOWN for layer in (0, 1)])
def test_rank_one_edits_keep_the_contract(name: str, layer: int, tmp_path: Path) -> None:
    target = lm(name)
    before = Snapshot(target.model)
    patch = edited(target, rome(layer))
    assert before.differences(target.model) == []
    path = target.down_map(layer).path
    assert list(patch.entries) == [path]
    push(target.model, patch)
    assert path in before.differences(target.model)
    changed = dict(target.model.named_parameters())[path].detach().clone()
    pop(target.model, patch)
    assert before.differences(target.model) == []
    save_patch(patch, tmp_path / "edit.safetensors")
    again = load_patch(tmp_path / "edit.safetensors")
    push(target.model, again)
    assert same_bits(dict(target.model.named_parameters())[path], changed)
    pop(target.model, again)
    assert before.differences(target.model) == []


ALL_ROUTED = [name for name in DOWN if is_routed(name, 1)]


@pytest.mark.parametrize("name", ALL_ROUTED)
def test_routed_experts_are_one_linear_map_of_a_sparse_key(name: str) -> None:
    target, layer = shared_lm(name), 1
    experts = target.down_map(layer)
    rows = subject_rows(target, EDIT, ["", "Therefore we went home. "])
    keys = keys_at(target, [layer], rows)[layer]
    values = values_at(target, Site(layer, "down"), rows)
    torch.testing.assert_close(keys @ experts.weight.float(), values, rtol=1e-5, atol=1e-6)
    used = keys.view(2, experts.experts, -1).abs().amax(-1) > 0
    assert used.sum(1).tolist() == [target.model.config.num_experts_per_tok] * 2


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_an_edit_writes_into_the_experts_the_subject_is_routed_to(name: str) -> None:
    target, layer = lm(name), 1
    patch = edited(target, rome(layer))
    (part,) = patch.entries[target.down_map(layer).path]
    rows = subject_rows(target, EDIT, [""])
    keys = keys_at(target, [layer], rows)[layer].view(target.down_map(layer).experts, -1)
    routed = set((keys.abs().amax(1) > 0).nonzero()[:, 0].tolist())
    assert routed <= set(part.index.tolist())
    site = Site(layer, "down")
    before = values_at(target, site, rows)
    push(target.model, patch)
    assert not torch.equal(values_at(target, site, rows), before)


@pytest.mark.parametrize("name", ALL_ROUTED)
def test_second_moments_of_routed_experts_are_refused(name: str) -> None:
    target = lm(name)
    before = Snapshot(target.model)
    settings = ROMEHyperParams(
        layers=[1], v_num_grad_steps=1, context_template_length_params=[[3, 1]]
    )
    with pytest.raises(UnsupportedModelError, match=r"mom2_adjustment=False.*Fine-tuning can"):
        edited(target, ROME(settings))
    assert before.differences(target.model) == []


def test_what_a_token_gates_cannot_be_written_at_the_blocks_output() -> None:
    assert write_scale(lm("qwen2_moe"), 1) is None
    assert write_scale(lm("mixtral"), 1) == pytest.approx(1, abs=1e-4)
    assert write_scale(lm("deepseek_v3"), 1) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "deepseek_v3", "jamba", "mamba"])
def test_a_failing_edit_leaves_the_model_as_it_was(name: str) -> None:
    target = lm(name)
    failing_at(target.head, 2)
    before = Snapshot(target.model)
    with pytest.raises(Interrupt):
        edited(target, ft())
    assert before.differences(target.model) == []


def test_fine_tuning_takes_any_weights_by_name() -> None:
    target = lm("qwen3_next")
    names = ["model.layers.{}.mlp.experts.down_proj", "model.layers.1.self_attn.o_proj"]
    patch = edited(target, ft(modules=names, layers=[0, 1]))
    assert list(patch.entries) == [
        "model.layers.0.mlp.experts.down_proj",
        "model.layers.1.mlp.experts.down_proj",
        "model.layers.1.self_attn.o_proj.weight",
    ]
    with pytest.raises(HyperParamsError, match=r"no weight named.*o_prj'.*Did you mean"):
        edited(target, ft(modules=["model.layers.1.self_attn.o_prj"]))


@pytest.mark.parametrize(
    ("name", "layers"), [("deepseek_v3", [0, 1, 2]), ("qwen2_moe", [0, 1, 2]), ("jamba", [0, 2])]
)
def test_knowledge_neurons_are_those_of_mlps_that_every_token_runs_through(
    name: str, layers: list[int]
) -> None:
    target = lm(name)
    before = Snapshot(target.model)
    patch = edited(target, KN(KNHyperParams(steps=3, layers=layers)))
    assert before.differences(target.model) == []
    assert patch.entries.keys() <= {target.projection(layer).path for layer in layers}
    patch.apply(target.model)
    assert before.differences(target.model) != []
    patch.revert(target.model)
    assert before.differences(target.model) == []


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen2_moe"])
def test_networks_learn_beside_a_mixture(name: str, tmp_path: Path) -> None:
    target = lm(name)
    before = Snapshot(target.model)
    archive = stirred(target).save(tmp_path)
    patch = edited(target, MEND(MENDHyperParams(archive=str(archive))))
    assert before.differences(target.model) == []
    patch.apply(target.model)
    assert before.differences(target.model) != []
    patch.revert(target.model)
    assert before.differences(target.model) == []


def test_a_mixture_without_such_mlps_is_refused_by_both() -> None:
    target = lm("mixtral")
    before = Snapshot(target.model)
    with pytest.raises(UnsupportedModelError, match="routes every token"):
        edited(target, KN(KNHyperParams(steps=3)))
    with pytest.raises(UnsupportedModelError, match="routes every token"):
        stirred(target)
    assert before.differences(target.model) == []
