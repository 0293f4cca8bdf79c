"""Serves the page and prints its address: a tiny model under two names, or the one that is named.

page_child.py [MODEL [FOLDER OF RUNS]]
"""

from __future__ import annotations

import sys
from pathlib import Path

import serving_cases
from easyeditor import LM, load
from easyeditor.serving.server import open_socket
from easyeditor.web.server import serving_page
from easyeditor.web.service import Service


def main(model: str | None = None, runs: str | None = None) -> None:
    """Serve until the process is ended."""
    tiny = serving_cases.model() if model is None else None

    def loaded(name: str) -> LM:
        return tiny or load(name)

    service = Service(
        ["tiny", "other"] if model is None else [model],
        loaded,
        method="FT" if model is None else "ROME",
        runs=Path(runs) if runs else None,
    )
    with open_socket("127.0.0.1", 0) as opened, serving_page(service) as server:
        sys.stdout.write(f"http://127.0.0.1:{opened.getsockname()[1]}\n")
        sys.stdout.flush()
        server.run([opened])


if __name__ == "__main__":
    main(*sys.argv[1:])
