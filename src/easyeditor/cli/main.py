"""All commands together, and what happens when something unforeseen does."""

from __future__ import annotations

import sys

from rich.text import Text

from easyeditor.cli import (
    bench,
    data,
    demo,
    edit,
    exports,
    info,
    layers,
    ledger,
    moments,
    patches,
    refusal,
    serve,
    sharing,
    steer,
    trace,
    train,
    ui,
)
from easyeditor.cli.app import UNEXPECTED, app, err, report_error
from easyeditor.cli.terminal import tolerate_encodings, visible


def main() -> None:
    """Entry point of the ``easyedit`` script."""
    tolerate_encodings()
    editing = (demo, edit, ledger, train, bench)
    using = (ui, exports, patches, serve, sharing, steer, refusal)
    for module in (*editing, *using, trace, layers, data, moments, info):
        module.register(app)
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
