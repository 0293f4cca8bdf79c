"""Runs the notebooks and writes them with their outputs: ``notebooks/NAME.py`` → ``NAME.ipynb``.

    python scripts/notebooks.py [NAME …]

The text is the source; an ``.ipynb`` is only written, whole, when every cell ran. Needs the extra
``notebooks``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
HELPER = "small"
QUIET = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "EASYEDITOR_OFFLINE": "1"}
CELL_SECONDS = 1800


def run(name: str) -> Path:
    """Run one notebook; returns the file that was written."""
    notebook = jupytext.read(FOLDER / f"{name}.py")
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
        record_timing=False,
    )
    client.execute()
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # random ones would change with every run
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    notebook.metadata.pop("language_info", None)
    file = FOLDER / f"{name}.ipynb"
    nbformat.write(notebook, file)
    return file


def main(names: list[str]) -> None:
    """Run the named notebooks, or all."""
    os.environ.update(QUIET)
    known = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != HELPER)
    unknown = sorted(set(names) - set(known))
    if unknown:
        sys.exit(f"No notebook {', '.join(unknown)}; there are {', '.join(known)}.")
    for name in names or known:
        sys.stdout.write(f"{run(name).name}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
