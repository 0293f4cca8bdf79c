"""How one edit is recorded: what the caller wants, its row, and what is said when it must go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from easyeditor.data.write import record_of
from easyeditor.edits import Case
from easyeditor.errors import LedgerError, LedgerHealthError, did_you_mean
from easyeditor.evaluate.degeneration import answered
from easyeditor.ledger.conflicts import Problem
from easyeditor.ledger.database import as_json, update
from easyeditor.ledger.entries import EntryState, current_user
from easyeditor.ledger.health import Health
from easyeditor.ledger.ledger import set_state
from easyeditor.patches.patch import Patch

UNSAID = "the model does not say the new answer, or does not end it there"


@dataclass(frozen=True, slots=True)
class Wanted:
    """How one edit is to be recorded.

    Attributes:
        author: who makes it; by default the user.
        reason: why.
        supersede: take the place of active edits of the same fact.
        allow: problems that do not stand in the way.
        proposal: the number of the proposed entry that is carried out; 0: a new one.
    """

    author: str = ""
    reason: str = ""
    supersede: bool = False
    allow: frozenset[Problem] = frozenset()
    proposal: int = 0

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Wanted:
        """From the options of an editor's call.

        Raises:
            LedgerError: ``allow`` names no problem.
        """
        return cls(
            author=options.get("author", "") or current_user(),
            reason=options.get("reason", ""),
            supersede=bool(options.get("supersede", False)),
            allow=problems_named(options.get("allow", ())),
            proposal=options.get("proposal", 0),
        )


def problems_named(names: Sequence[str]) -> frozenset[Problem]:
    """The problems of these names.

    Raises:
        LedgerError: there is none of a name.
    """
    known = {str(problem): problem for problem in Problem}
    for name in [names] if isinstance(names, str) else names:
        if str(name) not in known:
            raise LedgerError(
                f"allow={str(name)!r}: there is no such problem.{did_you_mean(str(name), known)} "
                f"Known: {', '.join(known)}."
            )
    return frozenset(known[str(name)] for name in ([names] if isinstance(names, str) else names))


def row_of(
    cases: Sequence[Case], patch: Patch, metrics: Sequence[Mapping[str, Any]], health: Health
) -> dict[str, Any]:
    """The fields of an entry that say what was done, and with what result."""
    return {
        "request": as_json([record_of(case) for case in cases]),
        "method": patch.info.method,
        "settings": as_json(patch.info.hyperparams),
        "before": as_json([metric["pre"] for metric in metrics]),
        "after": as_json([_after(metric) for metric in metrics]),
        "health": as_json(health.to_json()),
    }


def _after(metric: Mapping[str, Any]) -> Mapping[str, Any]:
    scores: Mapping[str, Any] = metric.get("final") or metric["post"]
    return scores


def untaken(metrics: Sequence[Mapping[str, Any]]) -> str:
    """A clause that says how many facts the model does not say after all; empty where it does.

    The rule is that of :func:`easyeditor.evaluate.degeneration.answered`.
    """
    missing = sum(not answered(_after(metric)) for metric in metrics)
    return f"{missing} of {len(metrics)} facts did not take: {UNSAID}" if missing else ""


def mark_superseded(connection: Any, replaced: Sequence[int], number: int, wanted: Wanted) -> None:
    """Let entry ``number`` take the place of others, inside a transaction."""
    for former in replaced:
        update(connection, former, {"superseded_by": number})
        note = wanted.reason or f"by edit {number}"
        set_state(connection, former, EntryState.SUPERSEDED, wanted.author, "superseded", note)


def rolled_back(
    number: int, state: EntryState, problems: Mapping[Problem, str], health: Health
) -> LedgerHealthError:
    """The error for an edit that was beyond the limits and is off the model again, in ``state``."""
    stays = "is kept as a proposal" if state is EntryState.PROPOSED else f"stays {state}"
    ways = " ".join(f"--allow {problem}" for problem in problems)
    return LedgerHealthError(
        f"Edit {number} was made and rolled back to the bit: {'; '.join(problems.values())}. It "
        f"{stays}. Ways out: other settings or another method, facts of one subject made in one "
        f"batch, or put it in all the same: easyedit ledger redo LEDGER {number} {ways}.",
        number,
        health,
    )
