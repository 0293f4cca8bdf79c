"""From a request to one patch, whatever number of edits a method takes at once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack

from easyeditor.associative.keys import subject_of
from easyeditor.edits import Case, Edit, check_consistent
from easyeditor.errors import EditError
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.methods.base import Method, Need, Outcome, S
from easyeditor.patches.patch import Patch, merge
from easyeditor.patches.stack import applied

log = logging.getLogger(__name__)


def check_request(method: Method[S], cases: Sequence[Case]) -> None:
    """Whatever can be known to be wrong before any work starts.

    Raises:
        EditError: nothing to edit, edits that contradict, a case given twice.
        SubjectRequiredError: the method needs subjects and an edit has none.
    """
    check_consistent(edit for case in cases for edit in case.edits)
    if len({id(case) for case in cases}) < len(cases):
        raise EditError("The same case is requested twice; request it once.")
    if Need.SUBJECT in method.needs:
        for case in cases:
            for edit in case.edits:
                subject_of(edit)
    if not method.keeps and any(edit.keep for case in cases for edit in case.edits):
        log.warning(
            "%s has no place for prompts that are kept while an edit is made; they are left out.",
            method.name,
        )
    if method.max_batch == 1 and not method.searches_expansions:
        expanded = [edit for case in cases for edit in case.edits if edit.expansions]
        if expanded:
            raise EditError(
                f"{method.name} stores one prompt for an edit, and the edit of "
                f"{expanded[0].prompt!r} has {len(expanded[0].expansions)} more. Make it without "
                "them (no expand), or use a method that searches one value or trains on all: "
                f"{', '.join(expanding_methods())}."
            )


def expanding_methods() -> list[str]:
    """The methods that make an edit with all of its prompts as one."""
    return [name for name in METHODS if METHODS.get(name).searches_expansions]


def outcome_of(method: Method[S], lm: LM, edits: Sequence[Edit], state: S | None) -> Outcome[S]:
    """One patch for all ``edits``: at once where the method can, else one on top of the other.

    The model is bit-identical before and after.
    """
    if not method.searches_expansions:
        edits = [row for edit in edits for row in edit.rows]
    if method.max_batch is None or len(edits) == 1:
        return method.edit(lm, edits, state)
    patches: list[Patch] = []
    with ExitStack() as earlier:
        for edit in edits:
            outcome = method.edit(lm, [edit], state)
            patches.append(outcome.patch)
            state = state if outcome.state is None else outcome.state
            earlier.enter_context(applied(lm.model, outcome.patch))
    return Outcome(merge(patches), state)
