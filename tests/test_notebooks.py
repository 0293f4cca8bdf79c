"""The notebooks, run from their text from the first cell to the last."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import outer

FOLDER = outer.ROOT / "notebooks"
NOTEBOOKS = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "small")
METHODS = [
    f"{method}_{family}" for method in ("ike", "rome", "memit") for family in ("gpt2", "llama")
]
GUIDES = [
    "correct_a_picture",
    "first_edit",
    "many_edits",
    "ship_a_patch",
    "train_mend",
    "which_layer",
]
LARGEST_BYTES = 300_000


def test_all_notebooks_are_there():
    assert sorted([*METHODS, *GUIDES]) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_one_variable_switches_to_the_real_checkpoint(name):
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    names = [t.id for node in tree.body if isinstance(node, ast.Assign) for t in node.targets
             if isinstance(t, ast.Name)]  # fmt: skip
    assert names[0] in {"CHECKPOINT", "MODEL"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_committed_ran_to_its_end(name):
    file = FOLDER / f"{name}.ipynb"
    if not file.is_file():
        pytest.skip(f"{file.name} is not committed; make notebooks writes it")
    text = file.read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(out["output_type"] == "error" for cell in cells for out in cell["outputs"])
    assert len(text) < LARGEST_BYTES
    assert str(outer.ROOT) not in text
    assert str(Path.home()) not in text


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name, tmp_path):
    environment = {**os.environ, "EASYEDITOR_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"MPLBACKEND": "Agg", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
