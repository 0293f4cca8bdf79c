"""Windows of a long target: several (key, value) pairs for one edit, one per window.

One vector at one token cannot hold a paragraph. So the target is cut into windows of equal length;
the value of a window is searched at the last token before it, behind the question and the *true*
windows before (AnyEdit, arXiv 2502.05628). The vectors of earlier windows stay added meanwhile, and
all pairs of a text are written in one solve. The trap: neighbouring tokens of one text have similar
keys, so the keys of its other tokens join that solve with a residual of zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from easyeditor.associative.keys import fact_at, subject_of, subject_rows
from easyeditor.edits import Edit
from easyeditor.lm.hooks import reading_inputs, stopping
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Row

MAX_TEXT_KEYS = 1024
"""Protected keys in one solve, which is cubic in their number."""


@dataclass(frozen=True, slots=True)
class Window:
    """Part of an edit's target that has a key and a value of its own.

    Attributes:
        edit: number of the edit.
        first, end: its tokens among those of the target.
        at_subject: read at the subject's last token; else at the last token before the window.
    """

    edit: int
    first: int
    end: int
    at_subject: bool = False


def target_row(lm: LM, edit: Edit, prefix: str = "", *, append_eos: bool = False) -> Row:
    """``prefix + prompt + target``, with the subject's place where the edit names one."""
    row = lm.text.row(edit.prompt, edit.target, subject=edit.subject, prefix=prefix)
    return lm.text.with_end(row) if append_eos else row


def windows_of(
    lm: LM,
    edits: Sequence[Edit],
    size: int | None,
    *,
    append_eos: bool = False,
    at_subject: bool = True,
) -> list[Window]:
    """The windows of all edits: the first of each, in order, then the second of each that has one.

    Args:
        lm: the model.
        edits: what is cut.
        size: target tokens in a window; None: the whole target is one.
        append_eos: whether the targets end with the end-of-sequence token.
        at_subject: whether the first window is read at the subject.
    """
    lengths = [len(target_row(lm, e, append_eos=append_eos).target) for e in edits]
    step = size or max(lengths)
    return [
        Window(i, first, min(first + step, lengths[i]), at_subject and first == 0)
        for first in range(0, max(lengths), step)
        for i in range(len(edits))
        if first < lengths[i]
    ]


def window_rows(
    lm: LM, edit: Edit, window: Window, contexts: Sequence[str], *, append_eos: bool = False
) -> list[Row]:
    """The tokens up to where the window is read, for each context.

    ``subject_last`` of a row is that position, as of
    :func:`~easyeditor.associative.keys.subject_rows`.
    """
    if window.at_subject:
        return subject_rows(lm, edit, contexts)
    rows = []
    for context in contexts:
        row = target_row(lm, edit, context, append_eos=append_eos)
        at = read_at(lm, row, window)
        rows.append(Row(row.ids[: at + 1], (), at))
    return rows


def read_at(lm: LM, row: Row, window: Window) -> int:
    """The position of ``row``, of the whole text, where the window is read."""
    return fact_at(lm, row) if window.at_subject else row.prompt_length + window.first - 1


def other_rows(
    lm: LM, edits: Sequence[Edit], windows: Sequence[Window], *, append_eos: bool = False
) -> list[tuple[Row, list[int]]]:
    """The text of each edit of several windows, and the positions that no window is read at.

    At most :data:`MAX_TEXT_KEYS` positions, spread evenly. An edit of one window has none: it is
    made as without windows.
    """
    several = {window.edit for window in windows if window.first}
    result = []
    for i in sorted(several):
        row = target_row(lm, edits[i], append_eos=append_eos)
        taken = {read_at(lm, row, window) for window in windows if window.edit == i}
        free = [at for at in range(len(row.ids)) if at not in taken]
        step = max(1, -(-len(free) * len(several) // MAX_TEXT_KEYS))
        result.append((row, free[::step]))
    return result


def other_keys(lm: LM, layer: int, rows: Sequence[tuple[Row, list[int]]]) -> torch.Tensor:
    """The inputs of a layer's down-projection at the positions of these rows: ``(n, d_in)``."""
    projection = lm.down_map(layer)
    keys = []
    with lm.at_rest(), torch.no_grad():
        for row, positions in rows:  # few and long: nothing is gained by batching
            batch = lm.pad([row.ids])
            with reading_inputs([projection.module], [projection.keys]) as inputs, stopping():
                lm.call(batch)
            seen = inputs[0]
            assert seen is not None
            keys.append(seen.view(-1, seen.shape[-1])[positions].float())
    return torch.cat(keys)


def check_subjects(edits: Sequence[Edit], *, at_subject: bool) -> None:
    """Check that every edit names a subject, where facts are read at it.

    Raises:
        SubjectRequiredError: one does not.
    """
    for edit in edits if at_subject else ():
        subject_of(edit)
