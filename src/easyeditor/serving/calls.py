"""The calls with which other servers take a patch while they run, as a shell script.

vLLM and SGLang load the LoRA adapter that a patch of weights is exported as, and unload it again;
llama.cpp is started with it and switches it per request. All three hold the unedited model.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from easyeditor.errors import PatchError
from easyeditor.export.factors import VLLM_RANKS, lora_rank
from easyeditor.patches.patch import Patch
from easyeditor.patches.weight import WeightPatch

PORTS = {"vllm": 8000, "sglang": 30000, "llama.cpp": 8080}
LORA_PATH = '"lora_path": "$PWD/'
JSON_HEADER = '-H "Content-Type: application/json"'


class OtherServer(str, Enum):
    """A server that loads LoRA adapters."""

    vllm = "vllm"
    sglang = "sglang"
    llama_cpp = "llama.cpp"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A patch as another server sees it.

    Attributes:
        name: what requests call it.
        file: of the patch.
        base: the unedited model, as the other server is given it.
        rank: of the adapter.
        modules: last parts of the names of the modules it changes.
        prompt: of its first edit: what to ask.
    """

    name: str
    file: Path
    base: str
    rank: int
    modules: tuple[str, ...]
    prompt: str

    @classmethod
    def of(cls, name: str, file: Path, patch: Patch, base: str) -> Adapter:
        """The adapter that ``patch`` is exported as.

        Raises:
            PatchError: it is no change of linear layers' weights; says what to do.
        """
        if not isinstance(patch, WeightPatch):
            raise PatchError(
                f"{file} holds a {patch.info.method} edit, which acts while the model runs (a "
                f"patch of {patch.kind!r}) and is in no weight. Other servers load weights and "
                "LoRA adapters alone, so none of them can carry it; easyedit serve --patch does."
            )
        modules = {path.removesuffix(".weight").rpartition(".")[2] for path in patch.entries}
        prompt = str(patch.info.edits[0].prompt) if patch.info.edits else "Hello"
        return cls(name, file, base, lora_rank(patch), tuple(sorted(modules)), prompt)


def script(server: OtherServer, adapter: Adapter) -> str:
    """The commands, with a remark before each."""
    lines = {
        OtherServer.vllm: _vllm,
        OtherServer.sglang: _sglang,
        OtherServer.llama_cpp: _llama_cpp,
    }[server](adapter)
    return "\n".join(lines) + "\n"


def _vllm(adapter: Adapter) -> list[str]:
    if adapter.rank > VLLM_RANKS[-1]:
        raise PatchError(
            f"{adapter.file} is an adapter of rank {adapter.rank}, and vLLM loads up to "
            f"{VLLM_RANKS[-1]}. Export with --rank, or write a merged model: easyedit export "
            "--format merged."
        )
    rank = next(rank for rank in VLLM_RANKS if rank >= adapter.rank)
    url = f"http://127.0.0.1:{PORTS['vllm']}/v1"
    load = {"lora_name": adapter.name, "lora_path": "$PWD/adapter"}
    return [
        *_export(adapter, "lora"),
        "# Start the server with the unedited model; once, in another terminal.",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True python -m vllm.entrypoints.openai.api_server \\",
        f"  --model {shlex.quote(adapter.base)} --enable-lora --max-lora-rank {rank}",
        "# Load the correction. With load_inplace it replaces a former one of the same name.",
        _post(f"{url}/load_lora_adapter", {**load, "load_inplace": True}),
        "# Ask: the adapter's name is a model name, the base model answers to its own.",
        _post(f"{url}/completions", _question(adapter, adapter.name)),
        "# Take it back.",
        _post(f"{url}/unload_lora_adapter", {"lora_name": adapter.name}),
    ]


def _sglang(adapter: Adapter) -> list[str]:
    url = f"http://127.0.0.1:{PORTS['sglang']}"
    load = {"lora_name": adapter.name, "lora_path": "$PWD/adapter"}
    return [
        *_export(adapter, "lora"),
        "# Start the server with the unedited model; once, in another terminal.",
        f"python -m sglang.launch_server --model-path {shlex.quote(adapter.base)} \\",
        f"  --enable-lora --max-lora-rank {adapter.rank} \\",
        f"  --lora-target-modules {shlex.join(adapter.modules)}",
        "# Load the correction.",
        _post(f"{url}/load_lora_adapter", load),
        "# Ask: MODEL:ADAPTER is the edited model, MODEL the unedited one.",
        _post(f"{url}/v1/completions", _question(adapter, f"{adapter.base}:{adapter.name}")),
        "# Take it back. A new version takes unloading the former one first.",
        _post(f"{url}/unload_lora_adapter", {"lora_name": adapter.name}),
    ]


def _llama_cpp(adapter: Adapter) -> list[str]:
    url = f"http://127.0.0.1:{PORTS['llama.cpp']}"
    # A prompt that is in llama.cpp's cache from a request at scale 0 would be answered from it.
    question = {**_question(adapter, ""), "cache_prompt": False}
    del question["model"]
    return [
        *_export(adapter, "gguf-lora"),
        "# Start the server with the unedited GGUF model; once, in another terminal.",
        "llama-server -m model.gguf --lora adapter/adapter.gguf --lora-init-without-apply \\",
        f"  --port {PORTS['llama.cpp']}",
        "# Ask with the correction, for this request alone.",
        _post(f"{url}/v1/completions", {**question, "lora": [{"id": 0, "scale": 1.0}]}),
        "# Switch it on for all requests that do not say otherwise …",
        _post(f"{url}/lora-adapters", [{"id": 0, "scale": 1.0}]),
        "# … and take it back.",
        _post(f"{url}/lora-adapters", [{"id": 0, "scale": 0.0}]),
    ]


def _export(adapter: Adapter, form: str) -> list[str]:
    return [
        "# Write the patch as an adapter.",
        f"easyedit export {shlex.quote(str(adapter.file))} --format {form} --out adapter",
    ]


def _question(adapter: Adapter, model: str) -> dict[str, object]:
    return {"model": model, "prompt": adapter.prompt, "max_tokens": 16, "temperature": 0}


def _post(url: str, body: object) -> str:
    """A call of curl; the shell fills in ``$PWD`` at the start of ``lora_path``, and nothing else.

    Quotation marks in strings of JSON are escaped, so no name or prompt reads as that field.
    """
    text = shlex.quote(_json(body)).replace(LORA_PATH, LORA_PATH.replace("$PWD", "'\"$PWD\"'"))
    return f"curl -X POST {url} {JSON_HEADER} \\\n  -d {text}"


def _json(body: object) -> str:
    """JSON in which characters that a terminal does not print are escaped."""
    text = json.dumps(body, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
