"""What the page shows, as HTML: messages, before and after, edits, code. Every text is escaped."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from easyeditor.cli.verdict import failures
from easyeditor.display import BAD, GOOD, Html, bar, bar_pair, escaped, table_html
from easyeditor.edits import Case
from easyeditor.evaluate.side_effects import Shift
from easyeditor.web.recipes import Recipe
from easyeditor.web.workspace import AppliedEdit, Outcome

SHOWN_SHIFTS = 8
"""Facts of the list of what else moved."""
SHOWN_EDITS = 100
"""Rows of the table of many edits."""
_NUMBERS = count(1)


def problem(text: str) -> str:
    """A message that says what was wrong."""
    return _ending("alert", "ee-problem", text)


def remark(text: str) -> str:
    """A message that says what was done."""
    return _ending("status", "ee-done", text)


def _ending(role: str, kind: str, text: str) -> str:
    """How work ended; numbered, so that the same words said again are a new message."""
    number = f"data-number='{next(_NUMBERS)}'"
    return f"<div role='{role}' class='ee-message {kind}' {number}>{escaped(text)}</div>"


def hint(text: str) -> str:
    """A message that says what can be done."""
    return f"<div role='note' class='ee-message'>{escaped(text)}</div>"


def working(text: str) -> str:
    """How far the work is."""
    return f"<div role='status' class='ee-message ee-working'>{escaped(text or 'working …')}</div>"


def code(recipe: Recipe) -> str:
    """Python and the command, one below the other, as Markdown."""
    fence = "`" * max(3, _longest_fence(recipe.python + recipe.command) + 1)
    python, command = recipe.python.rstrip(), recipe.command.rstrip()
    return f"{fence}python\n{python}\n{fence}\n\n{fence}bash\n{command}\n{fence}\n"


def picture(title: str, content: bytes) -> str:
    """A PNG as part of the page."""
    data = b64encode(content).decode("ascii")
    return (
        f"<img alt='{escaped(title)}' style='max-width:100%;margin:8px 0;background:#fff' "
        f"src='data:image/png;base64,{data}'>"
    )


def _longest_fence(text: str) -> int:
    longest = run = 0
    for sign in text:
        run = run + 1 if sign == "`" else 0
        longest = max(longest, run)
    return longest


def verdict(outcome: Outcome, *, batch: bool) -> str:
    """Whether the edits took, and why not."""
    metrics = outcome.result.metrics
    known = sum("unchanged" in metric for metric in metrics)
    if outcome.applied is None:
        return remark(
            "The model says so already; nothing was changed. Tick “edit also what the model says "
            "already” to make the edit all the same."
        )
    sentences = failures(outcome.cases, metrics, batch)
    total = len(metrics)
    notes = list(dict.fromkeys(note for metric in metrics for note in metric.get("notes", ())))
    more = [f"{known} of {total} were said already and left out."] if known else []
    seconds = ", ".join(f"{phase} {spent:.1f} s" for phase, spent in outcome.seconds.items())
    if sentences:
        shown = sentences[:5] + [f"… and {len(sentences) - 5} more."] * (len(sentences) > 5)
        return problem(" ".join([*shown, *more, *notes[:5]]))
    took = "The edit took." if total == 1 else f"All {total} edits took."
    return remark(" ".join([took, *more, *notes[:5], f"Seconds: {seconds}."]))


def before_and_after(lines: Sequence[Mapping[str, Any]]) -> str:
    """Probabilities as pairs of bars, before above after, and what the models write."""
    rows = []
    for line in lines:
        stays = line["kind"] == "neighbour"
        before, after = line["before"], line["after"]
        new, old = escaped(line["new"]), escaped(line["old"])
        rows.append(
            [
                Html(f"<small>{escaped(line['kind'])}</small><br>{escaped(line['prompt'])}"),
                Html("<br>before<br>after"),
                _bars(new, before["p_new"], after["p_new"], rises=not stays or new == old),
                _bars(old, before["p_old"], after["p_old"], rises=stays),
                Html(
                    f"<br>{escaped(before['continuation'].strip())}<br>"
                    f"<b>{escaped(after['continuation'].strip())}</b>"
                ),
            ]
        )
    head = ["", "", "P(new answer)", "P(old answer)", "the model writes"]
    return table_html("", head, rows)


def _bars(answer: str, before: float | None, after: float | None, *, rises: bool) -> Html:
    """The answer above the bars of its probability before and after."""
    pair = bar_pair(before, after, rises=rises)
    return Html(f"<small>{answer}</small><br>{pair}" if pair.markup else "")


def what_else_moved(shifts: Sequence[Shift]) -> str:
    """The facts that moved most, of those that the edit is not about."""
    if not shifts:
        return ""
    changed = sum(not shift.same for shift in shifts)
    title = (
        f"What else moved: {changed} of {len(shifts)} facts that no edit is about have "
        "another first choice"
    )
    rows = [
        [
            shift.prompt,
            shift.answer,
            bar(shift.before),
            bar(shift.after, GOOD if shift.same else BAD),
            "as before" if shift.same else "another answer",
        ]
        for shift in shifts[:SHOWN_SHIFTS]
    ]
    return table_html(title, ["prompt", "answer", "before", "after", "first choice"], rows)


def many_edits(cases: Sequence[Case], metrics: Sequence[Mapping[str, Any]]) -> str:
    """One row per edit of a table or file: probabilities, and the free answer after it."""
    rows = []
    for case, metric in zip(cases, metrics, strict=True):
        before, after = metric["pre"], metric["post"]
        rows.append(
            [
                str(case.edit.prompt),
                case.edit.target,
                bar_pair(
                    before["rewrite_prob"]["target_new"],
                    after["rewrite_prob"]["target_new"],
                    rises=True,
                ),
                after.get("free_answer", {}).get("text", "").strip(),
            ]
        )
    head = ["prompt", "target", "P(target) before, after", "the model writes"]
    return table_html("Edits", head, rows, most=SHOWN_EDITS)


def edit_list(edits: Sequence[AppliedEdit]) -> str:
    """What the window's model carries."""
    if not edits:
        return hint("No edit is applied: the edited model is the unedited one.")
    rows = [
        [
            str(applied.number),
            applied.patch.info.method,
            str(edit.prompt),
            edit.ground_truth or "",
            edit.target,
        ]
        for applied in edits
        for edit in applied.patch.info.edits
    ]
    return table_html("Applied edits, oldest first", ["", "method", "prompt", "old", "new"], rows)
