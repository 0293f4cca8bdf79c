"""``easyedit ledger``: keep the edits of a served model: who, when, why; check them, undo them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from easyeditor.cli import ledger_tables, options, output, places
from easyeditor.cli.app import DONE, NOT_TAKEN, Commands, add
from easyeditor.cli.ledger_edits import add_edits, redo
from easyeditor.cli.ledger_shared import LedgerModel, Number, Numbers, Place, Who, Why, live_ledger
from easyeditor.cli.terminal import count, quoted
from easyeditor.errors import LedgerError
from easyeditor.ledger.entries import EntryState
from easyeditor.ledger.ledger import DATABASE, Ledger
from easyeditor.ledger.limits import HealthLimits
from easyeditor.ledger.loading import DEFAULTS
from easyeditor.sharing.manifest import MANIFEST

if TYPE_CHECKING:
    from easyeditor.ledger.verifying import Finding


GROUP_EXAMPLES = r"""
Examples:

  easyedit ledger init corrections --model smollm2-135m
  easyedit ledger add corrections --why "ticket 4711" --target Rome \
    --prompt "The Eiffel Tower is located in the city of" \
    --subject "The Eiffel Tower"
  easyedit ledger check corrections
  easyedit ledger undo corrections 1 --why "the customer was wrong"

Exit codes: 0 done; 1 an edit was rolled back or does not hold, edits of a file
were refused, or verify found something; 2 bad input, a conflict of one edit too.
"""
EXAMPLES = {
    "init": "Example: easyedit ledger init corrections --model smollm2-135m",
    "add": r"""
Examples:

  easyedit ledger add corrections --why "ticket 4711" --target Rome \
    --prompt "The Eiffel Tower is located in the city of" \
    --subject "The Eiffel Tower"

  easyedit ledger add corrections --edits facts.jsonl --method memit

Of a file every edit is an entry of its own, that can be undone by itself;
--together makes one entry of all. Run again after an interrupt, what is there
already is refused as a duplicate, and the rest is made (exit code 1).
""",
    "ls": "Examples:\n\n  easyedit ledger ls corrections\n"
    "  easyedit ledger ls corrections --state active --json",
    "show": "Example: easyedit ledger show corrections 1",
    "undo": "Example: easyedit ledger undo corrections 1 --why 'it was right before'",
    "redo": "Example: easyedit ledger redo corrections 1",
    "check": "Example: easyedit ledger check corrections",
    "export": "Examples:\n\n  easyedit ledger export corrections --out shipped\n"
    "  easyedit ledger export corrections --out shipped --sign ~/.ssh/id_ed25519",
    "verify": "Examples:\n\n  easyedit ledger verify corrections\n"
    "  easyedit ledger verify corrections --files-only\n"
    "  easyedit ledger verify shipped --key ada.pub",
}


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(
        cls=Commands,
        no_args_is_help=True,
        rich_markup_mode="rich",
        help="Keep the edits of a served model: who, when and why; check them, undo them.",
        epilog=GROUP_EXAMPLES,
    )
    commands: tuple[Callable[..., Any], ...] = (
        init,
        add_edits,
        ls,
        show,
        undo,
        redo,
        check,
        export,
        verify,
    )
    for function, (name, examples) in zip(commands, EXAMPLES.items(), strict=True):
        add(group, function, epilog=examples, name=name)
    app.add_typer(group, name="ledger")


def init(
    ledger: Place,
    model: options.Model = options.DEFAULT_MODEL,
    max_perplexity_ratio: Annotated[
        float,
        typer.Option(help="Largest perplexity on other text, edited / unedited."),
    ] = HealthLimits().perplexity_ratio,
    max_kl: Annotated[
        float,
        typer.Option(help="Largest divergence of predictions, in nats per token."),
    ] = HealthLimits().kl,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantization: options.Quantization = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Write prompts in the model's chat form.")
    ] = False,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Make an empty ledger for a model."""
    limits = HealthLimits(max_perplexity_ratio, max_kl)
    places.check_folder(ledger)
    options.check_model(model)
    scheme = None if quantization is None else quantization.value
    given = {"dtype": dtype, "quantization": scheme, "chat_template": chat_template}
    loading = {name: value for name, value in given.items() if value != DEFAULTS[name]}
    lm = output.load_model(model, device=device, trust_remote_code=trust_remote_code, **loading)

    from easyeditor.ledger.live import create_for

    name = os.path.abspath(model) if os.path.exists(model) else model
    create_for(ledger, lm, name, limits, loading)
    if as_json:
        document = {"ledger": str(ledger), "model": name, "limits": limits.to_json()}
        output.print_json(document)
        return
    output.out.print_line(
        f"An empty ledger for {model} in {ledger}. Add an edit: easyedit ledger add "
        f"{quoted(ledger)} --prompt … --target … --why …"
    )


def ls(
    ledger: Place,
    state: Annotated[
        list[EntryState] | None, typer.Option(help="Only entries in this state; repeatable.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the edits."""
    book = Ledger(ledger)
    entries = book.entries(*(state or ()))
    if as_json:
        output.print_json([entry.to_json() for entry in entries])
        return
    if not entries:
        output.out.print_line("No edits.")
        return
    ledger_tables.show_entries(f"{ledger}: {book.setting('model_name')}", entries)


def show(ledger: Place, number: Number, as_json: options.Json = False) -> None:
    """Everything about one edit: request, scores, settings, patch, history."""
    book = Ledger(ledger)
    entry, history = book.entry(number), book.history(number)
    if as_json:
        output.print_json({**entry.to_json(), "events": [e.to_json() for e in history]})
        return
    ledger_tables.show_entry(entry, history)


def undo(
    ledger: Place, numbers: Numbers, why: Why = "", who: Who = None, as_json: options.Json = False
) -> None:
    """Take edits back, whatever came after them; what they superseded is active again."""
    book = Ledger(ledger)
    returned = book.undo(numbers, who or "", why)
    if as_json:
        output.print_json({"undone": numbers, "active_again": returned})
        return
    again = f" Active again: {', '.join(map(str, returned))}." if returned else ""
    output.out.print_line(
        f"{count(len(set(numbers)), 'edit')} undone, {len(book.active())} active.{again}"
    )


def check(
    ledger: Place,
    model: LedgerModel = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Whether all active edits still hold, which have become weaker, and how the model is."""
    live = live_ledger(Ledger(ledger), model, device, trust_remote_code)

    from easyeditor.ledger.checking import check as checked

    with output.working("scoring all active edits …"):
        result = checked(live)
    if as_json:
        from easyeditor.ledger.database import finite

        rows = [row.to_json() for row in result.entries]
        output.print_json({"edits": rows, "health": finite(result.health.to_json())})
    else:
        ledger_tables.show_check(result)
    raise typer.Exit(NOT_TAKEN if result.lost else DONE)


def export(
    ledger: Place,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    sign: Annotated[
        Path | None, typer.Option(help="The file of an SSH key that signs the manifest.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write the history as JSON lines, and one patch that does what all active edits do."""
    book = Ledger(ledger)
    places.check_folder(out)

    from easyeditor.ledger.exporting import export_ledger

    result = export_ledger(book, out, key=sign)
    if as_json:
        patches = [str(file) for file in result.patches]
        document = {"out": str(out), "edits": result.edits, "patches": patches}
        output.print_json({**document, "signed": result.signed})
        return
    output.out.print_line(f"{count(result.edits, 'active edit')} and the history in {out}.")
    if result.signed:
        output.out.print_line(
            f"Signed. Who has your public key checks it: easyedit ledger verify {quoted(out)} "
            f"--key {quoted(f'{sign}.pub')}"
        )
    for file in result.patches:
        output.out.print_line(f"Use it: easyedit generate --patch {quoted(file)} PROMPT")


def verify(
    ledger: Place,
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Do not load the model to compare it.")
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option(help="Of an export: file of the public SSH key that must have signed it."),
    ] = None,
    model: LedgerModel = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Whether the files of a ledger, or of an export, are what was written, and none is missing.

    Of a ledger also whether the model is the ledger's.
    """
    from easyeditor.ledger.verifying import Finding, export_findings, findings

    if (ledger / MANIFEST).is_file() and not (ledger / DATABASE).exists():
        _report(export_findings(ledger, key), f"{ledger}: all files are as exported", as_json)
    if key is not None:
        raise typer.BadParameter("a ledger is not signed, its exports are", param_hint="--key")
    book = Ledger(ledger)
    result = findings(book)
    if not files_only:
        try:
            live_ledger(book, model, device, trust_remote_code)
        except LedgerError as error:
            result.append(Finding("model", "", (), str(error)))
    files = "all patch files are" if files_only else "the model and all patch files are"
    _report(result, f"{count(len(book.entries()), 'edit')}: {files} as recorded", as_json)


def _report(result: list[Finding], well: str, as_json: bool) -> NoReturn:
    """Print what is wrong, or ``well``, and leave with the exit code."""
    if as_json:
        output.print_json({"findings": [finding.to_json() for finding in result]})
    elif result:
        ledger_tables.show_findings(result)
    else:
        output.out.print_line(f"{well}.")
    raise typer.Exit(NOT_TAKEN if result else DONE)
