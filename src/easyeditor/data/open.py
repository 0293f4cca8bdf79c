"""Opens a dataset of any kind by file or by name, and describes what it holds."""

from __future__ import annotations

import inspect
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from easyeditor.data import DATASETS
from easyeditor.data.dataset import CaseDataset
from easyeditor.data.fetch import names, place_of
from easyeditor.data.fields import kind_of
from easyeditor.data.multimodal import MultimodalDataset
from easyeditor.data.records import Records
from easyeditor.data.write import record_of
from easyeditor.edits import Case
from easyeditor.errors import DataError, ImageError, did_you_mean

OF_EDIT, OF_CASE = ("subject", "ground_truth"), ("also", "generation", "references")
MOST_PROBLEMS = 5
"""So many records with unreadable images are named in one error."""
LOOKED_AT = 20  # records that may have to be read to tell one kind from another


def open_dataset(
    name_or_path: str | os.PathLike[str], size: int | None = None, **options: Any
) -> CaseDataset:
    """Open a file of edits, its kind recognised by its fields, or a dataset known by name.

    Names: ``worldfacts`` ships with the package; ``counterfact``, ``zsre``, ``knowedit/wikibio``
    and the others of ``easyedit data ls`` are fetched once into the user's cache. The trap: a file
    in the working folder goes before a name.

    Args:
        name_or_path: the file or the name.
        size: use only the first so many records.
        options: what the kind takes, e.g. ``distracting=True`` for CounterFact.

    Raises:
        DataError: no such file or name, a kind nobody knows, an option the kind does not have, a
            dataset that cannot be fetched.
    """
    known = names()
    name = str(name_or_path)
    if name in known and not Path(name).is_file():
        path = place_of(name)
        if not path.is_file():
            raise DataError(f"{name} belongs to the package but is missing; install it again.")
    else:
        path = Path(name)
        if not path.exists() and not path.suffix:
            raise DataError(
                f"No dataset {name!r}, neither a file nor a name.{did_you_mean(name, known)} "
                f"Names: {', '.join(known)}."
            )
    kind = recognise(path)
    allowed = list(inspect.signature(kind).parameters)[2:]  # after path and size
    for option in options:
        if option not in allowed:
            raise DataError(
                f"{kind.__name__} has no option {option!r}.{did_you_mean(option, allowed)} It "
                f"takes {', '.join(allowed)}."
            )
    return kind(path, size=size, **options)


def recognise(path: str | os.PathLike[str]) -> type[CaseDataset]:
    """The kind of dataset a file holds, recognised by the fields of its first records.

    Raises:
        DataError: the file cannot be read, or no kind knows its fields.
    """
    records = Records(path, single=True)
    first = records[0]
    if not isinstance(first.value, Mapping):
        raise DataError(
            f"{records.file}, {records.place(first)}: a record must hold named fields, not "
            f"{kind_of(first.value)}."
        )
    kinds: list[type[CaseDataset]] = [DATASETS.get(name) for name in DATASETS]
    for value in _values(records):
        for kind in kinds[:-1]:
            if kind.recognises(value):
                return kind
    if kinds[-1].recognises(first.value):
        return kinds[-1]
    raise DataError(
        f"{records.file}, {records.place(first)}: no kind of dataset has the fields "
        f"{', '.join(map(str, first.value)) or '(none)'}. Known: {', '.join(DATASETS)} (easyedit "
        "data ls); a plain record has prompt and target_new."
    )


def _values(records: Records) -> list[Mapping[str, Any]]:
    """Several records, as the first of some files fits more than one kind."""
    values: list[Mapping[str, Any]] = []
    with suppress(DataError):  # raised again when the record is reached
        values.extend(r.value for r in islice(records, LOOKED_AT) if isinstance(r.value, Mapping))
    return values


def checked_cases(dataset: CaseDataset) -> list[Case]:
    """All cases of a dataset, after every image was opened once.

    Raises:
        DataError: a record that cannot be read, or images that cannot: the first records that have
            such, with what is wrong, and how many there are.
    """
    if isinstance(dataset, MultimodalDataset):
        problems = dataset.problems()
    else:
        problems = {i: reason for i, case in enumerate(dataset) if (reason := _unreadable(case))}
    if problems:
        shown = [f"{dataset.place(i)}: {problems[i]}" for i in sorted(problems)[:MOST_PROBLEMS]]
        more = len(problems) - len(shown)
        raise DataError(
            f"{dataset.path}: images of {len(problems)} of {len(dataset)} records cannot be read. "
            + " ".join(shown)
            + (f" (and {more} more)" if more else "")
            + " Put the images there, or leave these records out."
        )
    return list(dataset)


def _unreadable(case: Case) -> str:
    """Why an image of a case cannot be read; empty where all can, or it has none."""
    from easyeditor.lm.image_files import open_image  # torch, which files of text do without

    prompts = [prompt for edit in case.edits for prompt in (edit.prompt, *edit.keep)]
    prompts += [probe.prompt for probe in case.probes]
    for image in {image: None for prompt in prompts for image in prompt.images}:
        try:
            open_image(image)
        except ImageError as error:
            return str(error)
    return ""


def describe(dataset: CaseDataset, examples: int = 2) -> dict[str, Any]:
    """What a dataset holds, as plain data; reads every case.

    Raises:
        DataError: a record that cannot be read.
    """
    cases = 0
    has: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    shown: list[dict[str, Any]] = []
    for case in dataset:
        cases += 1
        has.update(name for name in OF_EDIT if getattr(case.edit, name))
        has.update(name for name in OF_CASE if getattr(case, name))
        has.update({probe.kind for probe in case.probes})
        kinds.update(probe.kind for probe in case.probes)
        if len(shown) < examples:
            shown.append(record_of(case))
    return {
        "path": str(dataset.path),
        "kind": dataset.name,
        "title": dataset.title,
        "cases": cases,
        "with": {name: has[name] for name in (*OF_EDIT, *OF_CASE)},
        "probes": {kind: {"cases": has[kind], "probes": kinds[kind]} for kind in sorted(kinds)},
        "examples": shown,
    }
