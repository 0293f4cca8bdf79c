"""``easyedit ui``: the page on which facts are edited, compared, undone and shipped."""

from __future__ import annotations

import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easyeditor.cli import options, output
from easyeditor.cli.app import add
from easyeditor.errors import BenchError

if TYPE_CHECKING:
    from easyeditor.lm.model import LM

ARCHIVES = Path("results")
"""Where ``easyedit train`` writes, unless it is told otherwise."""
EXAMPLES = r"""
Examples:

  easyedit ui

  easyedit ui --model smollm2-135m --model Qwen/Qwen3-0.6B --runs runs --open

The page is reached from this machine alone, unless --host names another address:
then everybody who reaches it can edit in windows of their own.
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, ui, epilog=EXAMPLES)


def ui(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-M",
            help="A hub name, a folder, a .gguf file, or smollm2-135m (the default); repeatable: "
            "the page offers them all.",
        ),
    ] = None,
    method: options.Method = "ROME",
    runs: Annotated[
        Path | None, typer.Option(help="A folder with run folders of easyedit bench, to be shown.")
    ] = None,
    archives: Annotated[
        Path,
        typer.Option(
            help="Where easyedit train wrote archives; the methods that have one for these models "
            "are offered, too."
        ),
    ] = ARCHIVES,
    host: Annotated[
        str, typer.Option(help="Where it listens; by default only this machine reaches it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    open_: Annotated[
        bool, typer.Option("--open", help="Open the page in this machine's browser.")
    ] = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantization: options.Quantization = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Open a page in the browser: edit, see what moved, compare, undo, download."""
    names = list(dict.fromkeys(model or [options.DEFAULT_MODEL]))
    for name in names:
        options.check_model(name)
    if runs is not None and not runs.is_dir():
        raise BenchError(f"--runs {str(runs)!r} is no folder; name the one that holds run folders.")

    if archives != ARCHIVES and not archives.is_dir():
        raise BenchError(
            f"--archives {str(archives)!r} is no folder; name the one that easyedit train wrote to."
        )

    from easyeditor.web.server import require_extra

    require_extra()

    from easyeditor.methods import METHODS
    from easyeditor.web.archives import archives_in, training_command
    from easyeditor.web.settings import offered, untrained

    trained, method = archives_in(archives, names), METHODS.canonical(method)
    if method in untrained() and (method, names[0]) not in trained:
        raise typer.BadParameter(
            f"{method} needs an archive for {names[0]}, and there is none in {str(archives)!r}. "
            f"Train one: {training_command(method, names[0])}",
            param_hint="--method",
        )
    if method not in [*offered(), *untrained()]:
        raise typer.BadParameter(
            f"{method} needs demonstrations, which the page has no place for; use one of "
            f"{', '.join(offered())}, or easyedit edit --method {method.lower()}.",
            param_hint="--method",
        )
    from easyeditor.serving.server import is_loopback, open_socket
    from easyeditor.web.server import run_page
    from easyeditor.web.service import Service

    scheme = None if quantization is None else quantization.value
    how: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "quantization": scheme,
        "trust_remote_code": trust_remote_code,
    }

    def load(name: str) -> LM:
        return output.load_model(name, **how)

    opened = open_socket(host, port)
    with opened:
        service = Service(names, load, method=method, runs=runs, archives=trained)
        service.model(names[0])
        if not is_loopback(host):
            output.warn(
                f"Everybody who reaches {host} can edit there and load the processor; the page "
                "asks for no password. Put it behind a server that does."
            )
        address, number = opened.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        url = f"http://{shown}:{number}"
        output.out.print_line(
            f"The page is at {url}\nCtrl-C ends it; edits that were not saved go."
        )
        if open_:
            threading.Timer(1.0, webbrowser.open, [url]).start()
        run_page(service, opened, host=host)
