"""What the commands of ``easyedit ledger`` share: arguments, and loading the ledger's model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from easyeditor.cli import options, output
from easyeditor.ledger.conflicts import Problem
from easyeditor.ledger.ledger import Ledger

if TYPE_CHECKING:
    from easyeditor.ledger.live import LiveLedger
    from easyeditor.lm.model import LM

Place = Annotated[Path, typer.Argument(help="The ledger's folder.", metavar="LEDGER")]
Numbers = Annotated[list[int], typer.Argument(help="Numbers of edits.", metavar="NUMBER")]
Number = Annotated[int, typer.Argument(help="The number of an edit.", metavar="NUMBER")]
Who = Annotated[
    str | None,
    typer.Option("--who", help="Who does it; by default $EASYEDITOR_AUTHOR, else your user name."),
]
Why = Annotated[str, typer.Option("--why", help="The reason, in your words.")]
Supersede = Annotated[
    bool, typer.Option("--supersede", help="Take the place of active edits of the same fact.")
]
Allow = Annotated[
    list[Problem] | None, typer.Option("--allow", help="Let this problem pass; repeatable.")
]
LedgerModel = Annotated[
    str | None,
    typer.Option("--model", "-M", help="Where the model is, if not where the ledger says."),
]


def model_name(book: Ledger, model: str | None) -> str:
    """The model to load: the one that is named, else the ledger's."""
    name = str(book.setting("model_name")) if model is None else model
    options.check_model(name)
    return name


def _loaded(book: Ledger, model: str | None, device: str | None, trust: bool) -> LM:
    loading = book.setting("loading")
    name = model_name(book, model)
    return output.load_model(name, device=device, trust_remote_code=trust, **loading)


def live_ledger(book: Ledger, model: str | None, device: str | None, trust: bool) -> LiveLedger:
    """The ledger on its model, loaded as it was when the ledger was made.

    Raises:
        LedgerError: the model is another one.
    """
    lm = _loaded(book, model, device, trust)

    from easyeditor.ledger.live import LiveLedger

    return LiveLedger(book, lm)
