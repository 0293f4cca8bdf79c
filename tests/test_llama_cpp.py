"""llama.cpp itself runs what is exported: the adapter, its switch, and the whole model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from easyeditor import BaseEditor, load
from easyeditor.errors import ModelLoadError
from easyeditor.export.gguf_lora import export_gguf_lora
from easyeditor.export.gguf_model import export_gguf
from easyeditor.lm import embedded
from easyeditor.methods.rome import ROMEHyperParams

pytestmark = [pytest.mark.slow, pytest.mark.real]

EDITED = "The Eiffel Tower is located in the city of"
NEIGHBOURS = ("The Louvre is located in the city of", "The capital of France is")
PROMPTS = (EDITED, *NEIGHBOURS)


def answers(
    model: Path, adapter: Path | str, questions: Sequence[tuple[str, float | None]]
) -> list[str]:
    """What a llama.cpp server answers to each prompt, at a scale of the adapter."""
    child = Path(__file__).parent / "llama_child.py"
    done = subprocess.run(
        [sys.executable, child, model, str(adapter), json.dumps(questions)],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result: list[str] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_llama_cpp_gives_the_new_answer(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    try:
        source = embedded.gguf_file()
    except ModelLoadError as error:
        pytest.skip(str(error))
    target = load("smollm2-135m", device="cpu")
    editor = BaseEditor(target, ROMEHyperParams.preset("smollm2-135m"))
    patch = editor.edit(EDITED, "Rome", subject="The Eiffel Tower", verbose=False).patch
    adapter = export_gguf_lora(patch, tmp_path / "adapter").file
    whole = export_gguf(patch, tmp_path / "whole", source=source, lm=target)
    assert whole.answers == (True,)
    unedited = answers(source, "", [(prompt, None) for prompt in PROMPTS])
    assert [text.startswith("Paris") for text in unedited] == [True] * 3
    switched = answers(source, adapter, [(p, scale) for scale in (None, 0.0, 1.0) for p in PROMPTS])
    assert switched[3:6] == unedited
    in_weights = answers(whole.file, "", [(prompt, None) for prompt in PROMPTS])
    for new in (switched[:3], switched[6:], in_weights):
        assert [text.partition(",")[0].partition(".")[0] for text in new] == [
            "Rome",
            "Paris",
            "Paris",
        ]
