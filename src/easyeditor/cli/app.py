"""The commands and what they share: errors become exit code 2, JSON goes alone to stdout."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from typer.core import TyperGroup

from easyeditor.errors import EasyEditError

DONE, NOT_TAKEN, BAD_INPUT, UNEXPECTED = 0, 1, 2, 70

# typer brings click's usage errors, or its own copy of them: this is the class either way.
UsageError: Any = typer.BadParameter.__base__

err = Console(stderr=True, highlight=False)


def tell(error: Exception, message: str) -> None:
    """With ``--json`` an error is the one document on stdout."""
    if "--json" in sys.argv:
        told = {"error": {"type": type(error).__name__, "message": message}}
        sys.stdout.write(json.dumps(told, ensure_ascii=False) + "\n")


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        if not getattr(error, "told", False):
            tell(error, error.format_message())
            error.told = True
        raise


class Commands(TyperGroup):
    """A group whose deliberate errors end with exit code 2 and one message on stderr."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Parse; what is wrong with the words themselves is told as JSON, too."""
        with _told():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            with _told():
                return super().invoke(ctx)
        except (EasyEditError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            tell(error, str(error))
            err.print(f"[bold red]Error[/] ({type(error).__name__}):", end=" ")
            err.print(str(error), markup=False, soft_wrap=True)
            raise SystemExit(BAD_INPUT) from None


app = typer.Typer(
    cls=Commands,
    name="easyedit",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Change one fact in a language model, see what else changed, keep, ship or undo it.",
    epilog="Start here: [bold]easyedit demo[/]",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("easyeditor"))
        raise typer.Exit


@app.callback()
def _options(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log what is being done."),
    _show_version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(
        level=level,
        format="%(message)s",
        handlers=[RichHandler(console=err, show_time=False, show_path=False)],
    )
    # httpx and friends log every request at INFO; only our own messages are wanted.
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("easyeditor").setLevel(level)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
