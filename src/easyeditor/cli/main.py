"""All commands together, and what happens when something unforeseen does."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from rich.text import Text

from easyeditor.cli.app import UNEXPECTED, app, err, report_error
from easyeditor.cli.terminal import tolerate_encodings, visible

# In the order of --help. Only the module of the command that is called is imported, so that a wrong
# word is answered at once.
COMMANDS = {
    "demo": "demo",
    "edit": "edit",
    "ledger": "ledger",
    "train": "train",
    "bench": "bench",
    "ui": "ui",
    "apply": "exports",
    "export": "exports",
    "show": "patches",
    "generate": "patches",
    "serve": "serve",
    "push": "sharing",
    "pull": "sharing",
    "steer": "steer",
    "refusal": "refusal",
    "trace": "trace",
    "layers": "layers",
    "data": "data",
    "moments": "moments",
    "methods": "info",
    "models": "info",
    "hparams": "info",
}
"""The module of ``easyeditor.cli`` that registers each command."""


def register(words: list[str]) -> None:
    """Register the command that ``words`` call, or all where they call none that there is."""
    app.registered_commands.clear()
    app.registered_groups.clear()
    called = next((word for word in words if not word.startswith("-")), "")
    modules = [COMMANDS[called]] if called in COMMANDS else dict.fromkeys(COMMANDS.values())
    for module in modules:
        import_module(f"easyeditor.cli.{module}").register(app)


def main() -> None:
    """Entry point of the ``easyedit`` script."""
    tolerate_encodings()
    if os.environ.get("EASYEDITOR_OFFLINE", "0") not in {"", "0"}:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the hub's client reads it when imported
    register(sys.argv[1:])
    try:
        app(prog_name="easyedit")
    except Exception as error:  # a bug of this program: not "the edit did not take"
        report_error(error, repr(error))
        if {"-v", "--verbose"} & set(sys.argv):
            raise
        what = visible(repr(error))
        words = (("Unexpected error", "bold red"), f": {what} (easyedit -v shows where)")
        err.print(Text.assemble(*words), soft_wrap=True)
        sys.exit(UNEXPECTED)
