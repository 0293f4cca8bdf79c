"""The methods of docs/extending.md as a package, written to a folder and registered."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from easyeditor.methods import METHODS
from easyeditor.patches.kinds import ADAPTERS, PATCHES

DOCS = Path(__file__).parent.parent / "docs"
SETTINGS = {
    "STEER": {"layers": [1]},
    "CODEBOOK": {"layers": [2]},
    "TOY_ALPHAEDIT": {
        "layers": [1],
        "null_space": 0.75,
        "v_num_grad_steps": 5,
        "mom2_n_tokens": 200,
        "context_template_length_params": ((2, 2),),
    },
    "NOTES": {},
    "TOY_EMMET": {
        "layers": [1],
        "mom2_adjustment": False,
        "v_num_grad_steps": 5,
        "context_template_length_params": ((2, 2),),
    },
}
"""Quick settings for a tiny model, by the toy's name."""


def blocks() -> list[str]:
    """The Python blocks of the page about methods."""
    return re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text("utf-8"), re.S)


def write(folder: Path) -> None:
    """Write every block that names its file, as the package ``toys``."""
    for block in blocks():
        name = re.match(r"# (toys/\w+\.py)\n", block)
        if name:
            file = folder / name[1]
            file.parent.mkdir(exist_ok=True)
            (file.parent / "__init__.py").touch()
            file.write_text(block, encoding="utf-8")


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package, importable and registered by the lines of the page."""
    write(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for registry in (METHODS, ADAPTERS, PATCHES):
        list(registry)  # entry points are read once; what is added here goes with the test
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    for name in [name for name in sys.modules if name.partition(".")[0] == "toys"]:
        monkeypatch.delitem(sys.modules, name)
    (registering,) = (block for block in blocks() if "METHODS.add" in block)
    exec(compile(registering, "extending.md", "exec"), {})
    assert set(METHODS) >= set(SETTINGS)
