"""The commands and what they share: help, errors as exit codes, JSON alone on stdout.

Exit codes: 0 done, 1 the edit did not take, 2 bad input (also: no memory, no place on the disk),
70 a bug in this program, 130 interrupted, 141 the reader of the output went away.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from textwrap import dedent
from typing import Any

import typer
from rich.logging import RichHandler
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from easyeditor.cli.terminal import Terminal, folded, visible, write_json
from easyeditor.errors import EasyEditError
from easyeditor.version import VERSION

DONE, NOT_TAKEN, BAD_INPUT, UNEXPECTED, READER_GONE = 0, 1, 2, 70, 141

TABLE_WIDTH = 76
"""Columns that the table of a command's options needs."""
LONGEST = 200
"""Characters of a command's sentence in a list."""
OTHERS = ("torch", "transformers")
"""Packages that ``--version`` names, too: what an edit's bits may depend on."""

# typer brings click's usage errors, or its own copy of them: this is the class either way.
UsageError: Any = typer.BadParameter.__base__

err = Terminal(stderr=True)


def report_error(error: Exception, message: str) -> None:
    """With ``--json`` an error is the one document on stdout."""
    if "--json" in sys.argv:
        write_json({"error": {"type": type(error).__name__, "message": message}}, indent=None)


def _out_of_memory(error: BaseException) -> bool:
    # torch's own class is matched by name: a wrong command must not import torch.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Errors in the words themselves: as JSON, too, and without control characters.

    Typer's checks put the name of an exception before some of its messages.
    """
    try:
        yield
    except UsageError as error:
        if not getattr(error, "reported", False):
            error.message = visible(error.message).removeprefix("Value error, ")
            report_error(error, error.format_message())
            error.reported = True
        raise


class _Help:
    """Prints the epilog as it is written, so that its examples can be pasted.

    On a narrow terminal the help has no table, which would cut the names of options.
    """

    epilog: str | None
    rich_markup_mode: Any

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, and the epilog last."""
        epilog, self.epilog = self.epilog, None
        mode = self.rich_markup_mode
        if err.width < TABLE_WIDTH:
            self.rich_markup_mode = None
        try:
            super().format_help(ctx, formatter)  # type: ignore[misc]
        finally:
            self.epilog, self.rich_markup_mode = epilog, mode
        if epilog:
            text = f"{folded(dedent(epilog).strip(), err.width)}\n"
            if formatter.getvalue():
                formatter.write(f"\n{text}")
            else:
                typer.echo(text)


class Command(_Help, TyperCommand):
    """A command whose examples can be pasted."""


class Commands(_Help, TyperGroup):
    """A group whose deliberate errors end with exit code 2 and one message on stderr."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands, where it is no table, with whole sentences."""
        rows = [(name, command.get_short_help_str(LONGEST)) for name, command in _shown(self)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Parse; what is wrong with the words themselves is reported as JSON, too.

        Without any words the help is shown; typer leaves that to its own tables, which a narrow
        terminal does not get.
        """
        with _usage_errors():
            try:
                return super().parse_args(ctx, args)
            except UsageError as error:
                if type(error).__name__ == "NoArgsIsHelpError" and error.message:
                    typer.echo(error.message)
                raise

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            with _usage_errors():
                return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(READER_GONE) from None
        except (EasyEditError, OSError) as error:
            kind, message = type(error).__name__, str(error)
            report_error(error, message)
        except Exception as error:
            if not _out_of_memory(error):
                raise
            first = str(error).strip().partition("\n")[0]
            kind = type(error).__name__
            message = (
                f"There is not enough memory ({first or kind}). Take a smaller model, --dtype "
                "bfloat16, or --quantization 4bit; or set memory_mb, where the method has it."
            )
            report_error(error, message)
        words = Text.assemble(("Error", "bold red"), f" ({kind}): ", visible(message))
        err.print(words, soft_wrap=True)
        raise SystemExit(BAD_INPUT) from None


def _shown(group: Any) -> list[tuple[str, Any]]:
    return [(name, command) for name, command in group.commands.items() if not command.hidden]


def add(
    app: typer.Typer, function: Callable[..., Any], *, epilog: str, name: str | None = None
) -> None:
    """Add a command with examples under its help."""
    app.command(name, cls=Command, epilog=epilog)(function)


app = typer.Typer(
    cls=Commands,
    name="easyedit",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Change one fact in a language model, see what else changed, keep, ship or undo it.",
    epilog="Start here: easyedit demo",
)


def _version(wanted: bool) -> None:
    if wanted:
        others = [f"{name} {_version_of(name)}" for name in OTHERS]
        typer.echo("\n".join([f"easyeditor {VERSION}", *others]))
        raise typer.Exit


def _version_of(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


@app.callback()
def _options(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log what is being done."),
    _show_version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    handler = RichHandler(console=err, show_time=False, show_path=False)
    handler.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    # httpx and friends log every request at INFO; only our own messages are wanted.
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("easyeditor").setLevel(level)
    # Where stderr is no terminal, work of minutes says in a line how far it is.
    logging.getLogger("easyeditor.progress").setLevel(logging.INFO)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
