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


def test_the_example_metric_is_in_every_result(tmp_path, monkeypatch):
    import importlib
    import sys

    import outer
    import toy_package
    from easyeditor.evaluate.scorers import SCORERS

    toy_package.write(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    list(SCORERS)
    monkeypatch.setattr(SCORERS, "_entries", dict(SCORERS._entries))
    for name in [name for name in sys.modules if name.partition(".")[0] == "toys"]:
        monkeypatch.delitem(sys.modules, name)
    importlib.import_module("toys.old_answer")
    prompts, targets = outer.PROMPTS[:2], outer.TARGETS[:2]
    result = outer.editor().edit(prompts, targets, ["Danish", None], verbose=False)
    first, second = result.metrics
    old = first["post"]["rewrite_prob"]["ground_truth"]
    assert first["post"]["old_answer_prob"] == pytest.approx(old)
    assert first["pre"]["old_answer_prob"] > 0
    assert second["post"].get("old_answer_prob") is None
