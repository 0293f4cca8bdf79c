"""Hyper-parameters: classic files load as they are, every mistake is named, layers resolve."""

import logging

import pytest
import yaml

import outer
import tiny
from cases import CASES
from easyeditor import BaseEditor, FTHyperParams, MEMITHyperParams, ROMEHyperParams
from easyeditor.errors import HyperParamsError, HyperParamsFileError
from easyeditor.hyperparams import FAMILY_KEYS, KNOWN_MODELS, resolve_layers
from easyeditor.methods import METHODS
from easyeditor.model_spec import ModelSpec

CLASSIC = {METHODS.get(case.name).hyperparams_class: case.classic for case in CASES if case.classic}
KINDS = list(CLASSIC)
T5_MODULES = {
    "rewrite_module_tmp": "decoder.block.{}.layer.2.DenseReluDense.wo",
    "layer_module_tmp": "decoder.block.{}",
    "mlp_module_tmp": "decoder.block.{}.layer.2.DenseReluDense",
    "attn_module_tmp": "decoder.block.{}.EncDecAttention",
    "ln_f_module": "decoder.final_layer_norm",
    "lm_head_module": "shared",
}


def written(folder, body, name="settings.yaml"):
    file = folder / name
    file.write_text(body, encoding="utf-8")
    return file


# -- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".yaml"])
def test_reads_with_and_without_the_suffix(tmp_path, suffix):
    written(tmp_path, "layers: [17]\nv_lr: 5e-4", "gpt2-xl.yaml")  # YAML reads 5e-4 as text
    found = ROMEHyperParams.from_hparams(str(tmp_path / "gpt2-xl") + suffix)
    assert (found.layers, found.v_lr, type(found.v_lr)) == ((17,), 5e-4, float)


def test_a_dot_in_the_name_is_not_a_suffix(tmp_path):
    written(tmp_path, "lr: 0.25", "gpt-neo-2.7B.yaml")
    assert FTHyperParams.from_hparams(tmp_path / "gpt-neo-2.7B").lr == 0.25


@pytest.mark.parametrize("kind", KINDS)
def test_complete_classic_files_load_and_fit_their_model(tmp_path, kind, caplog):
    body = CLASSIC[kind]
    with caplog.at_level(logging.INFO, "easyeditor"):
        found = kind.from_hparams(written(tmp_path, body))
    values = yaml.safe_load(body)
    assert values.keys() - kind.model_fields.keys() - FAMILY_KEYS == kind.ignored & values.keys()
    for name in kind.model_fields.keys() & values.keys() - {"layers"}:
        now = found.model_dump(mode="json")[name]
        assert now == (float(values[name]) if isinstance(now, float) else values[name]), name
    assert found.layers == tuple(values.get("layers", kind().layers))
    lines = [r.getMessage() for r in caplog.records if "no longer used" in r.getMessage()]
    assert len(lines) == 1
    assert all(name in lines[0] for name in kind.ignored & values.keys())
    BaseEditor.from_pretrained(tiny.model("gpt2"), tiny.tokenizer(), found)


def test_nothing_ignored_nothing_logged(caplog):
    with caplog.at_level(logging.INFO, "easyeditor"):
        ROMEHyperParams(layers=[1])
    assert not caplog.records


@pytest.mark.parametrize("kind", KINDS)
def test_alg_is_another_word_for_alg_name(kind):
    name = kind.model_fields["alg_name"].default
    assert kind(alg=name.lower()).alg_name == name


def test_a_classic_box_that_is_switched_off():
    assert FTHyperParams(norm_constraint=False).norm_constraint is None


@pytest.mark.parametrize("kind", KINDS)
def test_one_layer_may_be_a_bare_number(kind):
    assert kind(layers=3).layers == (3,)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("missing.yaml", None),
        ("folder.yaml", "folder"),
        ("broken.yaml", "layers: [1"),
        ("list.yaml", "- layers\n- lr\n"),
        ("text.yaml", "just words"),
        ("empty.yaml", ""),
        ("latin.yaml", b"model_name: caf\xe9"),
        ("binary.yaml", b"\x00\x01\x02"),
    ],
)
def test_unreadable_files(tmp_path, name, body):
    file = tmp_path / name
    if body == "folder":
        file.mkdir()
    elif body is not None:
        file.write_bytes(body if isinstance(body, bytes) else body.encode())
    with pytest.raises(HyperParamsFileError, match=name) as error:
        FTHyperParams.from_hparams(file)
    assert isinstance(error.value, OSError)


@pytest.mark.parametrize("path", ["", ".", "..", "/"])
def test_paths_that_name_no_file(path):
    with pytest.raises(HyperParamsFileError):
        FTHyperParams.from_hparams(path)


def test_a_missing_file_leads_to_the_presets(tmp_path):
    with pytest.raises(HyperParamsFileError, match=r"gpt2-xl.*hparams write"):
        ROMEHyperParams.from_hparams(tmp_path / "nothing")


def test_mistakes_in_a_file_name_the_file(tmp_path):
    with pytest.raises(HyperParamsError, match=r"settings\.yaml.*num_stps") as error:
        FTHyperParams.from_hparams(written(tmp_path, "num_stps: 3"))
    assert not isinstance(error.value, HyperParamsFileError)


# -- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "wrong", "meant"),
    [
        (ROMEHyperParams, "v_lrr", "v_lr"),
        (ROMEHyperParams, "layer", "layers"),
        (MEMITHyperParams, "mom2_update_weigth", "mom2_update_weight"),
        (FTHyperParams, "norm_constrain", "norm_constraint"),
        (FTHyperParams, "rewrite_module_tpm", "rewrite_module_tmp"),
    ],
)
def test_unknown_field(kind, wrong, meant):
    with pytest.raises(HyperParamsError, match=f"{wrong}.*Did you mean '{meant}'"):
        kind(**{wrong: 1})


@pytest.mark.parametrize("name", ["self", "data", "cls", "path", "model_dump", "_family_claims"])
def test_field_names_that_python_knows(name):
    with pytest.raises(HyperParamsError, match=name):
        FTHyperParams(**{name: 1})


def test_all_problems_at_once():
    wrong = {"num_stps": 3, "lr": "fast", "batch_size": 0, "layers": [], "device": [1]}
    with pytest.raises(HyperParamsError) as error:
        FTHyperParams(**wrong)
    assert all(name in str(error.value) for name in wrong)
    assert str(error.value).count("num_stps") == 1


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (ROMEHyperParams, "layers", [1, 2]),
        (ROMEHyperParams, "key", "nearest"),
        (ROMEHyperParams, "v_lr", 0),
        (ROMEHyperParams, "v_num_grad_steps", 0),
        (ROMEHyperParams, "v_num_grad_steps", 2.5),
        (ROMEHyperParams, "fact_token", "last"),
        (ROMEHyperParams, "clamp_norm_factor", -1),
        (MEMITHyperParams, "mom2_update_weight", float("nan")),
        (MEMITHyperParams, "batch_size", -3),
        (MEMITHyperParams, "layers", "all"),
        (MEMITHyperParams, "context_template_length_params", [[5]]),
        (MEMITHyperParams, "context_template_length_params", [[-3, 2]]),
        (ROMEHyperParams, "context_template_length_params", [[0, 2]]),
        (ROMEHyperParams, "context_template_length_params", [[3, -1]]),
        (FTHyperParams, "lr", float("inf")),
        (FTHyperParams, "lr", "5e-4x"),
        (FTHyperParams, "dtype", "float99"),
        (FTHyperParams, "objective_optimization", "target"),
        (FTHyperParams, "model_name", 5),
    ],
)
def test_impossible_values(kind, field, value):
    with pytest.raises(HyperParamsError, match=field):
        kind(**{field: value})


@pytest.mark.parametrize("kind", KINDS)
def test_another_methods_file(kind):
    with pytest.raises(HyperParamsError, match="alg_name='NONE'"):
        kind(alg_name="NONE")


def test_frozen():
    found = FTHyperParams()
    with pytest.raises(ValueError, match="frozen"):
        found.lr = 1.0
    assert found.lr == FTHyperParams().lr


# -- module names -----------------------------------------------------------------------------


def test_module_names_are_kept_for_the_check():
    claim = {"layer_module_tmp": "model.layers.{}"}
    found = ROMEHyperParams(layers=[1], **claim)
    assert found.family_claims == claim
    assert found.replace(v_lr=0.1).family_claims == claim
    assert found.resolved(3).family_claims == claim


@pytest.mark.parametrize(
    "claims",
    [
        {"rewrite_module_tmp": "model.layers.{}.mlp.down_proj", "lm_head_module": "lm_head"},
        {"rewrite_module_tmp": "model.layers.{}.mlp.down_proj.weight"},
        {"attn_module_tmp": "model.layers.{}.self_attn", "ln_f_module": "model.norm"},
    ],
)
def test_module_names_that_fit(claims):
    outer.editor("FT", "llama", **claims)


def test_the_tied_head_may_be_named_by_the_embedding():
    outer.editor("FT", "gpt2", lm_head_module="transformer.wte")


def test_module_names_of_another_model_are_all_listed():
    with pytest.raises(HyperParamsError) as error:
        outer.editor(
            "FT",
            "llama",
            rewrite_module_tmp="transformer.h.{}.mlp.c_proj",
            ln_f_module="transformer.ln_f",
            layer_module_tmp="model.layers.{}",
        )
    message = str(error.value)
    assert "rewrite_module_tmp" in message
    assert "model.layers.{}.mlp.down_proj" in message
    assert "ln_f_module" in message
    assert "layer_module_tmp" not in message


def test_classic_module_names_of_t5():
    outer.editor("FT", "t5", **T5_MODULES)


def test_wrong_module_names_of_t5():
    with pytest.raises(HyperParamsError, match="rewrite_module_tmp"):
        outer.editor("FT", "t5", rewrite_module_tmp="model.layers.{}.mlp.down_proj")


def test_presets_belong_to_one_method():
    class Variant(MEMITHyperParams):
        alg_name: str = "VARIANT"

    class Tuned(MEMITHyperParams):
        v_lr: float = 0.1

    assert Variant.presets == {}
    assert Tuned.presets == MEMITHyperParams.presets != {}
    with pytest.raises(HyperParamsError, match="no preset 'gpt2-xl'"):
        Variant.preset("gpt2-xl")
    assert Variant.for_model("gpt2-xl").layers == MEMITHyperParams().layers


# -- presets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_preset_loads(kind):
    for name in kind.presets:
        found = kind.preset(name)
        assert found.model_name == KNOWN_MODELS[name]
        assert found == kind.preset(name.upper())
        assert found != kind.preset(name, layers=[2 if found.layers == (1,) else 1])


def test_unknown_preset():
    with pytest.raises(HyperParamsError, match="Did you mean 'gpt2-xl'"):
        ROMEHyperParams.preset("gpt2_xl")


@pytest.mark.parametrize(
    "name", ["openai-community/gpt2-xl", "gpt2-xl", "/models/gpt2-xl", "GPT2-XL", "gpt2-xl/"]
)
def test_for_model_knows_a_model_by_its_last_part(name):
    found = ROMEHyperParams.for_model(name)
    assert (found.layers, found.model_name) == ((17,), name)


@pytest.mark.parametrize(
    "name", ["my-gpt2-xl-tuned", "gpt2", "gpt2-xl/checkpoint-5", "/gpt2-xl/other", "xl", ""]
)
def test_for_model_never_matches_a_part(name):
    found = ROMEHyperParams.for_model(name)
    assert (found.layers, found.model_name) == (ROMEHyperParams().layers, name)


def test_for_model_knows_hub_names():
    assert FTHyperParams.for_model("meta-llama/Llama-2-7b-hf").layers == (21,)
    assert MEMITHyperParams.for_model("EleutherAI/gpt-j-6b").layers == (3, 4, 5, 6, 7, 8)


def test_changes_win_over_the_preset():
    assert ROMEHyperParams.for_model("gpt2-xl", layers=[3]).layers == (3,)


def test_the_files_in_the_repository_are_the_presets(tmp_path):
    from easyeditor.cli.info import write_presets

    fresh = {path.relative_to(tmp_path): path.read_bytes() for path in write_presets(tmp_path)}
    folder = outer.ROOT / "hparams"
    methods = {path.parts[0] for path in fresh}
    kept = {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*.yaml")
        if path.relative_to(folder).parts[0] in methods
    }
    assert {str(p) for p in kept} == {str(p) for p in fresh}, "easyedit hparams write --out hparams"
    assert [str(p) for p in fresh if kept[p] != fresh[p]] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_preset_reads_back_as_itself(tmp_path, kind):
    from easyeditor.cli.info import write_presets

    write_presets(tmp_path)
    method = kind.model_fields["alg_name"].default
    for name in kind.presets:
        assert kind.from_hparams(tmp_path / method / name) == kind.preset(name)


# -- layers and copies ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "n", "absolute"),
    [
        ((17,), 48, (17,)),
        ((-1,), 48, (47,)),
        ((-3, -2, -1), 3, (0, 1, 2)),
        ((0.5,), 10, (5,)),
        ((0.17,), 30, (5,)),
        ((0.1, 0.11), 30, (3,)),
        ((5, 2, 5, -1), 8, (2, 5, 7)),
        ((0,), 1, (0,)),
        ((0.66,), 1, (0,)),
        ((0.99,), 3, (2,)),
    ],
)
def test_layers_resolve(layers, n, absolute):
    assert resolve_layers(layers, n) == absolute


@pytest.mark.parametrize("layers", [(3,), (-4,), (0, 99), (1.5,), (-0.5,), (2.0, 3.0)])
def test_layers_outside_the_model(layers):
    with pytest.raises(HyperParamsError, match=r"3 layers.*outside"):
        resolve_layers(layers, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 3, 12, 32, 48, 80])
def test_default_layers_exist_in_every_depth(kind, n):
    found = kind().resolved(n)
    assert found.layers or kind.__name__ == "DINMHyperParams"  # which finds them for each edit
    assert all(isinstance(layer, int) and 0 <= layer < n for layer in found.layers)


def test_replace_checks_and_leaves_the_rest():
    first = FTHyperParams(lr=0.5, layers=[2])
    second = first.replace(num_steps=7)
    assert (first.num_steps, second.num_steps) == (25, 7)
    assert (second.lr, second.layers) == (0.5, (2,))
    with pytest.raises(HyperParamsError, match="Did you mean 'num_steps'"):
        first.replace(num_step=7)
    with pytest.raises(HyperParamsError, match="alg_name"):
        first.replace(alg_name="ROME")


# -- the model that is loaded ------------------------------------------------------------------


def test_the_model_is_one_object_in_code_and_flat_in_files() -> None:
    spec = ModelSpec("gpt2", device="cpu", dtype="bfloat16", chat_template=True)
    nested = FTHyperParams(model=spec, num_steps=3)
    flat = FTHyperParams(
        model_name="gpt2", device="cpu", dtype="bfloat16", chat_template=True, num_steps=3
    )
    assert nested == flat
    assert nested.model == spec
    assert "model" not in nested.model_dump()
    assert nested.replace(model=ModelSpec("other")).model == ModelSpec("other")
    with pytest.raises(HyperParamsError, match="model must be a ModelSpec, not str"):
        FTHyperParams(model="gpt2")


@pytest.mark.parametrize("name", ["IKE", "SERAC"])
def test_what_edits_no_layer_has_none(name: str) -> None:
    kind = METHODS.get(name).hyperparams_class
    assert "layers" not in kind.model_fields
    settings = kind(layers=[0])  # of an older file: named in the log and dropped
    assert settings.resolved(3) == settings
