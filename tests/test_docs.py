"""The worked examples of the documentation run, and do what they say."""

import re
from pathlib import Path

import pytest

from easyeditor import Case
from easyeditor.lm import FAMILIES

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def world():
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text(), re.S)
    blocks = [block for block in blocks if "toys." not in block and "# toys/" not in block]
    assert len(blocks) == 2  # the methods are run by test_toy_methods.py
    names: dict = {}
    for block in blocks:
        exec(compile(block, "extending.md", "exec"), names)
    return names


def test_the_example_family_is_the_table_row(world):
    assert world["row"] == FAMILIES["llama"]


def test_the_example_dataset_gives_cases(world):
    assert [case.edit.target for case in world["cases"]] == ["Lyon", "Milan"]
    assert all(isinstance(case, Case) for case in world["cases"])
