"""Running text that comes with the package, for statistics that need no download."""

from __future__ import annotations

from collections.abc import Iterator

from easyeditor.data.edits_file import EditsDataset
from easyeditor.data.fetch import SHIPPED
from easyeditor.data.heldout import heldout_text

STATEMENTS_PER_PARAGRAPH = 12
STRIDE = 601
"""Statements are taken in this step, so that every paragraph is about many things; a prime."""


def own_texts() -> Iterator[str]:
    """Short documents, about 30,000 tokens: a page of prose, and every fact of ``worldfacts``."""
    yield from filter(None, heldout_text().splitlines())
    yield from _statements()


def own_paragraphs() -> Iterator[str]:
    """The same text as paragraphs of about 150 tokens, of prose and of many facts in turn.

    Position matters where a model has no BOS token: the first token of a text is an attention sink
    with keys of its own, and in texts of one sentence it would be a tenth of all tokens.
    """
    prose = list(filter(None, heldout_text().splitlines()))
    statements = list(_statements())
    mixed = [statements[i * STRIDE % len(statements)] for i in range(len(statements))]
    starts = range(0, len(mixed), STATEMENTS_PER_PARAGRAPH)
    every = max(1, len(starts) // len(prose))
    for i, start in enumerate(starts):
        if i % every == 0 and prose:
            yield prose.pop(0)
        yield " ".join(mixed[start : start + STATEMENTS_PER_PARAGRAPH])
    yield from prose


def _statements() -> Iterator[str]:
    for case in EditsDataset(SHIPPED["worldfacts"]):
        yield f"{case.edit.prompt} {case.edit.ground_truth}."
        for probe in case.probes:
            if probe.group == "rephrase":
                yield f"{probe.prompt} {case.edit.ground_truth}."
            elif probe.group == "locality":
                yield f"{probe.prompt} {probe.answers[0]}."
