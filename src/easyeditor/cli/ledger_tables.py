"""What ``easyedit ledger`` prints: entries, one entry, a check, findings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from easyeditor.cli import output
from easyeditor.cli.output import Column, shortened
from easyeditor.cli.terminal import count
from easyeditor.ledger.entries import Entry, EntryState, Event

if TYPE_CHECKING:
    from easyeditor.ledger.checking import Check
    from easyeditor.ledger.verifying import Finding

LONGEST_LINE = 60


def show_entries(title: str, entries: Sequence[Entry]) -> None:
    """One row per entry."""
    columns = [
        Column("no", right=True),
        Column("state"),
        Column("prompt", text=True),
        Column("target", text=True, answer=True),
        Column("method"),
        Column("by", text=True),
        Column("when"),
        Column("why", text=True),
    ]
    rows = []
    for entry in entries:
        edit, facts = entry.edits[0], len(entry.edits)
        more = f" (+{facts - 1})" if facts > 1 else ""
        state = str(entry.state)
        if entry.state is EntryState.SUPERSEDED:
            state += f" by {entry.superseded_by}"
        rows.append(
            [
                str(entry.number),
                state,
                f"{edit.prompt}{more}",
                edit.target,
                entry.method,
                entry.author,
                entry.created[:10],
                entry.reason,
            ]
        )
    output.show(title, columns, rows)


def show_entry(entry: Entry, history: Sequence[Event]) -> None:
    """Everything about one entry."""
    line = output.out.print_line
    line(f"Edit {entry.number}: {entry.state}")
    line(f"By {entry.author}, {entry.created}: {entry.reason or 'no reason given'}")
    for edit in entry.edits:
        subject = f" (subject: {edit.subject})" if edit.subject else ""
        line(f"  {edit.prompt} → {edit.target}{subject}")
    columns = [
        Column("score", text=True),
        Column("before", right=True),
        Column("after", right=True),
    ]
    for i, after in enumerate(entry.after):
        before = _flat(entry.before[i]) if i < len(entry.before) else {}
        rows = [[name, _number(before.get(name)), _number(v)] for name, v in _flat(after).items()]
        output.show(f"Scores of {entry.edits[i].prompt}", columns, rows)
    if entry.health:
        line(f"Health then: {health_line(entry.health)}")
    settings = ", ".join(f"{name}={value}" for name, value in entry.settings.items())
    output.out.print(f"Made by {entry.method}: {settings}")
    line(f"Patch: {entry.patch or 'not computed yet'}")
    columns = [Column("when", head=True), Column("event")]
    columns += [Column("by", text=True), Column("why", text=True)]
    output.show("History", columns, [[e.at, e.event, e.author, e.reason] for e in history])


def _flat(scores: Any, prefix: str = "") -> dict[str, float]:
    """Numbers of nested scores by a path of names."""
    result: dict[str, float] = {}
    for name, value in scores.items() if isinstance(scores, dict) else ():
        if isinstance(value, dict):
            result |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            result[f"{prefix}{name}"] = float(value)
    return result


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def health_line(health: dict[str, Any]) -> str:
    """Perplexity and divergence in one line."""
    ratio, perplexity = health["perplexity_ratio"], health["perplexity"]
    kl = health["kl"]
    distance = "no number of" if kl is None or not math.isfinite(kl) else f"{kl:.4f}"
    parts = [f"predictions {distance} nats per token from the unedited model's"]
    if ratio is not None and perplexity is not None and perplexity == perplexity:
        parts.insert(0, f"perplexity {perplexity:.2f} ({ratio:.4f} times the unedited model's)")
    return ", ".join(parts)


def show_check(check: Check) -> None:
    """One row per active entry, and a summary."""
    columns = [
        Column("no", right=True),
        Column("status"),
        Column("prompt", text=True),
        Column("target", text=True, answer=True),
        Column("right", right=True),
        Column("P then → now", right=True),
        Column("rewordings", right=True),
    ]
    rows = [
        [
            str(row.number),
            row.status,
            row.prompt + (f" (+{row.facts - 1})" if row.facts > 1 else ""),
            row.target,
            f"{row.accuracy:.0%}",
            f"{_number(row.probability_then)} → {_number(row.probability)}",
            "" if row.rewordings is None else f"{row.rewordings:.0%}",
        ]
        for row in check.entries
    ]
    if rows:
        output.show("Active edits", columns, rows)
    states = [row.status for row in check.entries]
    words = {"holds": "holding", "weaker": "weaker than when made", "lost": "lost"}
    parts = [f"{states.count(s)} {word}" for s, word in words.items() if s in states]
    output.out.print_line(f"{count(len(rows), 'active edit')}: {', '.join(parts) or 'nothing'}.")
    output.out.print_line(f"Health: {health_line(check.health.to_json())}")


def show_findings(findings: Sequence[Finding]) -> None:
    """One line each."""
    for finding in findings:
        output.warn(f"{finding.problem}: {finding.message}")


def title_of(entry: Entry) -> str:
    """Prompt and target in one short line."""
    edit = entry.edits[0]
    return f"{shortened(str(edit.prompt), LONGEST_LINE)!r} → {shortened(edit.target)!r}"
