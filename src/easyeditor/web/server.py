"""Serve the page: a socket, uvicorn, and who may ask."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from types import FrameType
from typing import Any

from easyeditor.errors import MissingExtraError
from easyeditor.serving.server import names_of
from easyeditor.web.service import Service
from easyeditor.web.uploads import MAX_BYTES

SHUTDOWN_SECONDS = 2


def require_extra() -> None:
    """Make sure that what the page needs is installed.

    Raises:
        MissingExtraError: it is not.
    """
    try:
        import uvicorn  # noqa: F401
        from gradio import Blocks  # noqa: F401  # a folder of that name is no package
    except ImportError as error:
        package = (error.name or "gradio").partition(".")[0]
        raise MissingExtraError.of(package, "ui", "easyedit ui") from None


def build_app(service: Service, host: str) -> Any:
    """The page as an ASGI application.

    Names of files on this machine are not served: a browser gets what it sent and what was made for
    it. On loopback the page answers to this machine's names alone, so that another site's page
    cannot reach it under a name of its own.
    """
    import gradio as gr
    from fastapi import FastAPI

    from easyeditor.serving.admission import Admission
    from easyeditor.web.page import CSS, TITLE, build_page, look

    app = FastAPI(title=TITLE, docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        app,
        build_page(service),
        path="",
        max_file_size=MAX_BYTES,
        show_error=False,
        allowed_paths=[],
        theme=look(),
        css=CSS,
        footer_links=[],
    )
    return Admission(app, None, names_of(host))


def run_page(service: Service, opened: socket.socket, *, host: str) -> None:
    """Serve until the process is interrupted.

    Args:
        service: what is shown.
        opened: a listening socket.
        host: as the user named it; on loopback other names of the server are refused.
    """
    with serving_page(service, host=host) as server:
        server.run([opened])
        if server.interrupted:
            raise KeyboardInterrupt


@contextlib.contextmanager
def serving_page(service: Service, *, host: str = "127.0.0.1") -> Iterator[Any]:
    """A uvicorn server that was not started yet; the windows' work ends with it."""
    import uvicorn

    class Server(uvicorn.Server):
        interrupted = False

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """Stop the windows' work first: an open stream would hold the server up."""
            service.close()
            self.interrupted = sig == signal.SIGINT
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        build_app(service, host), log_level="critical", timeout_graceful_shutdown=SHUTDOWN_SECONDS
    )
    try:
        yield Server(config)
    finally:
        service.close()
