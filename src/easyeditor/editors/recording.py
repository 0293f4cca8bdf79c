"""What an editor needs of a place where its edits are written down: a ledger, on a floor above."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from easyeditor.editors.session import EditSession
from easyeditor.edits import Case
from easyeditor.errors import LedgerError
from easyeditor.model_spec import ModelSpec
from easyeditor.patches.patch import Patch
from easyeditor.registry import Registry

Keep = Callable[[Patch, Sequence[Mapping[str, Any]]], None]
"""Called with the patch that the model carries now, and its metrics: raises if it must go."""


class EditRecord(Protocol):
    """Decides whether an edit is kept, and writes it down."""

    def attach(self, session: EditSession) -> None:
        """Let the model carry the recorded edits, and the session go on from their state.

        Raises:
            LedgerError: the record is of another model, or the model carries other edits.
        """
        ...

    def recording(
        self, session: EditSession, cases: Sequence[Case], options: Mapping[str, Any]
    ) -> AbstractContextManager[Keep]:
        """The context of one edit; when it is left by an exception the model is as before.

        Raises:
            LedgerConflictError: the edit contradicts what is recorded.
            LedgerBusyError: another process is recording.
        """
        ...

    def undo(self, session: EditSession, patch: Patch) -> None:
        """Take a recorded edit back.

        Raises:
            PatchStateError: the patch is not among those that the model carries.
        """
        ...


RECORDS: Registry[Callable[[Path, Any, ModelSpec], EditRecord]] = Registry(
    "record of edits", LedgerError, {"ledger": "easyeditor.ledger.live:open_live"}
)
"""``name -> "module:function"``; the function takes a path, an ``LM`` and how it was loaded."""


def open_record(
    place: str | Path | EditRecord | None, session: EditSession, spec: ModelSpec
) -> EditRecord | None:
    """The record in ``place``, made if there is none, on the session's model, loaded by ``spec``.

    Raises:
        LedgerError: see :meth:`EditRecord.attach`; or the record's model is loaded in another way.
    """
    if isinstance(place, (str, Path)):
        place = RECORDS.get("ledger")(Path(place), session.lm, spec)
    if place is not None:
        place.attach(session)
    return place
