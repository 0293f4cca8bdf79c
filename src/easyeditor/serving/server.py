"""Run the application: a socket, uvicorn, and a clean end."""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from easyeditor.errors import MissingExtraError, ServingError
from easyeditor.serving.engine import Engine
from easyeditor.serving.names import ServedModels

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
SHUTDOWN_SECONDS = 5


def require_extra() -> None:
    """Make sure that what the server needs is installed.

    Raises:
        MissingExtraError: it is not.
    """
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        package = (error.name or "fastapi").partition(".")[0]
        raise MissingExtraError.of(package, "serve", "easyedit serve") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def names_of(host: str) -> tuple[str, ...]:
    """Under which names a server that listens there may be called; empty: under any."""
    if not is_loopback(host):
        return ()
    return (*LOCAL_NAMES, f"[{host}]".lower() if ":" in host else host)


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        ServingError: the place is taken, or is none of this machine.
    """
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(address[0], socket.SOCK_STREAM)
        try:
            if sys.platform != "win32":  # there it would let two servers have one port
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address[4])
            opened.listen(128)
        except OSError:
            opened.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ServingError(
            f"Nothing can be served at {host}:{port}: {reason}. Name another --port (0 takes a "
            "free one) or --host."
        ) from None
    return opened


def run_server(
    models: ServedModels,
    opened: socket.socket,
    *,
    host: str,
    max_batch: int = 1,
    api_key: str | None = None,
    access_log: bool = False,
) -> None:
    """Serve until the process is interrupted; requests that are still answered get an error then.

    Args:
        models: what is served.
        opened: from :func:`open_socket`.
        host: as the user named it; on loopback other names of the server are refused.
        max_batch: see :class:`Engine`.
        api_key: see :func:`~easyeditor.serving.app.build_app`.
        access_log: whether every request is logged.
    """
    with serving(models, host=host, max_batch=max_batch, api_key=api_key) as (server, _engine):
        server.config.access_log = access_log
        server.run([opened])
        if server.interrupted:  # uvicorn passes it on, but not to a process born to ignore it
            raise KeyboardInterrupt


@contextlib.contextmanager
def serving(
    models: ServedModels, *, host: str = "127.0.0.1", max_batch: int = 1, api_key: str | None = None
) -> Iterator[tuple[Any, Engine]]:
    """A uvicorn server that was not started yet, and the engine it asks; both end with it."""
    import uvicorn

    from easyeditor.serving.app import build_app

    engine = Engine(max_batch)
    hosts = names_of(host)
    app = build_app(models, engine, api_key=api_key, hosts=hosts)

    class Server(uvicorn.Server):
        interrupted = False

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """Let nobody wait for an answer that is still written."""
            stop(engine)
            self.interrupted = sig == signal.SIGINT
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app, log_level="warning", timeout_graceful_shutdown=SHUTDOWN_SECONDS, lifespan="off"
    )
    try:
        yield Server(config), engine
    finally:
        engine.close()


def stop(engine: Engine) -> None:
    """End the engine's jobs without waiting for them."""
    engine.close(0)
