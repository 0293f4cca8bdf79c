"""What the page's handlers share: errors become messages, work shows its progress."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import gradio as gr

from easyeditor.errors import EasyEditError, EditCancelled
from easyeditor.web import views
from easyeditor.web.service import Service
from easyeditor.web.workspace import Workspace

LOG = logging.getLogger(__name__)
T = TypeVar("T")
WORK = "work"
"""Handlers that compute on a model wait for one another: they share the processor."""


def guarded(outputs: int) -> Callable[[Callable[..., Iterator[Any]]], Callable[..., Iterator[Any]]]:
    """Turn the errors of a handler into its first output, a message; the others stay.

    The handler is a generator of tuples of ``outputs`` values. An error that nobody foresaw is
    logged, and the message names its class alone.
    """

    def decorate(handler: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        @functools.wraps(handler)
        def wrapper(*args: Any) -> Iterator[Any]:
            rest = [gr.skip()] * (outputs - 1)
            try:
                yield from handler(*args)
            except EditCancelled as error:
                yield _outputs(views.remark(str(error)), rest)
            except EasyEditError as error:
                yield _outputs(views.problem(str(error)), rest)
            except Exception as error:  # a bug, or no memory: the page goes on
                LOG.exception("A request of the page failed.")
                what = type(error).__name__
                message = f"Something went wrong here ({what}); the log of the server says what."
                yield _outputs(views.problem(message), rest)

        return wrapper

    return decorate


def _outputs(message: str, rest: list[Any]) -> Any:
    return (message, *rest) if rest else message


def key_of(request: gr.Request) -> str:
    """Names the browser window that asks."""
    return str(request.session_hash)


def shown(
    workspace: Workspace, work: Callable[[], T], outputs: int
) -> Generator[tuple[Any, ...], None, T]:
    """Do ``work`` and show its progress as the first of ``outputs``; returns its result."""
    rest = [gr.skip()] * (outputs - 1)
    yield (views.working("starting …"), *rest)
    running = workspace.running(work)
    try:
        while True:
            try:
                progress = next(running)
            except StopIteration as end:
                result: T = end.value
                return result
            yield (views.working(progress), *rest)
    finally:
        running.close()  # where the window was closed meanwhile


def cancelling(service: Service) -> Callable[[gr.Request], None]:
    """A handler that stops the window's work."""

    def cancel(request: gr.Request) -> None:
        workspace = service.present(key_of(request))
        if workspace is not None:
            workspace.cancel()

    return cancel
