"""``easyedit serve``: a model with its patches behind OpenAI's interface."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easyeditor.cli import options, output
from easyeditor.cli.app import add
from easyeditor.cli.ledger_shared import model_name
from easyeditor.cli.output import Column
from easyeditor.cli.patches import load_patches, model_of
from easyeditor.errors import ServingError
from easyeditor.ledger.ledger import Ledger
from easyeditor.ledger.loading import recorded_loading

if TYPE_CHECKING:
    from easyeditor.lm.model import LM
    from easyeditor.patches.patch import Patch


class Printed(str, Enum):
    """Servers whose calls are printed."""

    vllm = "vllm"
    sglang = "sglang"
    llama_cpp = "llama.cpp"


API_KEY = "EASYEDITOR_API_KEY"
NAMED = re.compile(r"([^/\\=]+)=(.+)")
EXAMPLES = r"""
Examples:

  easyedit serve --model smollm2-135m --patch eiffel.safetensors
  easyedit serve --ledger corrections
  easyedit serve --patch eiffel.safetensors --print vllm

  curl http://127.0.0.1:8000/v1/completions \
    -H "Content-Type: application/json" -d '{"model": "smollm2-135m+ledger",
    "prompt": "The Eiffel Tower is located in the city of", "max_tokens": 8}'

Every set of patches is a model name: NAME is the unedited model, NAME+ledger has
the ledger's active edits as they are when the request comes in, NAME+eiffel has
the patch eiffel.safetensors, NAME+ledger+eiffel both.
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, serve, epilog=EXAMPLES)


def serve(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-M",
            help="A hub name, a folder, a .gguf file, or smollm2-135m; by default the ledger's, or "
            "the one that the patches were made for.",
        ),
    ] = None,
    ledger: Annotated[Path | None, typer.Option(help="A ledger's folder.")] = None,
    patch: Annotated[
        list[str] | None,
        typer.Option(help="A patch file, or NAME=FILE to give it another name; repeatable."),
    ] = None,
    print_: Annotated[
        Printed | None,
        typer.Option(
            "--print",
            help="Serve nothing; print the calls with which another server takes the patch.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Where it listens; by default only this machine reaches it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    max_batch: Annotated[
        int,
        typer.Option(
            min=1,
            help="Requests of one model that share passes; more is faster and makes answers depend "
            "on one another by rounding.",
        ),
    ] = 1,
    encoder: Annotated[
        str | None,
        typer.Option(help="A sentence encoder you trust, for patches made with one of your own."),
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantization: options.Quantization = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Serve a model with its patches behind OpenAI's interface; one name per set of patches."""
    if print_ is not None:
        _print_calls(print_.value, patch or [], ledger, model)
        return

    from easyeditor.serving.server import is_loopback, open_socket, require_extra, run_server

    require_extra()
    opened_ledger = None if ledger is None else Ledger(ledger)
    files = _files(patch or [])
    loaded = dict(zip(files, load_patches(list(files.values()), encoder), strict=True))
    opened = open_socket(host, port)
    with opened:
        scheme = None if quantization is None else quantization.value
        lm = _model(
            opened_ledger,
            model,
            loaded,
            {"device": device, "trust_remote_code": trust_remote_code},
            {"dtype": dtype, "quantization": scheme},
        )

        from easyeditor.serving.names import ServedModels

        with output.working("applying the patches …", long=False):
            models = ServedModels(lm, ledger=opened_ledger, patches=loaded)
        key = os.environ.get(API_KEY, "").strip() or None
        if not is_loopback(host) and key is None:
            output.warn(
                f"Everybody who reaches {host} may ask this server. Set {API_KEY} to ask for a key."
            )
        shown = opened.getsockname()[:2]
        _show(f"http://{_address(*shown)}/v1", models)
        run_server(models, opened, host=host, max_batch=max_batch, api_key=key)


def _print_calls(server: str, given: list[str], ledger: Path | None, model: str | None) -> None:
    files = _files(given)
    if len(files) != 1 or ledger is not None:
        raise ServingError(
            f"--print takes one --patch FILE and got {len(files)}. Of a ledger, write its edits as "
            "one patch first: easyedit ledger export LEDGER --out FOLDER."
        )
    (patch,) = load_patches(list(files.values()))
    ((name, file),) = files.items()

    from easyeditor.lm.embedded import hub_name
    from easyeditor.serving.calls import Adapter, OtherServer, script

    base = model if model is not None else patch.info.model_name
    adapter = Adapter.of(name, file, patch, hub_name(base))
    output.out.print_line(script(OtherServer(server), adapter).rstrip("\n"))


def _files(given: list[str]) -> dict[str, Path]:
    """The patch files by name: the file's own without its ending, or ``NAME=FILE``.

    Raises:
        ServingError: two have one name.
    """
    files: dict[str, Path] = {}
    for word in given:
        named = None if os.path.exists(word) else NAMED.fullmatch(word)
        name, file = (named[1], Path(named[2])) if named else (Path(word).stem, Path(word))
        if name in files:
            raise ServingError(
                f"Two patches are called {name!r}: {files[name]} and {file}. Give one another "
                f"name: --patch OTHER={file}."
            )
        files[name] = file
    return files


def _model(
    opened_ledger: Ledger | None,
    model: str | None,
    patches: Mapping[str, Patch],
    where: dict[str, Any],
    how: dict[str, Any],
) -> LM:
    """The model to serve, loaded as its ledger says, if there is one."""
    if opened_ledger is None:
        return output.load_model(model_of(model, [*patches.values()]), **where, **how)
    loading = {k: v for k, v in recorded_loading(opened_ledger).items() if k != "chat_template"}
    for option, value in how.items():
        if value is not None and value != loading[option]:
            raise ServingError(
                f"--{option} {value}: the ledger's model is loaded with {option}="
                f"{loading[option]!r}, and its edits are made for that. Leave --{option} out."
            )
    return output.load_model(model_name(opened_ledger, model), **where, **loading)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _show(url: str, models: Any) -> None:
    rows = []
    for name in models.names():
        edits = sum(len(one.info.edits) for one in models.contents(name)[0])
        rows.append([name, str(edits)])
    output.out.print_line(f"Serving at {url}")
    output.show("Models", [Column("name", text=True), Column("edits", right=True)], rows)
    output.out.print_line("Ctrl-C ends it. Nothing is written to the model or the patches.")
