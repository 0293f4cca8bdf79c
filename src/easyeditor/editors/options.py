"""What the calls of ``BaseEditor`` take beside the classic arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict, cast, get_type_hints

from easyeditor.editors.expanding import Expand
from easyeditor.editors.journal import EditJournal
from easyeditor.editors.requests import Texts, cases_of, make_cases, translated
from easyeditor.edits import Case
from easyeditor.errors import EditError, did_you_mean
from easyeditor.evaluate.query import Measures

When = Literal["each", "end", "both"]


class LedgerOptions(TypedDict, total=False):
    """What a ledger writes down of an edit beside the edit, and what it lets pass.

    Attributes:
        author: who makes it; by default ``$EASYEDITOR_AUTHOR`` or the user's name.
        reason: why, in plain words.
        supersede: take the place of active edits of the same fact.
        allow: problems that do not stand in the way: ``"duplicate"``, ``"contradiction"``,
            ``"circle"``, ``"untaken"``, ``"broken"``, ``"health"``.
        proposal: the number of the proposed edit that is carried out.
    """

    author: str
    reason: str
    supersede: bool
    allow: Sequence[str]
    proposal: int


class MeasuringOptions(LedgerOptions, total=False):
    """How a request is measured.

    Attributes:
        evaluate_when: when a sequence is measured: after ``"each"`` edit, at the ``"end"``, or
            ``"both"`` (then ``post`` is after each, ``final`` at the end:
            :func:`easyeditor.evaluate.aggregate.retention` compares them).
        measures: what is asked beside the teacher-forced scores: free answers, long
            continuations, perplexity.
        train_ds: other edits to take demonstrations from, for methods that show some.
        force: edit also what the model says already: every token of the target is its first
            choice, and the target is its whole answer. Otherwise such a case is left as it is, and
            its metrics say so under ``unchanged``. False for ``edit`` and ``batch_edit``; True for
            ``edit_dataset`` and ``edit_cases``, which measure a method on all of their cases.
        expand: make each edit with several prompts: question, chat form, rewordings
            (:class:`~easyeditor.editors.expanding.Expansion`; True: its defaults).
        free_answers: ask what the model writes, before and after (``free_answer``; True by
            default). With False a call takes about half the time on a chat model, and nothing
            tells whether the text behind an answer is still text; the unedited model is asked
            only where every token of a target is its first choice (``force``).
    """

    evaluate_when: When
    measures: Measures | None
    train_ds: Iterable[Case] | None
    force: bool
    expand: Expand
    free_answers: bool


class EditOptions(MeasuringOptions, total=False):
    """How a request is carried out and measured.

    Attributes:
        keep_original_weight: see :meth:`BaseEditor.edit`.
        verbose: log each edit's scores; True by default.
        journal: where finished edits are kept, so that a later call goes on from them.
    """

    keep_original_weight: bool
    verbose: bool
    journal: EditJournal | None


class RequestOptions(MeasuringOptions, total=False):
    """What is asked beside the classic arguments, and how it is measured.

    Attributes:
        subject: what each fact is about; needed by locate-and-edit methods.
        requests: instead of all the lists: one record per edit, with the fields of a file of edits
            (``prompt, target_new, subject, ground_truth, rephrase_prompts, locality,
            portability``).
        target_neg: what each prompt shall no longer say (:attr:`~easyeditor.edits.Edit.rejected`).
        sequential_edit: True measures at the end of the sequence, False each edit alone.
        test_generation: True measures the fluency of continuations of 100 tokens.
    """

    subject: Texts | None
    target_neg: Texts | None
    sequential_edit: bool | None
    test_generation: bool
    requests: Sequence[Mapping[str, Any]] | None


NOT_MEASURING = {"subject", "requests", "target_neg"}
"""Options that say what is asked."""


def classic_options(options: RequestOptions, keep: bool) -> tuple[RequestOptions, bool]:
    """The options under this version's names, and ``keep_original_weight``."""
    named = translated(options, keep)
    keep = named.pop("keep_original_weight")
    return cast(RequestOptions, named), keep


def how_to_edit(
    keep_original_weight: bool, verbose: bool, options: MeasuringOptions
) -> EditOptions:
    """The options of ``BaseEditor.edit_cases`` among those of a call."""
    named = {name: value for name, value in options.items() if name not in NOT_MEASURING}
    return cast(
        EditOptions, {**named, "keep_original_weight": keep_original_weight, "verbose": verbose}
    )


def refuse_ledger_options(options: Mapping[str, Any]) -> None:
    """Refuse what only a ledger understands.

    Raises:
        EditError: one of :class:`LedgerOptions` was given.
    """
    given = [name for name in get_type_hints(LedgerOptions) if options.get(name)]
    if given:
        raise EditError(
            f"{given[0]}={options[given[0]]!r} is for a ledger, and this editor has none: "
            "BaseEditor(..., ledger=path)."
        )


def refuse_unknown(options: Mapping[str, Any], known: type, also: Iterable[str] = ()) -> None:
    """Refuse what is no field of ``known``; ``also`` are arguments that are parameters.

    Raises:
        EditError: an unknown argument; names the nearest known one.
    """
    names = sorted([*get_type_hints(known), *also])
    unknown = [name for name in options if name not in names]
    if unknown:
        raise EditError(
            f"Unknown argument {unknown[0]!r}.{did_you_mean(unknown[0], names)} "
            f"Known: {', '.join(names)}."
        )


def requested_cases(lists: dict[str, Any], options: RequestOptions) -> list[Case]:
    """The cases of a call of ``BaseEditor.edit``, from its lists or from ``requests``.

    Raises:
        EditError: an unknown option, nothing to edit, or both ways at once.
    """
    refuse_unknown(options, RequestOptions, also=lists)
    lists["subject"] = options.get("subject")
    lists["rejected"] = options.get("target_neg")
    requests = options.get("requests")
    if requests is None:
        for name in ("prompts", "target_new"):
            if lists[name] is None:
                raise EditError(f"There is nothing to edit: give {name} (or requests=[...]).")
        return make_cases(**lists)
    given = [name for name, value in lists.items() if value is not None]
    if given:
        raise EditError(f"Give requests, or lists, not both ({', '.join(given)} given, too).")
    return cases_of(requests)
