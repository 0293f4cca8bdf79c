"""Downstream tasks defined beside the tests (``data/downstream``), run by the real harness."""

import copy
import json
import logging
import math
import os
import random
from pathlib import Path
from statistics import stdev

import numpy as np
import pytest
import torch

import outer
import support
import tiny
from easyeditor import LM, BaseEditor, FTHyperParams
from easyeditor.errors import DownstreamError, MissingExtraError
from easyeditor.evaluate.downstream import change, downstream
from easyeditor.lm.inference import score
from easyeditor.lm.loading import load

FOLDER = Path(__file__).parent / "data" / "downstream"
ITEMS = [
    json.loads(line) for line in (FOLDER / "cities.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.fixture(autouse=True)
def beside_the_data(monkeypatch, tmp_path):
    import datasets

    monkeypatch.chdir(FOLDER)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def run(lm, *tasks, **more):
    return downstream(lm, list(tasks), include_path=FOLDER, **more)


def by_hand(lm):
    """Accuracy of the cities by the library's own scores: sums of log-probabilities."""
    right = 0
    for item in ITEMS:
        scores = score(lm, [(item["question"], choice) for choice in item["choices"]])
        sums = [sum(score.logprobs) for score in scores]
        right += sums.index(max(sums)) == item["answer"]
    return right / len(ITEMS)


# -- scores -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_scores_are_those_of_the_model(family):
    lm = support.shared_lm(family)
    found = run(lm, "tiny_cities")
    assert set(found) == {"tiny_cities"}
    scores = found["tiny_cities"]
    assert set(scores) == {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "n", "version"}
    assert (scores["n"], scores["version"]) == (4, 1.0)
    share = scores["acc"]
    assert scores["acc_stderr"] == pytest.approx((share * (1 - share) / 3) ** 0.5)
    if family != "t5":  # the harness ends a decoder's target in its own way
        assert share == by_hand(lm)


def test_values_per_item_and_the_paired_difference():
    lm = support.shared_lm("llama")
    plain, scores = run(lm, "tiny_cities"), run(lm, "tiny_cities", items=True)["tiny_cities"]
    items = scores.pop("items")
    assert scores == plain["tiny_cities"]  # no score moves
    assert set(items) == {"acc", "acc_norm"}
    assert sum(items["acc"]) / 4 == scores["acc"]
    before = {"acc": 0.5, "n": 4, "items": {"acc": [1.0, 1.0, 0.0, 0.0]}, "acc_stderr": 0.3}
    after = {"acc": 0.25, "n": 4, "items": {"acc": [1.0, 0.0, 0.0, 0.0]}, "acc_stderr": 0.4}
    paired = change(before, after, "acc")
    error = 1.96 * stdev([0, -1, 0, 0]) / 2
    assert (paired.value, paired.n) == (-0.25, 4)
    assert (paired.low, paired.high) == pytest.approx((-0.25 - error, -0.25 + error))
    del before["items"]
    apart = change(before, after, "acc")
    assert apart.high - apart.low == pytest.approx(2 * 1.96 * 0.5)
    assert change(before, after, "acc_norm") is None
    assert math.isnan(change({"acc": 1.0}, {"acc": 1.0}, "acc").low)


def test_limit_and_a_file_for_its_folder():
    lm = support.shared_lm("llama")
    found = run(lm, "tiny_cities", "tiny_cities", limit=3)
    assert found["tiny_cities"]["n"] == 3
    one = downstream(lm, "tiny_cities", include_path=str(FOLDER / "cities.yaml"), limit=1)
    assert one["tiny_cities"]["acc_stderr"] is None  # one item has no spread


def test_a_group(monkeypatch):
    from lm_eval.tasks import TaskManager

    def without_defaults(include_path, **_more):  # a test below indexes those, for seconds
        return TaskManager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr("lm_eval.tasks.TaskManager", without_defaults)
    found = run(support.shared_lm("llama"), "tiny_group", limit=3)
    assert set(found) == {"tiny_group", "tiny_cities"}
    assert found["tiny_group"]["n"] == found["tiny_cities"]["n"] == 3
    assert found["tiny_group"]["acc"] == found["tiny_cities"]["acc"]
    assert float(found["tiny_group"]["version"]) == 2


def test_an_edit_shows_and_undoing_it_takes_it_back():
    lm = support.lm("llama")
    editor = BaseEditor(lm, outer.settings("FT", num_steps=20))
    before = run(lm, "tiny_cities")
    item = ITEMS[0]
    wrong = next(c for c in item["choices"][::-1] if c != item["choices"][item["answer"]])
    result = editor.edit([item["question"]], [wrong], verbose=False)
    after = run(lm, "tiny_cities")
    assert after["tiny_cities"]["acc"] == by_hand(lm)
    assert after != before
    assert run(lm, "tiny_cities", limit=1)["tiny_cities"]["acc"] == 0
    copied = LM(result.edited_model, tiny.tokenizer())
    assert run(copied, "tiny_cities") == after
    editor.undo(result.patch)
    assert run(lm, "tiny_cities") == before


@pytest.mark.slow
@pytest.mark.real
def test_a_real_model_forgets_where_the_tower_is():
    lm = load("smollm2-135m", device="cpu")
    assert run(lm, "tiny_cities")["tiny_cities"]["acc"] >= 0.75  # it cannot know Anna Lind
    editor = BaseEditor(lm, FTHyperParams.preset("smollm2-135m"))
    editor.edit([ITEMS[0]["question"]], ["Rome"], subject=["The Eiffel Tower"], verbose=False)
    assert run(lm, "tiny_cities", limit=1)["tiny_cities"]["acc"] == 0


def test_the_chat_template_is_used_where_the_model_wraps_prompts():
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = "{% for m in messages %}Say: {{ m['content'] }}{% endfor %} So"
    model = tiny.model("llama")
    seen = []
    model.get_input_embeddings().register_forward_pre_hook(
        lambda _module, args: seen.append(tokenizer.decode(args[0][0]))
    )
    run(LM(model, tokenizer), "tiny_cities", limit=1)
    assert not any("Say:" in text for text in seen)
    seen.clear()
    run(LM(model, tokenizer, chat_template=True), "tiny_cities", limit=1)
    assert seen
    assert all(text.startswith("Say: The Eiffel") for text in seen)


# -- no trace ---------------------------------------------------------------------------------


def handlers():
    loggers = [logging.root, *map(logging.getLogger, ("lm_eval", "datasets", "transformers"))]
    return [(log.name, log.level, log.propagate, list(log.handlers)) for log in loggers]


def test_the_model_is_as_it_was():
    lm = support.lm("llama")
    support.unsettle(lm.model)
    before = support.Snapshot(lm.model)
    settings = copy.deepcopy(lm.model.generation_config.to_dict())
    attributes = set(vars(lm.model))
    run(lm, "tiny_cities", "tiny_words", limit=2)
    assert before.differences(lm.model) == []
    assert lm.model.generation_config.to_dict() == settings
    assert set(vars(lm.model)) == attributes


def test_the_model_is_as_it_was_after_a_failure(monkeypatch):
    lm = support.lm("llama")
    support.unsettle(lm.model)
    state, attributes = random.getstate(), set(vars(lm.model))
    support.failing_at(lm.blocks[1], 1)
    before = support.Snapshot(lm.model)
    with pytest.raises(DownstreamError, match="Interrupt"):
        run(lm, "tiny_cities")
    assert before.differences(lm.model) == []
    assert set(vars(lm.model)) == attributes
    assert random.getstate() == state


def test_a_head_that_an_edit_set_apart_stays_apart():
    lm = support.lm("llama", tie_word_embeddings=True)
    embedding = lm.model.get_input_embeddings().weight
    lm.head.weight = torch.nn.Parameter(embedding.detach().roll(1, 0).clone())
    before = support.Snapshot(lm.model)
    assert run(lm, "tiny_cities")["tiny_cities"]["acc"] == by_hand(lm)
    assert before.differences(lm.model) == []
    assert lm.head.weight is not embedding


def test_generators_logging_environment_and_tokenizer_are_as_they_were():
    lm = support.shared_lm("llama")
    run(lm, "tiny_cities", limit=1)  # what an import does once is not what a call does
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.pad_token = None
    bare = LM(lm.model, tokenizer)
    numbers = np.random.get_state()
    before = random.getstate(), torch.get_rng_state(), handlers(), dict(os.environ)
    run(bare, "tiny_words", limit=2, seed=7)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    now = np.random.get_state()
    assert now[0] == numbers[0]
    assert now[2:] == numbers[2:]
    assert (now[1] == numbers[1]).all()
    assert handlers() == before[2]
    assert dict(os.environ) == before[3]
    assert tokenizer.pad_token is None
    assert tokenizer.padding_side == tiny.tokenizer().padding_side


def test_the_seed_decides_what_is_sampled():
    lm = support.lm("llama")
    seen = []
    lm.model.get_input_embeddings().register_forward_pre_hook(
        lambda _module, args: seen.append(args[0].tolist())
    )

    def sampled(seed):
        seen.clear()
        run(lm, "tiny_words", seed=seed)
        return list(seen)

    first = sampled(1)
    torch.rand(3)
    assert sampled(1) == first
    assert sampled(2) != first


# -- errors -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_unknown_tasks_are_all_named():
    lm = support.shared_lm("llama")
    with pytest.raises(DownstreamError) as caught:
        run(lm, "tiny_citys", "tiny_cities", "helaswag")
    assert "'tiny_citys'. Did you mean 'tiny_cities'?" in str(caught.value)
    assert "'helaswag'. Did you mean 'hellaswag'?" in str(caught.value)
    assert "include_path=" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tasks": []}, "No downstream task was named"),
        ({"limit": 0}, "limit=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"include_path": "nowhere"}, "'nowhere': no such folder"),
    ],
    ids=str,
)
def test_what_cannot_be_asked(change, why):
    with pytest.raises(DownstreamError, match=why):
        downstream(support.shared_lm("llama"), **{"tasks": ["tiny_cities"], **change})


def test_data_that_are_not_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DownstreamError, match=r"cannot run tiny_cities.*working directory"):
        run(support.shared_lm("llama"), "tiny_cities")


def test_out_of_memory_goes_up_as_it_is(monkeypatch):
    def full(*_args, **_options):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr("lm_eval.simple_evaluate", full)
    with pytest.raises(torch.OutOfMemoryError):
        run(support.shared_lm("llama"), "tiny_cities")


def test_without_the_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"needs lm_eval.*easyedit-lm\[lm-eval\]"):
        run(support.shared_lm("llama"), "tiny_cities")
