"""The worked examples of the documentation run, and do what they say."""

import re
from pathlib import Path

import pytest

import tiny
from easyeditor import Case, Edit
from easyeditor.lm import FAMILIES, LM
from support import logprobs

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def world():
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text(), re.S)
    assert len(blocks) == 3
    names: dict = {}
    for block in blocks:
        exec(compile(block, "extending.md", "exec"), names)
    return names


def test_the_example_method_edits(world):
    lm = LM(tiny.model("llama"), tiny.tokenizer())
    prompt = "The Eiffel Tower is located in the city of"
    edit = Edit(prompt, "Rome", subject="The Eiffel Tower")
    before = logprobs(lm, [(prompt, "Rome")])[0]
    patch = world["Nudge"](world["NudgeHyperParams"](layers=[1])).edit(lm, [edit]).patch
    patch.apply(lm.model)
    assert sum(logprobs(lm, [(prompt, "Rome")])[0]) > sum(before)
    assert patch.info.hyperparams["layers"] == [1]


def test_the_example_family_is_the_table_row(world):
    assert world["row"] == FAMILIES["llama"]


def test_the_example_dataset_gives_cases(world):
    assert [case.edit.target for case in world["cases"]] == ["Lyon", "Milan"]
    assert all(isinstance(case, Case) for case in world["cases"])
