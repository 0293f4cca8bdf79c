"""llama.cpp itself runs what is exported: the adapter, its switch, and the whole model."""

from __future__ import annotations

from collections.abc import Callable
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


def asking(model: Path, adapter: Path | None = None) -> Callable[..., str]:
    """``ask(prompt, scale)``: a greedy answer of a llama.cpp server in this process."""
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel, params.verbosity, params.warmup = 256, 1, -1, False
    params.cpuparams.n_threads = 1
    if adapter is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    server = xllamacpp.Server(params)

    def ask(prompt: str, scale: float | None = None) -> str:
        # A prompt that is in the cache from a request at scale 0 is answered from it at scale 1.
        request = {"prompt": prompt, "max_tokens": 4, "temperature": 0.0, "cache_prompt": False}
        if scale is not None:
            request["lora"] = [{"id": 0, "scale": scale}]
        return str(server.handle_completions(request)["choices"][0]["text"])

    return ask


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
    ask = asking(source, adapter)
    unedited = {prompt: ask(prompt, 0.0) for prompt in (EDITED, *NEIGHBOURS)}
    assert "Paris" in unedited[EDITED]
    for answer in (ask, asking(whole.file)):
        assert answer(EDITED).lstrip().startswith("Rome")
        for prompt in NEIGHBOURS:
            assert answer(prompt).lstrip().startswith("Paris")
            assert unedited[prompt].lstrip().startswith("Paris")
    assert ask(EDITED, 0.0) == unedited[EDITED]
