"""MEND: which weights it edits, classic files and presets."""

from __future__ import annotations

import logging

import pytest
import yaml

from easyeditor import MENDHyperParams, MENDTrainingHparams
from easyeditor.errors import HyperParamsError
from easyeditor.hyperparams import FAMILY_KEYS
from easyeditor.methods.mend.learner import MENDLearner
from easyeditor.methods.mend.mend import MEND
from easyeditor.methods.mend.settings import sites_of
from mending import stirred
from support import EDITS, lm

# -- which weights ----------------------------------------------------------------------------

DOWN = "transformer.h.2.mlp.c_proj.weight"


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("gpt2", ["transformer.h.{}.mlp.c_fc", "transformer.h.{}.mlp.c_proj"]),
        ("llama", [f"model.layers.{{}}.mlp.{n}_proj" for n in ("gate", "up", "down")]),
        ("opt", ["model.decoder.layers.{}.fc1", "model.decoder.layers.{}.fc2"]),
    ],
)
def test_the_last_three_blocks_are_edited(family, names):
    changes = {"n_layer": 5} if family == "gpt2" else {"num_hidden_layers": 5}
    paths = [site.path for site in sites_of(lm(family, **changes), (-3, -2, -1), ())]
    assert paths == [f"{name.format(i)}.weight" for i in (2, 3, 4) for name in names]


def test_t5_has_the_last_two_blocks_of_each_column_edited():
    target = lm("t5", num_layers=4, num_decoder_layers=3)
    paths = [site.path for site in sites_of(target, (-3, -2, -1), ())]
    assert paths == [
        f"{side}.block.{i}.layer.{at}.DenseReluDense.{name}.weight"
        for side, at, blocks in (("encoder", 1, (2, 3)), ("decoder", 2, (1, 2)))
        for i in blocks
        for name in ("wi", "wo")
    ]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("transformer.h.2.mlp.c_prj.weight", f"Did you mean '{DOWN}'"),
        ("transformer.h.9.mlp.c_proj.weight", "is no parameter"),
        ("transformer.h.2.mlp.c_proj.bias", "not the weight of a Conv1D"),
        ("transformer.h.2.ln_1.weight", "not the weight of a Conv1D"),
        ("transformer.wte.weight", "not the weight of a Conv1D"),
    ],
)
def test_names_that_do_not_fit_are_all_listed(name, why):
    with pytest.raises(HyperParamsError) as error:
        MENDLearner(lm("gpt2"), MENDTrainingHparams(inner_params=[DOWN, name, "nonsense"]))
    assert why in str(error.value)
    assert "'nonsense' is no parameter" in str(error.value)


def test_the_output_embedding_is_left_alone():
    with pytest.raises(HyperParamsError, match="output embedding"):
        MENDLearner(lm("llama"), MENDTrainingHparams(inner_params=["lm_head.weight"]))


def test_named_weights_are_edited_and_no_others(tmp_path):
    target = lm("gpt2")
    learner = stirred(target, inner_params=[DOWN])
    file = learner.save(tmp_path)
    patch = MEND(MENDHyperParams(archive=str(file), inner_params=[DOWN])).edit(target, EDITS).patch
    assert set(patch.entries) == {DOWN}
    for other in ({"inner_params": [DOWN.replace("2", "1")]}, {"layers": [0]}):
        with pytest.raises(HyperParamsError, match="was trained to edit"):
            MEND(MENDHyperParams(archive=str(file), **other)).edit(target, EDITS)


def test_layers_outside_the_model():
    with pytest.raises(HyperParamsError, match="3 layers"):
        MENDLearner(lm("gpt2"), MENDTrainingHparams(layers=[5]))
    assert len(MENDLearner(lm("gpt2", n_layer=1), MENDTrainingHparams()).sites) == 2


# -- classic files ----------------------------------------------------------------------------

CLASSIC = """
alg_name: "MEND"
model_name: "./hugging_cache/gpt2-xl"
device: 0
model_parallel: false
fp16: false
archive: {archive}
model_class: GPT2LMHeadModel
tokenizer_class: GPT2Tokenizer
tokenizer_name: gpt2-xl
inner_params:
- transformer.h.1.mlp.c_proj.weight
- transformer.h.1.mlp.c_fc.weight
lr: 1e-6
edit_lr: 1e-4
lr_lr: 1e-4
lr_scale: 1.0
seed: 42
cedit: 0.1
cloc: 1.0
cbase: 1.0
dropout: 0.0
train_base: false
no_grad_layers: null
one_sided: false
n_hidden: 1
hidden_dim: null
init: id
norm: true
combine: true
x_only: false
delta_only: false
act: relu
rank: 1920
mlp_class: IDMLP
shared: true
batch_size: 1
model_save_pt: 5000
silent: false
max_iters: 100000
log_interval: 500
eval_log_interval: 1000
final_eval: true
val_interval: 5000
early_stop_patience: 30000
early_stop_key: "loss/total_edit_val"
eval_only: false
half: false
debug: false
save: false
verbose: true
val_batch_size: 5
accumulate_bs: 10
val_steps: 500
opt: Adam
grad_clip: 100.0
results_dir: ./results
"""


@pytest.mark.parametrize("kind", [MENDHyperParams, MENDTrainingHparams])
@pytest.mark.parametrize("suffix", ["", ".yaml"])
def test_a_complete_classic_file_loads(kind, suffix, tmp_path, caplog):
    body = CLASSIC.format(
        archive="./results/models/MEND/gpt2-xl" if kind.model_fields.get("archive") else "null"
    )
    (tmp_path / "gpt2-xl.yaml").write_text(body)
    with caplog.at_level(logging.INFO, "easyeditor"):
        found = kind.from_hparams(str(tmp_path / "gpt2-xl") + suffix)
    values = yaml.safe_load(body)
    left = values.keys() - kind.model_fields.keys() - FAMILY_KEYS
    assert left == kind.ignored & values.keys()
    for name in kind.model_fields.keys() & values.keys() - {"inner_params"}:
        now = found.model_dump(mode="json")[name]
        assert now == (float(values[name]) if isinstance(now, float) else values[name]), name
    assert found.inner_params == tuple(values["inner_params"])
    (line,) = [r.getMessage() for r in caplog.records if "no longer used" in r.getMessage()]
    assert all(name in line for name in left)


@pytest.mark.parametrize("kind", [MENDHyperParams, MENDTrainingHparams])
def test_presets_for_all_known_models(kind):
    assert set(kind.presets) == {
        *("gpt2-xl", "gpt-j-6B", "gpt-neo-2.7B", "llama-7b", "llama-2-7b", "t5-3b"),
        "smollm2-135m",
    }


def test_the_large_presets_are_the_published_settings():
    found = MENDTrainingHparams.preset("gpt2-xl")
    assert (found.lr, found.lr_lr, found.edit_lr, found.rank) == (1e-6, 1e-4, 1e-4, 1920)
    assert (found.batch_size, found.accumulate_bs, found.grad_clip) == (1, 10, 100.0)
    assert (found.cedit, found.cloc, found.edit_loss_on) == (0.1, 1.0, "rephrase")


def test_an_unknown_field_has_a_neighbour():
    with pytest.raises(HyperParamsError, match="Did you mean 'archive'"):
        MENDHyperParams(archve="x")
    with pytest.raises(HyperParamsError, match="Did you mean 'edit_lr'"):
        MENDTrainingHparams(edit_lrr=1)
