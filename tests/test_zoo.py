"""The zoo knows its world: the classes are real, the files small, the facts right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

from easyeditor.data.zsre import ZsreDataset
from easyeditor.lm.inference import generate
from tiers import tiered
from zoo import FAMILIES, corpus_file, load, measure, models, world

CLASSES = {
    "t5": transformers.T5ForConditionalGeneration,
    "gpt2": transformers.GPT2LMHeadModel,
    "gptj": transformers.GPTJForCausalLM,
    "gptneo": transformers.GPTNeoForCausalLM,
    "llama": transformers.LlamaForCausalLM,
    "llama2": transformers.LlamaForCausalLM,
}
SPLITS: tuple[world.Split, ...] = ("train", "eval")
every = pytest.mark.parametrize("family", FAMILIES)
one_fast = pytest.mark.parametrize("family", tiered(FAMILIES, {"gpt2"}))
"""For what the committed weights alone decide."""


def files(family: str) -> Iterator[Path]:
    return (file for file in (models.FOLDER / family).iterdir() if file.is_file())


@every
def test_the_class_is_the_real_one_and_reads_as_float32(family):
    lm = load(family)
    assert type(lm.model) is CLASSES[family]
    assert {p.dtype for p in lm.model.parameters()} == {torch.float32}
    assert load(family) is lm


def test_llama2_shares_keys_and_values_among_heads():
    many, grouped = load("llama").model.config, load("llama2").model.config
    assert many.num_key_value_heads == many.num_attention_heads
    assert grouped.num_key_value_heads < grouped.num_attention_heads


def test_gptneo_alternates_global_and_local_attention():
    kinds = load("gptneo").model.config.attention_layers
    assert kinds == ["global", "local"] * (len(kinds) // 2)


@every
def test_the_files_are_small(family):
    assert (models.FOLDER / family / "model.safetensors").stat().st_size <= 1_950_000
    assert 0.85e6 < models.parameters(load(family).model) < 1e6


def test_all_files_together_are_small():
    assert sum(file.stat().st_size for family in FAMILIES for file in files(family)) < 11_500_000


@one_fast
def test_facts_are_known_by_trained_and_by_new_phrasings(family):
    lm = load(family)
    assert measure.right(lm, world.trained()) >= 0.99
    assert measure.right(lm, world.held_out()) >= 0.95


@every
def test_a_new_fact_in_the_context_is_followed_and_other_relations_kept(family):
    lm, cases = load(family), world.cases("eval")[::2]
    assert measure.right(lm, measure.told(cases, "rephrase")) >= 0.95
    assert measure.right(lm, measure.told(cases, "locality/other_attribute")) >= 0.9


@every
def test_an_answer_ends_where_it_ends(family):
    (prompt, answer), *_ = world.trained()
    said = generate(load(family), [prompt], max_new_tokens=12)[0]
    assert said.strip().rstrip(".") == answer


@one_fast
def test_the_report_tells_of_the_committed_weights(family):
    told = json.loads((models.FOLDER / "report.json").read_text(encoding="utf-8"))[family]
    assert told["parameters"] == models.parameters(load(family).model)
    found = measure.report(load(family))
    assert {name: told[name] for name in found} == pytest.approx(found, abs=0.015)
    assert min(found.values()) >= 0.89


def test_subjects_are_in_one_split_only():
    train, evaluation = (set(world.subjects(split)) for split in SPLITS)
    assert not train & evaluation
    assert len(train) > 2 * len(evaluation)


@pytest.mark.parametrize("split", SPLITS)
def test_cases_are_counterfactual_and_ask_about_everything(split):
    cases = world.cases(split)
    truth = dict((*world.trained(), *world.held_out()))
    assert len({case.id for case in cases}) == len(cases)
    for case in cases:
        edit = case.edit
        assert edit.subject in world.subjects(split)
        assert truth[edit.prompt] == edit.ground_truth != edit.target
        kinds = [probe.kind for probe in case.probes]
        assert kinds.count("rephrase") >= 2
        assert kinds.count("locality/neighborhood") >= 2
        for probe in case.probes:
            near = probe.kind == "locality/neighborhood"
            assert (edit.subject in probe.prompt.text) is not near
            kept = probe.group == "locality"
            assert (truth[probe.prompt] == probe.answers[0]) is kept
    assert any(probe.kind == "portability/one_hop" for case in cases for probe in case.probes)


def test_every_fact_has_phrasings_of_both_kinds():
    assert len([fact for fact in world.facts() if not fact.relation.hops]) >= 400
    trained, held = set(world.trained()), set(world.held_out())
    assert not trained & held
    assert 0.2 < len(held) / len(trained | held) < 0.3
    assert all(len(fact.relation.templates) >= 8 for fact in world.facts())
    assert {f"{prompt} {answer}." for prompt, answer in trained} == set(world.corpus(1))


@pytest.mark.parametrize("split", SPLITS)
def test_zsre_reads_the_records(split, tmp_path):
    file = tmp_path / "world.json"
    file.write_text(json.dumps(world.records(split)), encoding="utf-8")
    assert [case.edit for case in ZsreDataset(file)] == [case.edit for case in world.cases(split)]


def test_the_corpus_is_a_file_of_statements(tmp_path):
    assert corpus_file(tmp_path).read_text(encoding="utf-8").splitlines() == world.corpus()
