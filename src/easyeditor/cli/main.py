"""All commands together, and what happens when something unforeseen does."""

from __future__ import annotations

import sys

from easyeditor.cli import bench, data, demo, edit, info, moments, patches, train
from easyeditor.cli.app import UNEXPECTED, app, err, tell


def main() -> None:
    """Entry point of the ``easyedit`` script."""
    for module in (demo, edit, train, bench, patches, data, moments, info):
        module.register(app)
    try:
        app()
    except Exception as error:  # a bug of ours, or no memory: not "the edit did not take"
        tell(error, repr(error))
        if {"-v", "--verbose"} & set(sys.argv):
            raise
        err.print(f"[bold red]Unexpected error[/]: {error!r} (easyedit -v shows where)")
        sys.exit(UNEXPECTED)
