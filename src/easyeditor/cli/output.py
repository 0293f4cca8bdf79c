"""What the commands share to show: JSON, tables that fit the terminal, before and after."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from easyeditor.cli.app import err
from easyeditor.cli.terminal import Terminal, visible, write_json
from easyeditor.edits import Case
from easyeditor.evaluate.before_after import before_after as before_after
from easyeditor.evaluate.before_after import shown as shown
from easyeditor.evaluate.before_after import snapshot as snapshot

if TYPE_CHECKING:
    from easyeditor.lm.model import LM

out = Terminal()
LONGEST_ANSWER = 24
"""Characters of an answer that are shown beside its probability."""
GAP = "   "
"""Between the numbers of a row that is no row of a table."""
MOST_PARTS = 2
"""Tables into which one is split before it becomes a list."""
NARROWEST_TEXT = 24
"""Columns below which a column of running text is not worth a table."""


def print_json(document: Any) -> None:
    """One JSON document on stdout, and nothing else."""
    write_json(document)


def note(text: str) -> None:
    """A remark on stderr."""
    err.print(Text.assemble(("Note", "bold"), f": {visible(text)}"), soft_wrap=True)


def warn(text: str) -> None:
    """A warning on stderr."""
    err.print(Text.assemble(("Warning", "bold yellow"), f": {visible(text)}"), soft_wrap=True)


@contextmanager
def working(message: str, *, long: bool = True) -> Iterator[None]:
    """A spinner on stderr while something takes time; in a pipe one line as it begins.

    ``long``: whether it may take so long that a line in a pipe is of use.
    """
    if err.is_terminal:
        unicode = (err.encoding or "").lower().startswith("utf")
        with err.status(Text(visible(message)), spinner="dots" if unicode else "line"):
            yield
    else:
        if long:
            err.print_line(message)
        yield


def load_model(name: str, **how: Any) -> LM:
    """Load a model for reading; ``how`` are fields of ``ModelSpec``."""
    with loading(name):
        from easyeditor.lm.loading import load

        return load(name, **how)


@contextmanager
def loading(name: str) -> Iterator[None]:
    """A spinner, and none of the libraries' progress bars."""
    with working(f"loading {name} …"):
        from transformers.utils import logging as hf_logging

        hf_logging.disable_progress_bar()
        # It logs for every layer and pass that 8-bit layers read their inputs in float16.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        yield


# -- tables -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """A column of :func:`show`: running text is folded, everything else is printed whole.

    With ``head`` it names the row where the table becomes a list, in front of the first column of
    running text; ``answer`` follows that column there, behind an arrow.
    """

    name: str
    text: bool = False
    right: bool = False
    head: bool = False
    answer: bool = False

    def folds(self, cells: Sequence[Text]) -> bool:
        """Whether the cells may be broken: names such as a parameter's path have no place to."""
        return self.text and not all(c.plain.isascii() and " " not in c.plain for c in cells)


def show(
    title: str, columns: Sequence[Column], rows: Sequence[Sequence[str | Text]], mean: int = 0
) -> None:
    """Print a table, or a list where the terminal is too narrow for one.

    Columns without any content are left out; the last ``mean`` rows stand below a line.
    """
    cells = [[Text(visible(c)) if isinstance(c, str) else c for c in row] for row in rows]
    used = [i for i in range(len(columns)) if not cells or any(row[i].plain for row in cells)]
    columns, cells = [columns[i] for i in used], [[row[i] for i in used] for row in cells]
    folds = [column.folds([row[i] for row in cells]) for i, column in enumerate(columns)]
    needed = 1
    for i, column in enumerate(columns):
        width = max([len(column.name), *(row[i].cell_len for row in cells)])
        needed += 3 + (min(width, NARROWEST_TEXT) if folds[i] else width)
    if needed > out.width:
        show_list(title, columns, cells)
        return
    table = Table(title=title, title_justify="left")
    for column, folded in zip(columns, folds, strict=True):
        table.add_column(
            column.name,
            justify="right" if column.right else "left",
            no_wrap=not folded,
            overflow="fold",
        )
    for number, row in enumerate(cells):
        if mean and number == len(cells) - mean:
            table.add_section()
        table.add_row(*row)
    out.print(table)


def show_wide(title: str, head: Sequence[str], body: Sequence[Sequence[str]], labels: int) -> None:
    """Print a table of many numbers, split in two where the width asks for it, or else as a list.

    The first ``labels`` columns stand in both parts; the last of them is a number, too.
    """
    widths = [max(len(row[i]) for row in [head, *body]) + 3 for i in range(len(head))]
    parts: list[list[int]] = [[]]
    for i in range(labels, len(head)):
        needed = 1 + sum(widths[:labels]) + sum(widths[j] for j in [*parts[-1], i])
        if parts[-1] and needed > out.width:
            parts.append([])
        parts[-1].append(i)
    if len(parts) > MOST_PARTS:
        show_list(title, [Column(name, head=i < labels - 1) for i, name in enumerate(head)], body)
        return
    for part in parts:
        chosen = [*range(labels), *part]
        columns = [Column(head[i], right=i >= labels - 1) for i in chosen]
        show(title, columns, [[row[i] for i in chosen] for row in body])


def show_list(title: str, columns: Sequence[Column], rows: Sequence[Sequence[str | Text]]) -> None:
    """Each row as its name and first running text, then the other columns, each by its name."""
    out.print(Text(visible(title), style="italic"))
    first = next((column for column in columns if column.text and column.name), None)
    for row in rows:
        heads, running, others = [], [], []
        for column, content in zip(columns, row, strict=True):
            cell = Text(visible(content)) if isinstance(content, str) else content
            if not cell.plain:
                continue
            if column is first or column.answer:
                running.append(cell)
            elif column.head or not column.name:
                heads.append(cell)
            else:
                others.append(Text.assemble(f"{column.name}: ", cell))
        headline = [*heads, *([Text(" → ").join(running)] if running else [])]
        if headline:
            out.print(Text(": ").join(headline))
        for line in _lines(others, out.width):
            out.print(line)


def _lines(parts: Sequence[Text], width: int) -> list[Text]:
    """``parts`` indented, as many on a line as fit."""
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + len(GAP) + part.cell_len <= width:
            lines[-1] = Text.assemble(lines[-1], GAP, part)
        else:
            lines.append(Text.assemble("  ", part))
    return lines


# -- before and after -------------------------------------------------------------------------


def forms_of(metric: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """``(form, before, after)``: the free answers to the edited prompt as plain text and as chat.

    Empty for a model without a chat template.
    """
    before = metric["pre"].get("free_answer", {}).get("forms", {})
    after = metric["post"].get("free_answer", {}).get("forms", {})
    return [(form, before.get(form, ""), after[form]) for form in after]


def show_forms(cases: Sequence[Case], metrics: Sequence[Mapping[str, Any]]) -> None:
    """Print the answers to each edited prompt in both forms, where the model has a template."""
    rows = [
        [str(case.edit.prompt), form, " ".join(before.split()), " ".join(after.split())]
        for case, metric in zip(cases, metrics, strict=True)
        for form, before, after in forms_of(metric)
    ]
    if rows:
        columns = [Column("prompt", text=True), Column("form")]
        columns += [Column("before", text=True), Column("after", text=True)]
        show("Free answers in plain and in chat form (greedy)", columns, rows)


def show_before_after(title: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """Print the table: probabilities of the old and the new answer, then what the model writes."""
    columns = [
        Column(""),
        Column("prompt", text=True),
        Column("P(old answer)", right=True),
        Column("P(new answer)", right=True),
    ]
    rows = []
    for line in lines:
        stays = line["kind"] == "neighbour"
        arrows = _arrow(line, "old", good=stays), _arrow(line, "new", good=not stays)
        rows.append([line["kind"], line["prompt"], *arrows])
    show(title, columns, rows)
    texts = [
        [
            line["prompt"],
            " ".join(line["before"]["continuation"].split()),
            " ".join(line["after"]["continuation"].split()),
        ]
        for line in lines
    ]
    wide = [Column(name, text=True) for name in ("prompt", "before", "after")]
    if out.width >= 80:
        show("What the model writes (greedy)", wide, texts)
        return
    out.print(Text("What the model writes (greedy)", style="italic"))
    for prompt, before, after in texts:
        out.print(f"{prompt}\n  before: {before}\n  after:  {after}")


def shortened(text: str, length: int = LONGEST_ANSWER) -> str:
    """At most ``length`` characters, with an ellipsis where some are left out."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _arrow(line: Mapping[str, Any], which: str, *, good: bool) -> Text:
    before, after = line["before"][f"p_{which}"], line["after"][f"p_{which}"]
    if before is None:
        return Text("")
    style = "green" if (after >= 0.5) == good else "yellow"
    answer = visible(shortened(line[which]))
    return Text.assemble(f"{answer} {before:.3f} → ", (f"{after:.3f}", style))


def seconds_line(seconds: Mapping[str, float]) -> str:
    """``contexts 0.7 s · values 2.1 s``."""
    return " · ".join(f"{phase} {spent:.1f} s" for phase, spent in seconds.items())
