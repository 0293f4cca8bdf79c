"""The family table fits every model, and structure alone leads to the same rows."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel
from transformers.pytorch_utils import Conv1D

import tiny
from easyeditor import LM, load
from easyeditor.errors import EasyEditError, HyperParamsError, MetaDeviceError, UnknownFamilyError
from easyeditor.lm import FAMILIES, BlockStack, Family, discover, family_of
from easyeditor.lm.inference import score
from easyeditor.methods.ft import FT, FTHyperParams
from support import EDITS, lm, logits, projected, same_bits, shared_lm


def widths(module: nn.Module) -> tuple[int, int]:
    """``(d_in, d_out)`` of a projection."""
    shape = tuple(module.weight.shape)
    return shape if isinstance(module, Conv1D) else shape[::-1]


def test_every_row_is_tried_and_every_tiny_model_has_one() -> None:
    assert set(FAMILIES) == {*tiny.CONFIGS, "mamba2"}


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_the_paths_of_a_row_exist_and_fit(name: str) -> None:
    model, row = tiny.model(name), FAMILIES[name]
    assert family_of(model) == row
    assert model.get_submodule(row.head) is model.get_output_embeddings()
    for stack in filter(None, (row.decoder, row.encoder)):
        assert "norm" in type(model.get_submodule(stack.final_norm)).__name__.lower()
        blocks = model.get_submodule(stack.blocks)
        assert len(blocks) == 3
        for block in blocks:
            down, out = block.get_submodule(stack.down), block.get_submodule(stack.attn_out)
            assert isinstance(down, Conv1D) == row.conv1d
            assert down in set(block.get_submodule(stack.mlp).modules())
            assert widths(down)[1] == widths(out)[1] == 32
            assert widths(down)[0] in {64, 128}
            for up in stack.up:
                d_in, d_out = widths(block.get_submodule(up))
                assert (d_in, d_out % widths(down)[0]) == (32, 0)


@pytest.mark.parametrize("name", [*tiny.CAUSAL, "codegen", "xglm", "glm"])
def test_the_projection_is_the_map_the_model_computes(name: str) -> None:
    target = shared_lm(name)
    projection = target.projection(1)
    key, value = projected(target, 1, EDITS[0])
    bias = getattr(projection.module, "bias", None)
    computed = key @ projection.weight + (0 if bias is None else bias.detach())
    assert projection.weight.shape == (projection.d_in, projection.d_out)
    assert dict(target.model.named_parameters())[projection.path] is projection.parameter
    torch.testing.assert_close(value, computed, rtol=1e-5, atol=1e-5)


def test_t5_has_two_columns_and_a_gated_one_two_inputs() -> None:
    paths = [p.path for p in shared_lm("t5").projections(1)]
    assert paths == [
        "encoder.block.1.layer.1.DenseReluDense.wo.weight",
        "decoder.block.1.layer.2.DenseReluDense.wo.weight",
    ]
    deeper = lm("t5", num_layers=4, num_decoder_layers=2)
    assert [len(deeper.projections(layer)) for layer in range(4)] == [2, 2, 1, 1]
    gated = tiny.model("t5", feed_forward_proj="gated-gelu")
    row = family_of(gated)
    for stack in (row.encoder, row.decoder):
        block = gated.get_submodule(stack.blocks)[0]
        assert len(stack.up) == 2
        assert [widths(block.get_submodule(up)) for up in stack.up] == [(32, 64)] * 2


# -- by structure --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.CAUSAL)
def test_structure_leads_to_the_row_of_the_table(name: str) -> None:
    assert discover(tiny.model(name)) == FAMILIES[name]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom"])
@pytest.mark.parametrize("layers", [1, 5])
def test_structure_is_found_at_any_depth(name: str, layers: int) -> None:
    depth = "num_hidden_layers" if name in {"llama", "opt"} else "n_layer"
    assert discover(tiny.model(name, **{depth: layers})) == FAMILIES[name]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "phi3", "gptj"])
def test_an_mlp_as_wide_as_the_model_is_never_mistaken(name: str) -> None:
    wide = {"gpt2": "n_inner", "gptj": "n_inner", "opt": "ffn_dim"}.get(name, "intermediate_size")
    try:  # every matrix is square: it may give up, it may not guess
        found = discover(tiny.model(name, **{wide: 32}))
    except UnknownFamilyError:
        found = FAMILIES[name]
    assert found == FAMILIES[name]


LLAMA = FAMILIES["llama"].decoder
FOUND = {
    "codegen": replace(FAMILIES["gptj"].decoder, attn_in=("attn.qkv_proj",)),
    "olmo3": LLAMA,
    "glm": replace(LLAMA, up=("mlp.gate_up_proj",)),
    "glm4": replace(LLAMA, up=("mlp.gate_up_proj",)),
    "arcee": replace(LLAMA, up=("mlp.up_proj",)),
    "apertus": replace(LLAMA, up=("mlp.up_proj",)),
    **dict.fromkeys(("cohere2", "exaone4", "ernie4_5", "seed_oss", "helium"), LLAMA),
    "hunyuan_v1_dense": LLAMA,
    "nemotron": replace(LLAMA, up=("mlp.up_proj",)),
    "gpt_bigcode": FAMILIES["gpt2"].decoder,
    "xglm": BlockStack(
        "model.layers",
        "",
        "fc2",
        ("fc1",),
        "self_attn.out_proj",
        "model.layer_norm",
        tuple(f"self_attn.{letter}_proj" for letter in "kvq"),
    ),
}
FOUND["lfm2"] = BlockStack(
    "model.layers",
    "feed_forward",
    "feed_forward.w2",
    ("feed_forward.w1", "feed_forward.w3"),
    "conv.out_proj",
    "model.embedding_norm",
    ("conv.in_proj",),
)
FOUND["lfm2"] = replace(
    FOUND["lfm2"],
    differing={
        1: replace(
            FOUND["lfm2"],
            attn_out="self_attn.out_proj",
            attn_in=tuple(f"self_attn.{letter}_proj" for letter in "qkv"),
        )
    },
)


@pytest.mark.parametrize("name", FOUND)
def test_an_unlisted_architecture_is_found_and_logged(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        row = family_of(tiny.model(name))
    assert row == Family(name, FOUND[name])
    assert repr(name) in caplog.text
    assert row.decoder.down in caplog.text


@pytest.mark.parametrize("name", ["bart"])
def test_what_is_not_understood_is_an_error_that_prints_the_row(name: str) -> None:
    with pytest.raises(UnknownFamilyError) as caught:
        family_of(tiny.model(name))
    message = str(caught.value)
    assert isinstance(caught.value, LookupError)
    assert isinstance(caught.value, EasyEditError)
    row = message[message.index("Family(") :]
    assert eval(row, {"Family": Family, "BlockStack": BlockStack}).name == name


def test_a_model_without_a_head_is_an_error() -> None:
    config = BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    with pytest.raises(UnknownFamilyError, match="no output embedding"):
        discover(BertModel(config))


# -- text with images ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.VISION)
def test_the_text_column_is_found_beside_a_deeper_vision_tower(name: str) -> None:
    model = tiny.vision_model(name)
    row = discover(model)
    assert "vision" not in row.decoder.blocks
    assert "visual" not in row.decoder.blocks
    assert len(model.get_submodule(row.decoder.blocks)) == 3
    assert model.get_submodule(row.head) is model.get_output_embeddings()
    assert row.decoder.blocks.startswith(row.decoder.final_norm.rpartition(".")[0])
    assert row.decoder.differing == {}


@pytest.mark.parametrize("name", ["gemma3", "qwen2_5_vl", "mistral3"])
def test_a_model_with_images_is_loaded_scored_and_edited(name: str, tmp_path: Path) -> None:
    model = tiny.vision_model(name)
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    target = load(str(tmp_path))
    assert type(target.model) is type(model)
    pair = (EDITS[1].prompt, "Rome")
    assert score(target, [pair]) == score(LM(model, tiny.tokenizer()), [pair])
    assert target.context_length == 128
    outcome = FT(FTHyperParams(layers=[1], num_steps=1)).edit(target, [EDITS[1]])
    (path,) = getattr(outcome, "patch", outcome).entries
    assert path == f"{target.family.decoder.blocks}.1.mlp.down_proj.weight"


def test_two_columns_of_one_depth_are_refused() -> None:
    model = tiny.model("llama")
    model.model.others = copy.deepcopy(model.model.layers)
    with pytest.raises(UnknownFamilyError, match=r"model\.layers and model\.others are lists of 3"):
        discover(model)


# -- classic module names ------------------------------------------------------------------------

GPT2 = {
    "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj",
    "layer_module_tmp": "transformer.h.{}",
    "mlp_module_tmp": "transformer.h.{}.mlp",
    "attn_module_tmp": "transformer.h.{}.attn",
    "ln_f_module": "transformer.ln_f",
    "lm_head_module": "transformer.wte",  # the embedding is the head: gpt2-xl's own files say so
}
CLAIMS = {
    "gpt2": GPT2,
    "gptj": {
        **GPT2,
        "rewrite_module_tmp": "transformer.h.{}.mlp.fc_out",
        "lm_head_module": "lm_head",
    },
    "gpt_neo": GPT2,
    "llama": {
        "rewrite_module_tmp": "model.layers.{}.mlp.down_proj",
        "layer_module_tmp": "model.layers.{}",
        "mlp_module_tmp": "model.layers.{}.mlp",
        "attn_module_tmp": "model.layers.{}.self_attn",
        "ln_f_module": "model.norm",
        "lm_head_module": "lm_head",
    },
}


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name, claims in CLAIMS.items() for key in claims]
)
def test_classic_module_names_are_recognised(name: str, key: str) -> None:
    shared_lm(name).check_claims({key: CLAIMS[name][key]})


def test_an_untied_head_is_not_the_embedding() -> None:
    untied = lm("gpt2", tie_word_embeddings=False)
    untied.check_claims({"lm_head_module": "lm_head"})
    with pytest.raises(HyperParamsError):
        untied.check_claims({"lm_head_module": "transformer.wte"})


@pytest.mark.parametrize("key", GPT2)
def test_module_names_of_another_model_are_refused(key: str) -> None:
    with pytest.raises(HyperParamsError, match=f"{key}='transformer.nowhere'"):
        shared_lm("llama").check_claims({key: "transformer.nowhere"})


def test_all_wrong_names_are_listed_at_once() -> None:
    wrong = {key: name for key, name in GPT2.items() if key != "lm_head_module"}
    with pytest.raises(HyperParamsError) as caught:
        shared_lm("llama").check_claims(wrong)
    assert all(f"{key}={name!r}" in str(caught.value) for key, name in wrong.items())


# -- what an LM promises -------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False])
def test_weights_that_are_not_in_memory_are_refused(whole: bool) -> None:
    model = tiny.model("llama")
    (model if whole else model.get_submodule("model.layers.1.mlp")).to("meta")
    with pytest.raises(MetaDeviceError, match=r"meta device.*device_map") as caught:
        LM(model, tiny.tokenizer())
    assert isinstance(caught.value, RuntimeError)


def test_an_lm_holds_the_callers_model_and_leaves_it_alone() -> None:
    model = tiny.model("llama")
    before, said = copy.deepcopy(model.state_dict()), logits(model)
    target = LM(model, tiny.tokenizer())
    assert target.model is model
    assert target.blocks is model.model.layers
    assert (target.n_layers, target.head) == (3, model.lm_head)
    assert all(same_bits(before[name], now) for name, now in model.state_dict().items())
    assert same_bits(logits(model), said)
