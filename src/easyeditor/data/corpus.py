"""Running text that comes with the package, for statistics of models that write none."""

from __future__ import annotations

from collections.abc import Iterator

from easyeditor.data.edits_file import EditsDataset
from easyeditor.data.fetch import SHIPPED
from easyeditor.data.heldout import heldout_text


def own_texts() -> Iterator[str]:
    """Short documents, about 30,000 tokens: a page of prose, and every fact of ``worldfacts``."""
    yield from filter(None, heldout_text().splitlines())
    for case in EditsDataset(SHIPPED["worldfacts"]):
        yield f"{case.edit.prompt} {case.edit.ground_truth}."
        for probe in case.probes:
            if probe.group == "rephrase":
                yield f"{probe.prompt} {case.edit.ground_truth}."
            elif probe.group == "locality":
                yield f"{probe.prompt} {probe.answers[0]}."
