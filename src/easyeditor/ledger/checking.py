"""Which active edits still hold in the model, and which have become weaker since they were made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from easyeditor.ledger.entries import Entry
from easyeditor.ledger.health import FactScore, Health, fact_scores
from easyeditor.ledger.live import LiveLedger

WEAKER = 0.5
"""An edit that holds is called weaker when its answer's probability fell below this share of what
it was when the edit was made."""
HOLDS, WEAKENED, LOST = "holds", "weaker", "lost"


@dataclass(frozen=True, slots=True)
class CheckedEntry:
    """How an active entry stands.

    Attributes:
        number: of the entry.
        status: ``holds``, ``weaker`` or ``lost`` (the model does not say all of it any more).
        prompt: of its first fact.
        target: the answer.
        facts: how many it has.
        accuracy: share of the answers' tokens that are the most probable ones, mean over facts.
        probability: of the first fact's answer.
        probability_then: the same when the edit was made.
        rewordings: share of the tokens on its rewordings; None without any.
    """

    number: int
    status: str
    prompt: str
    target: str
    facts: int
    accuracy: float
    probability: float
    probability_then: float | None
    rewordings: float | None

    def to_json(self) -> dict[str, Any]:
        """By name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Check:
    """All active entries, and the health of the model that carries them."""

    entries: list[CheckedEntry]
    health: Health

    @property
    def lost(self) -> list[int]:
        """Numbers of the entries that do not hold."""
        return [row.number for row in self.entries if row.status == LOST]


def check(live: LiveLedger) -> Check:
    """Score every active edit, all in one batch, and measure the model's health.

    Raises:
        LedgerError: a patch file is missing or was changed.
    """
    entries = live.sync()  # others may change what is active meanwhile
    scores = fact_scores(live.lm, entries, rewordings=True)
    rows = [_checked(entry, [s for s in scores if s.number == entry.number]) for entry in entries]
    return Check(rows, live.guard.measure())


def _checked(entry: Entry, scores: list[FactScore]) -> CheckedEntry:
    facts = [row for row in scores if not row.rewording]
    others = [row.accuracy for row in scores if row.rewording]
    accuracy = sum(row.accuracy for row in facts) / len(facts)
    then = _probability_then(entry)
    status = HOLDS
    if accuracy < 1.0:
        status = LOST
    elif then is not None and facts[0].probability < WEAKER * then:
        status = WEAKENED
    return CheckedEntry(
        entry.number,
        status,
        facts[0].prompt,
        facts[0].target,
        len(facts),
        accuracy,
        facts[0].probability,
        then,
        sum(others) / len(others) if others else None,
    )


def _probability_then(entry: Entry) -> float | None:
    """Of the first fact's answer, as it was measured when the edit was made."""
    try:
        return float(entry.after[0]["rewrite_prob"]["target_new"])
    except (IndexError, KeyError, TypeError):
        return None
