"""SERAC: what its training minimises, archives that fit or are refused, edits end to end."""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tiny
from easyeditor import (
    BaseEditor,
    Case,
    Edit,
    EditTrainer,
    Probe,
    SERACHyperParams,
    SERACTrainingHparams,
    load_patch,
    save_patch,
)
from easyeditor.errors import (
    ArchiveError,
    ContradictingEditsError,
    DataError,
    HyperParamsError,
    ModelLoadError,
    UnsupportedModelError,
)
from easyeditor.hyperparams import KNOWN_MODELS
from easyeditor.methods.archive import KEY, NAME, read_archive
from easyeditor.methods.learning import learner_of
from easyeditor.methods.serac.learner import SERACLearner
from easyeditor.methods.serac.serac import SERAC
from easyeditor.patches.scope import TEMPLATE, told
from easyeditor.patches.stack import is_patched
from learning_cases import AGAIN, CASES, NEAR
from scripting import document, refused, sets
from support import EDITS, Snapshot, lm, same_bits, unsettle
from test_scope_patch import other_tokenizer

QUICK = {
    "lr": 3e-3,
    "head_lr": 1e-2,
    "batch_size": 3,
    "max_iters": 40,
    "val_interval": 40,
    "log_interval": 10,
    "cedit": 1.0,
}
PROMPTS = [*(e.prompt for e in EDITS), *AGAIN, *(near for near, _ in NEAR)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny network in a folder, for ``cls_name``."""
    place = tmp_path_factory.mktemp("encoder") / "tiny-gpt2"
    tiny.model("gpt2", seed=2).save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return str(place)


def train(target, folder: Path, encoder: str, **changes):
    settings = SERACTrainingHparams(
        **{**QUICK, "cls_name": encoder, "results_dir": str(folder), **changes}
    )
    return EditTrainer(settings, CASES, CASES, lm=target).run()


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory, encoder: str) -> dict[str, Path]:
    """Trained beside the tiny gpt2 and the tiny t5."""
    place = tmp_path_factory.mktemp("archives")
    return {name: train(lm(name), place / name, encoder).path for name in ("gpt2", "t5")}


def answers(target):
    return target.score([(p, "Italy well") for p in PROMPTS]), target.generate(PROMPTS, 4)


# -- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "t5", "llama"])
def test_a_training_learns_scope_and_answers(family: str, encoder: str, tmp_path: Path) -> None:
    target = lm(family)
    unsettle(target.model)
    before = Snapshot(target.model)
    done = train(target, tmp_path, encoder)
    assert before.differences(target.model) == []
    assert done.metrics["rewrite"] == done.metrics["rephrase"] == done.metrics["locality"] == 1.0
    assert {"answer_nll", "scope_in", "scope_out"} <= set(done.history[0])
    learner = learner_of(target, SERACTrainingHparams(cls_name=encoder, cedit=1.0))
    untrained = learner.validate(CASES)
    assert untrained["edit_loss"] > 2 * done.metrics["edit_loss"]
    learner.load(done.path)
    assert learner.validate(CASES) == pytest.approx(dict(done.metrics))


def test_the_loss_is_what_it_says(encoder: str) -> None:
    target = lm("gpt2")
    learner = SERACLearner(
        target,
        SERACTrainingHparams(
            cls_name=encoder,
            cedit=0.3,
            cloc=0.7,
            in_scope_weight=1.5,
        ),
    )
    learner.nets.classifier.head.weight.data.mul_(2)
    with torch.no_grad():
        found = learner.loss(CASES)
        vector = {text: learner.nets.classifier([text])[0] for text in PROMPTS}
    apart = {
        (a, e.prompt): float(((vector[a] - vector[e.prompt]) ** 2).sum())
        for a in PROMPTS
        for e in EDITS
    }
    inside = [apart[AGAIN[i], edit.prompt] for i, edit in enumerate(EDITS)]
    outside = []
    for text in PROMPTS:
        own = {EDITS[i].prompt for i in range(3) if text in {EDITS[i].prompt, AGAIN[i]}}
        nearest = min(apart[text, e.prompt] for e in EDITS if e.prompt not in own)
        outside.append(-math.log(1 - math.exp(-nearest)))
    asked = [(told(TEMPLATE, e, e.prompt), e.target) for e in EDITS]
    asked += [(told(TEMPLATE, e, q), e.target) for e, q in zip(EDITS, AGAIN, strict=True)]
    nll = [-sum(s) / len(s) for s in learner.small.logprobs(asked)]
    close = {"rel": 1e-4, "abs": 1e-5}
    assert float(found["scope_in"]) == pytest.approx(sum(inside) / 3, **close)
    assert float(found["scope_out"]) == pytest.approx(sum(outside) / len(PROMPTS), **close)
    assert float(found["answer_nll"]) == pytest.approx(sum(nll) / 6, **close)
    assert float(found["loss"]) == pytest.approx(
        0.3 * sum(nll) / 6 + 0.7 * (1.5 * sum(inside) / 3 + sum(outside) / len(PROMPTS)), **close
    )


def test_the_mixture_is_one(encoder: str) -> None:
    target = lm("gpt2")
    settings = SERACTrainingHparams(cls_name=encoder, soft_weighting=True)
    learner = SERACLearner(target, settings)
    case = CASES[0]
    (again, near) = case.probes
    with torch.no_grad():
        found = learner.loss([case])
        vectors = learner.nets.classifier([case.edit.prompt, again.prompt, near.prompt])
    s = torch.exp(-((vectors[1:] - vectors[0]) ** 2).sum(1)).tolist()

    def probabilities(model, question, answer):
        row = model.text.row(question, answer)
        with torch.no_grad():
            return model.target_logits([row]).softmax(-1).double(), list(row.target)

    def mixed(weight, question, answer):
        small, ids = probabilities(learner.small, told(TEMPLATE, case.edit, question), answer)
        base, _ = probabilities(target, question, answer)
        return weight * small + (1 - weight) * base, base, ids

    nll = []
    for weight, question in ((1.0, case.edit.prompt), (s[0], again.prompt)):
        mix, _, ids = mixed(weight, question, case.edit.target)
        nll.append(-mix[range(len(ids)), ids].log().mean())
    mix, base, _ = mixed(s[1], near.prompt, near.answers[0])
    kl = (base * (base.log() - mix.log())).sum(1).mean()
    assert float(found["answer_nll"]) == pytest.approx(float(sum(nll)) / 2, rel=1e-4)
    assert float(found["loc_kl"]) == pytest.approx(float(kl), rel=1e-3, abs=1e-6)
    learner.loss(CASES)["loss"].backward()
    assert all(p.grad is None for p in target.model.parameters())
    assert all(p.grad is not None for p in learner.nets.classifier.head.parameters())


def test_one_edit_is_not_its_own_negative(encoder: str) -> None:
    """A case with two paraphrases is two examples, which may meet in a batch."""
    learner = SERACLearner(lm("gpt2"), SERACTrainingHparams(cls_name=encoder))
    twin = Case("twin", EDITS[0], (Probe("Anna spoke", ("Italy",), "rephrase"), CASES[0].probes[1]))
    with torch.no_grad():
        both, alone = learner.loss([CASES[0], twin]), learner.loss([CASES[0]])
    assert float(both["scope_out"]) == pytest.approx(float(alone["scope_out"]), rel=1e-4)


def test_a_frozen_counterfactual_model(encoder: str, tmp_path: Path) -> None:
    target = lm("gpt2")
    path = train(target, tmp_path, encoder, freeze_cntr=True, max_iters=3).path
    tensors = load_file(path)
    for name, tensor in target.model.state_dict().items():
        assert same_bits(tensors[f"counterfactual.{name}"], tensor)


def test_nothing_is_drawn_by_lot(encoder: str) -> None:
    target = lm("gpt2")  # whose dropout is 0.1
    learner = SERACLearner(target, SERACTrainingHparams(cls_name=encoder))
    learner.module.train()
    state = torch.get_rng_state()
    one, two = (learner.loss(CASES)["loss"].detach() for _ in range(2))
    assert same_bits(one, two)
    assert torch.equal(torch.get_rng_state(), state)


def test_cases_without_a_paraphrase_cannot_be_learnt_from(encoder: str) -> None:
    case = Case("0", EDITS[0], CASES[0].probes[1:])
    with pytest.raises(DataError, match="1 of 1 have no rephrase"):
        EditTrainer(SERACTrainingHparams(cls_name=encoder), [case], [case], lm=lm("gpt2"))


# -- networks that cannot be used -------------------------------------------------------------


def small_in(folder: Path, family: str, tokenizer) -> str:
    tiny.model(family, seed=4).save_pretrained(folder / family)
    tokenizer.save_pretrained(folder / family)
    return str(folder / family)


def test_any_model_of_the_tokenizer_may_answer(encoder: str, tmp_path: Path) -> None:
    target = lm("llama")
    name = small_in(tmp_path, "gptj", tiny.tokenizer())
    done = train(target, tmp_path, encoder, small_name=name)
    patch = SERAC(SERACHyperParams(archive=str(done.path))).edit(target, EDITS)
    patch.apply(target.model)
    assert target.argmax([(e.prompt, e.target) for e in EDITS]) == [
        target.text.row(e.prompt, e.target).target for e in EDITS
    ]


def test_networks_that_do_not_fit(encoder: str, tmp_path: Path) -> None:
    target = lm("gpt2")
    before = Snapshot(target.model)
    name = small_in(tmp_path, "gpt2", other_tokenizer())
    settings = SERACTrainingHparams(cls_name=encoder, small_name=name)
    with pytest.raises(HyperParamsError, match=r"another tokenizer than.*JackFram/llama-160m"):
        learner_of(target, settings)
    name = small_in(tmp_path, "t5", tiny.tokenizer())
    with pytest.raises(UnsupportedModelError, match="both must be encoder-decoders, or neither"):
        learner_of(target, settings.replace(small_name=name))
    with pytest.raises(ModelLoadError, match="encoder"):
        learner_of(target, SERACTrainingHparams(cls_name=str(tmp_path / "none")))
    with pytest.raises(HyperParamsError, match="learns from paraphrases"):
        learner_of(target, SERACTrainingHparams(cls_name=encoder, edit_loss_on="prompt"))
    assert before.differences(target.model) == []


# -- editing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_in_scope_is_answered_and_the_rest_stays_to_the_bit(
    family: str, archives: dict[str, Path]
) -> None:
    target = lm(family)
    before, alone = Snapshot(target.model), answers(target)
    editor = BaseEditor.from_pretrained(
        target.model, target.tokenizer, SERACHyperParams(archive=str(archives[family]))
    )
    metrics, edited, patch = editor.edit_cases(CASES, evaluate_when="end")
    for metric in metrics:
        assert metric["post"]["rewrite_acc"] == metric["post"]["rephrase_acc"] == 1.0
        assert metric["post"]["locality"]["near_acc"] == 1.0
    assert edited is target.model
    scores, texts = answers(editor.lm)
    for i in range(len(PROMPTS)):
        assert (scores[i] == alone[0][i]) == (i >= 6)
        assert texts[i] == alone[1][i] or i < 6
    editor.undo(patch)
    assert before.differences(target.model) == []
    assert answers(target) == alone


def test_edits_accumulate_in_one_memory(archives: dict[str, Path], tmp_path: Path) -> None:
    target = lm("gpt2")
    settings = SERACHyperParams(archive=str(archives["gpt2"]), batch_size=2)
    editor = BaseEditor.from_pretrained(target.model, target.tokenizer, settings)
    first = editor.edit_cases(CASES[:1]).patch
    rest = editor.batch_edit([e.prompt for e in EDITS[1:]], [e.target for e in EDITS[1:]]).patch
    wanted = [target.text.row(e.prompt, e.target).target for e in EDITS]
    assert editor.lm.argmax([(e.prompt, e.target) for e in EDITS]) == wanted
    assert first.ids + rest.ids == SERAC(settings).edit(target, EDITS).ids
    editor.undo(first)
    said = editor.lm.argmax([(e.prompt, e.target) for e in EDITS])
    assert said[1:] == wanted[1:]
    assert said[0] == lm("gpt2").argmax([(EDITS[0].prompt, EDITS[0].target)])[0]
    rest.without(rest.ids[0])  # leaves what is applied alone
    assert editor.lm.argmax([(e.prompt, e.target) for e in EDITS]) == said


def test_each_alone_and_the_original_untouched(archives: dict[str, Path]) -> None:
    target = lm("gpt2")
    before, alone = Snapshot(target.model), answers(target)
    settings = SERACHyperParams(archive=str(archives["gpt2"]))
    editor = BaseEditor.from_pretrained(target.model, target.tokenizer, settings)
    result = editor.edit_cases(CASES, keep_original_weight=True)
    assert before.differences(target.model) == []
    assert answers(target) == alone
    twin = BaseEditor.from_pretrained(result.edited_model, target.tokenizer, settings)
    assert [m["post"]["rewrite_acc"] for m in result.metrics] == [1.0] * 3
    assert answers(twin.lm)[0][0] != alone[0][0]
    patch = result.patch
    assert patch.about.hyperparams["archive"] == str(archives["gpt2"])


def test_a_saved_edit(archives: dict[str, Path], tmp_path: Path) -> None:
    target = lm("t5")
    patch = SERAC(SERACHyperParams(archive=str(archives["t5"].parent))).edit(target, EDITS)
    file = save_patch(patch, tmp_path / "edit.safetensors")
    patch.apply(target.model)
    fresh = lm("t5")
    load_patch(file).apply(fresh.model)
    assert answers(fresh) == answers(target)


def test_an_archive_serves_every_model_of_its_tokenizer(archives: dict[str, Path]) -> None:
    target = lm("gptj")
    method = SERAC(SERACHyperParams(archive=str(archives["gpt2"])))
    patch = method.edit(target, EDITS)
    patch.apply(target.model)
    assert target.argmax([(e.prompt, e.target) for e in EDITS]) == [
        target.text.row(e.prompt, e.target).target for e in EDITS
    ]
    method.reset()
    assert method.edit(lm("gpt2"), EDITS).ids == patch.ids


# -- archives that cannot be used -------------------------------------------------------------


def test_without_an_archive() -> None:
    target = lm("gpt2")
    before = Snapshot(target.model)
    with pytest.raises(HyperParamsError, match=r"no archive=.*easyedit train --method serac"):
        SERAC(SERACHyperParams()).edit(target, EDITS)
    with pytest.raises(HyperParamsError, match="no archive="):
        SERAC(SERACHyperParams()).prepare(target)
    assert before.differences(target.model) == []


def copied(archive: Path, folder: Path, *, more=None, header=None, tensors=None) -> Path:
    """A copy of an archive with changes."""
    with safe_open(archive, "pt") as opened:
        told_ = json.loads(opened.metadata()[KEY])
    told_ |= header or {}
    told_["more"] |= more or {}
    file = folder / NAME
    kept = {**load_file(archive), **(tensors or {})}
    save_file(kept, file, metadata={KEY: json.dumps(told_)})
    return file


FOREIGN = {
    "another method": ({"header": {"method": "MEND"}}, "trained for MEND"),
    "no networks": ({"more": {"counterfactual": {"model_type": "none"}}}, "does not describe"),
    "half a classifier": ({"more": {"classifier": {"config": {}}}}, "does not describe"),
    "other settings": ({"header": {"hyperparams": {"lr": "fast"}}}, "cannot be used"),
    "another tokenizer": ({"more": {"tokenizer": "0123"}}, "another tokenizer than"),
    "a tensor more": ({"tensors": {"extra": torch.zeros(1)}}, "extra"),
    "not a number": (
        {"tensors": {"classifier.head.bias": torch.full((32,), torch.nan)}},
        "not finite",
    ),
    "other shapes": ({"tensors": {"classifier.head.bias": torch.zeros(3)}}, r"\(3,\) instead of"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_archive(name: str, archives: dict[str, Path], tmp_path: Path) -> None:
    changes, match = FOREIGN[name]
    file = copied(archives["gpt2"], tmp_path, **changes)
    target = lm("gpt2")
    before = Snapshot(target.model)
    with pytest.raises(ArchiveError, match=match):
        SERAC(SERACHyperParams(archive=str(file))).edit(target, EDITS)
    assert before.differences(target.model) == []


def test_an_unreadable_archive(archives: dict[str, Path], tmp_path: Path) -> None:
    target = lm("gpt2")
    whole = archives["gpt2"].read_bytes()
    file = tmp_path / NAME
    with pytest.raises(ArchiveError, match=r"no archive.*train --method serac"):
        SERAC(SERACHyperParams(archive=str(file))).edit(target, EDITS)
    for content in (whole[: len(whole) // 2], b"text", b""):
        file.write_bytes(content)
        with pytest.raises(ArchiveError, match="cannot be read"):
            SERAC(SERACHyperParams(archive=str(file))).edit(target, EDITS)
    with pytest.raises(ArchiveError, match="another tokenizer"):  # of an encoder-decoder
        SERAC(SERACHyperParams(archive=str(archives["t5"]))).edit(target, EDITS)
    assert not is_patched(target.model)


def test_networks_that_are_named_are_held_against_the_archive(archives: dict[str, Path]) -> None:
    target, archive = lm("gpt2"), str(archives["gpt2"])
    SERAC(SERACHyperParams(archive=archive, cls_name="./cache/Tiny-GPT2/")).prepare(target)
    wrong = SERACHyperParams(archive=archive, cls_name="distilbert-base-cased")
    with pytest.raises(HyperParamsError, match=r"tiny-gpt2.*not 'distilbert-base-cased'"):
        SERAC(wrong).prepare(target)


def test_learning_goes_on_only_from_what_fits(archives: dict[str, Path], encoder: str) -> None:
    learner = learner_of(lm("gpt2"), SERACTrainingHparams(cls_name=encoder))
    before = {name: t.clone() for name, t in learner.module.state_dict().items()}
    with pytest.raises(ArchiveError):
        learner.load(archives["t5"])
    after = learner.module.state_dict()
    assert all(same_bits(after[name], tensor) for name, tensor in before.items())


def test_contradicting_edits(archives: dict[str, Path]) -> None:
    method = SERAC(SERACHyperParams(archive=str(archives["gpt2"])))
    with pytest.raises(ContradictingEditsError):
        method.edit(lm("gpt2"), [EDITS[0], Edit(EDITS[0].prompt, "piano")])


# -- settings ---------------------------------------------------------------------------------

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


# -- the command line -------------------------------------------------------------------------


def test_the_command_line(easyedit, folder: Path, encoder: str, tmp_path: Path) -> None:
    data, patch = tmp_path / "zsre.json", tmp_path / "edit.safetensors"
    records = [
        {
            "subject": case.edit.subject,
            "src": case.edit.prompt,
            "alt": case.edit.target,
            "rephrase": case.probes[0].prompt,
            "loc": f"nq question: {case.probes[1].prompt}",
            "loc_ans": case.probes[1].answers[0],
            "pred": "no",
            "answers": ["no"],
            "cond": "",
        }
        for case in CASES
    ]
    data.write_text(json.dumps(records))
    settings = sets(tuple(f"{k}={v}" for k, v in {**QUICK, "cls_name": encoder}.items()))
    told_ = easyedit(
        *("train", "--method", "serac", "--data", data, "--val", data, "--model", folder),
        *("--out", tmp_path / "out", "--json", *settings),
    )
    archive = document(told_)["archive"]
    prompt, target = EDITS[0].prompt, EDITS[0].target
    told_ = easyedit(
        *("edit", "--method", "serac", "--model", folder, "--prompt", prompt, "--target", target),
        *("--locality", "She plays the => piano", "--set", f"archive={archive}"),
        *("--save", patch, "--json"),
    )
    assert told_.code == 0
    assert document(told_)["averages"]["post"]["rewrite_acc"] == 1.0
    told_ = easyedit("generate", prompt, "--patch", patch, "--model", folder, "--json")
    said = document(told_)
    assert said["after"].strip().startswith(target)
    assert not said["before"].strip().startswith(target)
    (line,) = document(easyedit("show", patch, "--json"))["memory"]
    assert (line["prompt"], line["target"]) == (prompt, target)
    shown = easyedit("show", patch).out
    assert line["id"] in shown
    assert prompt.split()[0] in shown
    why = refused(easyedit("apply", patch, "--model", folder, "--out", tmp_path / "model"))
    assert "changes no weight" in why
    shutil.move(archive, f"{archive}.away")
    why = refused(easyedit("generate", prompt, "--patch", patch, "--model", folder))
    assert "which is not there" in why
    why = refused(
        easyedit("edit", "--method", "serac", "--prompt", "x", "--target", "y", "--model", folder)
    )
    assert "easyedit train --method serac" in why


def test_an_archive_says_what_it_holds(archives: dict[str, Path]) -> None:
    found = read_archive(archives["gpt2"], "SERAC")
    assert found.hyperparams["template"] == TEMPLATE
    assert set(found.more) == {"classifier", "counterfactual", "digest", "tokenizer"}
