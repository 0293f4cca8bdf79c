"""From a request to one patch, whatever number of edits a method takes at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack

from easyeditor.associative.keys import subject_of
from easyeditor.edits import Case, Edit, check_consistent
from easyeditor.errors import EditError
from easyeditor.lm.model import LM
from easyeditor.methods.base import Method
from easyeditor.patches.patch import Patch, merge
from easyeditor.patches.stack import applied


def check_request(method: Method, cases: Sequence[Case]) -> None:
    """Whatever can be known to be wrong before any work starts.

    Raises:
        EditError: nothing to edit, edits that contradict, a case given twice.
        SubjectRequiredError: the method needs subjects and an edit has none.
    """
    check_consistent(edit for case in cases for edit in case.edits)
    if len({id(case) for case in cases}) < len(cases):
        raise EditError("The same case is requested twice; request it once.")
    if method.needs_subject:
        for case in cases:
            for edit in case.edits:
                subject_of(edit)


def give_corpus(method: Method, cases: Iterable[Case]) -> None:
    """Hand a training set to a method that takes demonstrations from one.

    Raises:
        EditError: this method takes none.
        DataError: it is empty, or a record cannot be read.
    """
    take = getattr(method, "use_corpus", None)
    if take is None:
        raise EditError(f"{method.name} takes no train_ds: it learns from the edits alone.")
    take(cases)


def make_patch(method: Method, lm: LM, edits: Sequence[Edit]) -> Patch:
    """One patch for all ``edits``: at once where the method can, else one on top of the other.

    The model is bit-identical before and after.
    """
    if method.max_batch is None or len(edits) == 1:
        return method.edit(lm, edits)
    made: list[Patch] = []
    with ExitStack() as carried:
        for edit in edits:
            made.append(method.edit(lm, [edit]))
            carried.enter_context(applied(lm.model, made[-1]))
    return merge(made)
