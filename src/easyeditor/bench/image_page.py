"""The page of a report that shows the images of the cases, and what was answered about them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

from easyeditor.bench.results import Record, Run
from easyeditor.display import Html, escaped, table_html
from easyeditor.edits import Prompt, as_prompt
from easyeditor.errors import ImageError, MissingExtraError
from easyeditor.evaluate.before_after import shown_apart
from easyeditor.lm.image_files import open_image

THUMBNAIL = 96
"""Pixels of the longer side of a picture on the page."""
MOST_CASES = 100
"""So many cases of a run are on the page; the tables have all."""
STYLE = "body{font:14px sans-serif;margin:2em}td{max-width:22em}"


def image_page(runs: Sequence[Run]) -> str | None:
    """A page of HTML by itself, or None where no prompt of the runs has an image.

    Of each run a table: a row for every prompt about images, with thumbnails, what is wanted, and
    for each method the free answer after the edit, or, where none was asked for, the share of
    right tokens. The trap: the run's files hold paths and digests; an image that is gone or has
    changed is named and not shown.
    """
    tables = []
    for run in runs:
        rows = list(_rows(run))
        if rows:
            head = ("case", "asked", "picture", "prompt", "wanted", *run.records)
            tables.append(table_html(run.name, head, rows, most=len(rows)))
    if not tables:
        return None
    body = "\n".join(tables)
    return (
        f"<!DOCTYPE html>\n<html><head><meta charset='utf-8'><title>Images</title><style>{STYLE}"
        f"</style></head><body>\n{body}\n</body></html>\n"
    )


def _rows(run: Run) -> Iterator[list[object]]:
    by_method = {
        label: {record["position"]: record for record in stages.get("final") or stages["post"]}
        for label, stages in run.records.items()
    }
    for position in sorted({p for records in by_method.values() for p in records})[:MOST_CASES]:
        records = {label: rows.get(position) for label, rows in by_method.items()}
        first = next(record for record in records.values() if record is not None)
        edit = first.get("requested_rewrite")
        if edit is None:  # of a run that did not record it
            continue
        questions = [("edit", as_prompt(edit["prompt"]), str(edit["target_new"]))]
        for probe in edit["probes"]:
            stays = probe["kind"].startswith("locality")
            wanted = "as before" if stays else str(probe["answers"][0])
            questions.append((probe["kind"], as_prompt(probe["prompt"]), wanted))
        keys = shown_apart(prompt for _, prompt, _ in questions)
        for kind, prompt, wanted in questions:
            if prompt.images:
                answers = [_answer(record, kind, keys[prompt]) for record in records.values()]
                yield [first["case_id"], kind, _thumbnails(prompt), prompt.text, wanted, *answers]


def _answer(record: Record | None, kind: str, key: str) -> object:
    """The free answer, else of the edit's own prompt its share of right tokens."""
    if record is None:
        return None
    answers = record["texts"].get("answers", {})
    if key in answers:
        return answers[key].strip()
    share: Any = record["post"].get("rewrite_acc") if kind == "edit" else None
    return None if share is None else f"{100 * share:.0f} %"


def _thumbnails(prompt: Prompt) -> Html:
    return Html(" ".join(map(_thumbnail, prompt.images)))


def _thumbnail(image: Any) -> str:
    try:
        picture = open_image(image)
    except (ImageError, MissingExtraError):
        return f"({escaped(image.path)}: not there)"
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    return f"<img alt='{escaped(image.path)}' src='data:image/png;base64,{data}'>"
