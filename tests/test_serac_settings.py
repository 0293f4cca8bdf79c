"""SERAC: classic files, presets, and settings that cannot be."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml

from easyeditor import SERACHyperParams, SERACTrainingHparams
from easyeditor.errors import HyperParamsError
from easyeditor.hyperparams import KNOWN_MODELS

CLASSIC = """
alg_name: "SERAC"
model_name: ./hugging_cache/gpt2-xl
model_class: GPT2LMHeadModel
small_name: ./hugging_cache/gpt2
tokenizer_class: GPT2Tokenizer
tokenizer_name: ./hugging_cache/gpt2-xl
cls_name: distilbert-base-cased
cls_class: AutoModel
inner_params: []
archive: {archive}
alg: SERAC
lr: 1e-5
edit_lr: 1e-2
seed: 0
cedit: 0.1
cloc: 1.0
cbase: 1.0
dropout: 0.0
train_base: false
no_grad_layers: null
soft_weighting: false
checkpoint_grad: false
cross_attend: false
cos: false
freeze: null
square: true
bound_embeds: false
use_all_negatives: false
freeze_cntr: false
dist_heads: 1
lora: null
supervised: true
unlikelihood: false
log_errors: false
batch_size: 1
model_save_pt: 5000
edit_bs: 1
silent: False
max_iters: 50000
log_interval: 500
val_interval: 5000
early_stop_patience: 20000
early_stop_key: "loss/total_edit_val"
eval_only: False
half: False
save: False
debug: False
eval_log_interval: 100
final_eval: True
verbose: True
val_batch_size: 1
val_steps: 500
accumulate_bs: 10
opt: Adam
grad_clip: 100.
results_dir: ./results
device: 0
model_parallel: false
"""


@pytest.mark.parametrize("kind", [SERACHyperParams, SERACTrainingHparams])
def test_complete_classic_files_load(kind, tmp_path: Path, caplog) -> None:
    file = tmp_path / "gpt2-xl.yaml"
    file.write_text(CLASSIC.format(archive="results/SERAC/gpt2-xl"))
    with caplog.at_level(logging.INFO, "easyeditor"):
        found = kind.from_hparams(tmp_path / "gpt2-xl")
    values = yaml.safe_load(file.read_text())
    assert "alg" in values
    assert values.keys() - kind.model_fields.keys() - kind.ignored == {"alg"}
    assert found.small_name == "./hugging_cache/gpt2"
    assert found.cls_name == "distilbert-base-cased"
    (line,) = [r.getMessage() for r in caplog.records]
    assert "cross_attend" in line
    if kind is SERACTrainingHparams:
        assert (found.lr, found.accumulate_bs, found.cedit) == (1e-5, 10, 0.1)
    else:
        assert found.archive == "results/SERAC/gpt2-xl"


@pytest.mark.parametrize("kind", [SERACHyperParams, SERACTrainingHparams])
def test_presets(kind) -> None:
    for name in kind.presets:
        assert kind.preset(name).model_name == KNOWN_MODELS[name]
    if kind is SERACTrainingHparams:
        assert kind.preset("gpt-j-6B").small_name == "gpt2"
        assert kind.preset("llama-2-7b").lr == 1e-5


@pytest.mark.parametrize(
    ("kind", "changes", "match"),
    [
        (SERACTrainingHparams, {"template": "{prompt} {query}"}, r"\{target\} is missing"),
        (SERACTrainingHparams, {"smal_name": "gpt2"}, "Did you mean 'small_name'"),
        (SERACTrainingHparams, {"head_lr": 0}, "head_lr"),
        (SERACHyperParams, {"threshold": 1.0}, "threshold"),
        (SERACHyperParams, {"archiv": "x"}, "Did you mean 'archive'"),
    ],
)
def test_impossible_settings(kind, changes, match) -> None:
    with pytest.raises(HyperParamsError, match=match):
        kind(**changes)
