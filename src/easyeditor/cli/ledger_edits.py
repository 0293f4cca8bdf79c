"""``easyedit ledger add`` and ``redo``: edits checked before and after, and written down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from easyeditor.cli import edit_request as edits_cli
from easyeditor.cli import ledger_tables, options, output, verdict
from easyeditor.cli.app import DONE, NOT_TAKEN
from easyeditor.cli.ledger_shared import (
    Allow,
    LedgerModel,
    Number,
    Place,
    Supersede,
    Who,
    Why,
    live_ledger,
    model_name,
)
from easyeditor.cli.terminal import count
from easyeditor.errors import (
    DivergedError,
    EasyEditError,
    EditFailed,
    LedgerConflictError,
    LedgerError,
    LedgerHealthError,
)
from easyeditor.ledger.conflicts import Problem
from easyeditor.ledger.entries import Entry, EntryState, current_user
from easyeditor.ledger.ledger import Ledger
from easyeditor.ledger.loading import DEFAULTS, check_loading, loading_of, recorded_loading

if TYPE_CHECKING:
    from easyeditor.editors.base import BaseEditor
    from easyeditor.edits import Case
    from easyeditor.hyperparams import HyperParams
    from easyeditor.ledger.live import LiveLedger


def add_edits(
    ledger: Place,
    prompt: options.EditPrompt = None,
    target: options.EditTarget = None,
    subject: options.Subject = None,
    ground_truth: options.GroundTruth = None,
    rephrase: options.Rephrase = None,
    locality: options.Locality = None,
    expand: options.ExpandEdit = False,
    edits: Annotated[Path | None, typer.Option(help="A file of edits instead.")] = None,
    together: Annotated[
        bool, typer.Option("--together", help="The edits of a file as one entry, one patch.")
    ] = False,
    why: Why = "",
    who: Who = None,
    supersede: Supersede = False,
    allow: Allow = None,
    propose: Annotated[
        bool, typer.Option("--propose", help="Write it down only; redo NUMBER makes it.")
    ] = False,
    method: options.Method = "ROME",
    hparams: options.Hparams = None,
    set_: options.Settings = None,
    model: LedgerModel = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    force: Annotated[
        bool, typer.Option("--force", help="Edit also what the model says already.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Edit the model's facts, if nothing speaks against it, and write down who, when and why."""
    book = Ledger(ledger)
    cases = _cases(method, edits, prompt, target, subject, ground_truth, rephrase, locality)
    edits_cli.check_expansion(method, cases, expand=expand)
    if propose and expand:
        raise typer.BadParameter(
            "--expand asks the model for its chat form, and --propose loads no model; write the "
            "prompts into a file of edits as expansions, or leave one of the two out"
        )
    groups = [cases] if together else [[case] for case in cases]
    settings = _settings(book, method, hparams, set_, model, device)
    record = {
        "author": who or current_user(),
        "reason": why,
        "supersede": supersede,
        "allow": tuple(map(str, allow or ())),
    }
    if propose:
        _propose(book, groups, settings, record, as_json)
        return
    refused = _refused_before_loading(book, groups, record)
    editor, live = _editor(book, settings, trust_remote_code)

    from easyeditor.editors.advice import already_answered

    numbers: list[int] = []
    unchanged: list[str] = []
    for group in groups:
        if any(group is other for other, _ in refused):
            continue
        if not force and len(already_answered(editor.lm, group)) == len(group):
            unchanged += [case.id for case in group]
            continue
        try:
            wanted = edits_cli.expanded(editor.lm, group, expand)
            numbers.append(_make(editor, live, wanted, record))
        except (LedgerConflictError, LedgerHealthError, EditFailed, DivergedError) as error:
            if len(groups) == 1 and not isinstance(error, LedgerHealthError):
                raise
            refused.append((group, error))
    _report(book, numbers, unchanged, refused, as_json)
    raise typer.Exit(NOT_TAKEN if refused else DONE)


def redo(
    ledger: Place,
    number: Number,
    why: Why = "",
    who: Who = None,
    supersede: Supersede = False,
    allow: Allow = None,
    model: LedgerModel = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Make an undone, superseded or proposed edit active, if nothing speaks against it."""
    book = Ledger(ledger)
    entry = book.entry(number)
    if entry.state is EntryState.ACTIVE:
        raise LedgerError(f"Edit {number} is active already.")
    record: dict[str, Any] = {
        "author": who or current_user(),
        "reason": why,
        "supersede": supersede,
        "allow": tuple(map(str, allow or ())),
    }
    _refused_before_loading(book, [entry.cases], record, number)
    try:
        if entry.patch is None:
            settings = _settings_of_entry(book, entry, model, device)
            editor, live = _editor(book, settings, trust_remote_code)
            _make(editor, live, entry.cases, {**record, "proposal": number})
        else:
            live = live_ledger(book, model, device, trust_remote_code)
            with output.working(f"edit {number} again …"):
                live.redo(number, **record)
    except LedgerHealthError as error:
        _report(book, [], [], [(entry.cases, error)], as_json)
        raise typer.Exit(NOT_TAKEN) from None
    _report(book, [number], [], [], as_json)


# -- parts ------------------------------------------------------------------------------------


def _cases(
    method: str,
    edits: Path | None,
    prompt: str | None,
    target: str | None,
    subject: str | None,
    ground_truth: str | None,
    rephrase: list[str] | None,
    locality: list[str] | None,
) -> list[Case]:
    if edits is None:
        one = edits_cli.one_case(
            prompt, target, subject, ground_truth, rephrase, locality, None, False
        )
        edits_cli.check_subjects(method, [one], ["--subject"])
        edits_cli.note_subject(one)
        return [one]
    if any([prompt, target, subject, ground_truth, rephrase, locality]):
        raise typer.BadParameter("give a file with --edits, or one edit by options, not both")
    cases, where = edits_cli.read_cases(edits, False)
    edits_cli.check_subjects(method, cases, where)
    return cases


def _settings(
    book: Ledger,
    method: str,
    hparams: Path | None,
    set_: list[str] | None,
    model: str | None,
    device: str | None,
) -> HyperParams:
    settings = options.settings_of(method, model_name(book, model), hparams, set_)
    loading = loading_of(settings.model)  # the fields that are no default
    names = {*loading, *(change.partition("=")[0].strip() for change in set_ or ())}
    check_loading(book, loading, names & DEFAULTS.keys())
    settings = settings.replace(fp16=False, **recorded_loading(book))
    return options.loaded_as(settings, device=device)


def _settings_of_entry(
    book: Ledger, entry: Entry, model: str | None, device: str | None
) -> HyperParams:
    from easyeditor.methods import METHODS

    kind: type[HyperParams] = METHODS.get(entry.method).hyperparams_class
    loading = {"fp16": False, **recorded_loading(book)}
    settings = kind(**{**entry.settings, **loading, "model_name": model_name(book, model)})
    return options.loaded_as(settings, device=device)


def _editor(book: Ledger, settings: HyperParams, trust: bool) -> tuple[BaseEditor, LiveLedger]:
    with output.loading(settings.model_name):
        from easyeditor.editors.base import BaseEditor
        from easyeditor.ledger.live import LiveLedger
        from easyeditor.lm.loading import load

        lm = load(settings.model, trust_remote_code=trust)
        live = LiveLedger(book, lm)
        return BaseEditor(lm, settings, ledger=live), live


def _propose(
    book: Ledger,
    groups: Sequence[list[Case]],
    settings: HyperParams,
    record: dict[str, Any],
    as_json: bool,
) -> None:
    numbers = []
    for group in groups:
        for conflict in book.conflicts(group):
            output.warn(conflict.message)
        numbers.append(
            book.propose(
                group,
                settings.alg_name,
                settings.model_dump(mode="json"),
                record["author"],
                record["reason"],
            )
        )
    _report(book, numbers, [], [], as_json)


def _refused_before_loading(
    book: Ledger, groups: Sequence[list[Case]], record: dict[str, Any], number: int = 0
) -> list[tuple[list[Case], EasyEditError]]:
    """Edits of a file that conflict with active ones; one edit alone is refused at once.

    ``number`` is that of the entry that is made again.

    Raises:
        LedgerConflictError: there is one edit, and it conflicts.
    """
    refused: list[tuple[list[Case], EasyEditError]] = []
    allow = {Problem(name) for name in record["allow"]}
    for group in groups:
        _, conflicts = book.resolve(
            group, supersede=record["supersede"], allow=allow, number=number
        )
        if conflicts:
            error = LedgerConflictError(" ".join(c.message for c in conflicts), conflicts)
            if len(groups) == 1:
                raise error
            refused.append((group, error))
    return refused


def _make(editor: BaseEditor, live: LiveLedger, cases: list[Case], record: dict[str, Any]) -> int:
    """Make one entry; returns its number."""
    batch = editor.method.max_batch != 1 and len(cases) > 1
    if not batch:
        verdict.warn_repeated_subjects(cases, "by --method")
    with output.working(f"{count(len(cases), 'edit')} by {editor.method.name} …"):
        editor.edit_cases(cases, batch=batch, evaluate_when="end", verbose=False, **record)
    return live.recorded


def _report(
    book: Ledger,
    numbers: Sequence[int],
    unchanged: Sequence[str],
    refused: Sequence[tuple[list[Case], EasyEditError]],
    as_json: bool,
) -> None:
    entries = [book.entry(number) for number in numbers]
    if as_json:
        output.print_json(
            {
                "ledger": str(book.folder),
                "edits": [entry.to_json() for entry in entries],
                "unchanged": list(unchanged),
                "refused": [
                    {
                        "prompt": str(cases[0].edit.prompt),
                        "target": cases[0].edit.target,
                        "type": type(error).__name__,
                        "message": str(error),
                        "problems": [
                            str(conflict.problem) for conflict in getattr(error, "conflicts", ())
                        ],
                        "number": getattr(error, "number", 0) or None,
                    }
                    for cases, error in refused
                ],
            }
        )
        return
    for entry in entries:
        line = f"Edit {entry.number}: {ledger_tables.title_of(entry)}, {entry.state}."
        output.out.print_line(line)
        if entry.health:
            output.out.print_line(f"  {ledger_tables.health_line(entry.health)}")
    if unchanged:
        output.note(
            "1 edit says what the model says already and was left out; --force makes it all the "
            "same."
            if len(unchanged) == 1
            else f"{len(unchanged)} edits say what the model says already and were left out; "
            "--force makes them all the same."
        )
    for _, error in refused:
        output.warn(str(error))
