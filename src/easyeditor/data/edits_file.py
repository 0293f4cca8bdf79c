"""A plain file of edits: JSON, JSONL or CSV with the names of ``editor.edit``'s arguments."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from easyeditor.edits import Case, Edit, Probe
from easyeditor.errors import DataError, EasyEditError, did_you_mean

FIELDS = {
    "case_id": "id",
    "id": "id",
    "prompt": "prompt",
    "prompts": "prompt",
    "target_new": "target",
    "target": "target",
    "subject": "subject",
    "ground_truth": "ground_truth",
    "rephrase_prompts": "rephrase",
    "rephrase_prompt": "rephrase",
    "rephrase": "rephrase",
    "locality_inputs": "locality",
    "locality": "locality",
    "portability_inputs": "portability",
    "portability": "portability",
}
ARROW = "=>"


def read_cases(path: str | Path) -> list[Case]:
    """Read a file of edits into cases.

    JSON holds a list of records (or one); JSONL one per line; CSV one per row. A record has
    ``prompt``,
    ``target_new`` and, if it likes, ``subject``, ``ground_truth``, ``rephrase_prompts`` (a text or
    a list),
    ``locality`` and ``portability``: a list of ``{"prompt", "answer"}``, of ``"prompt => answer"``
    texts, or ``{name: {"prompt", "ground_truth"}}`` as for ``editor.edit``.

    Raises:
        DataError: names the file, the record (for JSONL and CSV its line) and what is wrong.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"No file of edits {str(path)!r}.")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{file} cannot be read as UTF-8 text: {error}.") from None
    cases: list[Case] = []
    for place, record in _records(file, text):
        try:
            cases.append(case_of(record, default_id=str(len(cases))))
        except EasyEditError as error:
            raise DataError(f"{file}, {place}: {error}") from None
    if not cases:
        raise DataError(f"{file} holds no edits.")
    return cases


def _records(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    suffix = file.suffix.lower()
    if suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        for row in _rows(file, reader):
            if None in row:
                raise DataError(f"{file}, line {reader.line_num}: more cells than columns.")
            filled = {key: value for key, value in row.items() if value not in (None, "")}
            yield f"line {reader.line_num}", filled
    elif suffix == ".jsonl":
        # split("\n"), not splitlines(): U+2028 inside a string is not the end of a record.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"line {number}", _json(file, line, f"line {number}")
    elif suffix == ".json":
        data = _json(file, text, "the file")
        for number, record in enumerate(data if isinstance(data, list) else [data], 1):
            yield f"record {number}", record
    else:
        raise DataError(f"{file}: edits are read from .json, .jsonl or .csv, not {suffix!r}.")


def _rows(file: Path, reader: csv.DictReader[str]) -> Iterator[dict[Any, Any]]:
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num + 1}: {error}.") from None


def _json(file: Path, text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if place == "the file" else f"{place}, "
        raise DataError(f"{file}, {line}column {error.colno}: not JSON ({error.msg}).") from None


def case_of(record: Any, default_id: str) -> Case:
    """One record → one case.

    Raises:
        DataError: unknown or missing fields, wrong kinds.
        EditError: an edit that cannot be carried out.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"a record must hold named fields, not {type(record).__name__}.")
    known: dict[str, Any] = {}
    for key, value in record.items():
        if key not in FIELDS:
            raise DataError(
                f"unknown field {key!r}.{did_you_mean(str(key), FIELDS)} "
                f"Known: {', '.join(FIELDS)}."
            )
        if value is not None:
            if FIELDS[key] in known:
                raise DataError(f"{key!r} names the {FIELDS[key]} a second time.")
            known[FIELDS[key]] = value
    missing = [name for name in ("prompt", "target") if name not in known]
    if missing:
        names = " and ".join({"target": "target_new"}.get(name, name) for name in missing)
        raise DataError(f"{names} missing.")
    edit = Edit(known["prompt"], known["target"], known.get("subject"), known.get("ground_truth"))
    rephrases = _texts("rephrase", known.get("rephrase", []))
    probes = [Probe(text, (edit.target,), "rephrase") for text in rephrases]
    probes += _probes("locality", "neighborhood", known.get("locality"))
    probes += _probes("portability", "one_hop", known.get("portability"))
    return Case(str(known.get("id", default_id)), edit, tuple(probes))


def parse_arrow(text: str, kind: str) -> Probe:
    """``"prompt => answer"`` → a probe.

    Raises:
        DataError: there is no arrow, or one side is empty.
    """
    prompt, arrow, answer = (part.strip() for part in text.partition(ARROW))
    if not (prompt and arrow and answer):
        raise DataError(
            f"{text!r} must read 'prompt {ARROW} answer', e.g. 'The Louvre is in {ARROW} Paris'."
        )
    return Probe(prompt, (answer,), kind)


def _probes(group: str, name: str, given: Any) -> list[Probe]:
    if given is None:
        return []
    if isinstance(given, str):
        return [parse_arrow(given, f"{group}/{name}")]
    if isinstance(given, list):
        return [_one(group, name, item) for item in given]
    if isinstance(given, Mapping):
        found = []
        for key, block in given.items():
            if not isinstance(block, Mapping) or not {"prompt", "ground_truth"} <= set(block):
                raise DataError(f"{group}[{key!r}] must hold 'prompt' and 'ground_truth'.")
            prompts = _texts(f"{group}[{key!r}]", block["prompt"])
            answers = _texts(f"{group}[{key!r}]", block["ground_truth"])
            if len(prompts) != len(answers):
                raise DataError(
                    f"{group}[{key!r}]: {len(prompts)} prompts but {len(answers)} answers."
                )
            found += [
                Probe(prompt, (answer,), f"{group}/{key}")
                for prompt, answer in zip(prompts, answers, strict=True)
            ]
        return found
    raise DataError(f"{group} must be a list or an object, not {type(given).__name__}.")


def _texts(name: str, given: Any) -> list[Any]:
    if isinstance(given, str):
        return [given]
    if isinstance(given, list):
        return given
    raise DataError(f"{name} must be a text or a list of texts, not {type(given).__name__}.")


def _one(group: str, name: str, item: Any) -> Probe:
    if isinstance(item, str):
        return parse_arrow(item, f"{group}/{name}")
    if isinstance(item, Mapping) and "prompt" in item:
        answer = item.get("answer", item.get("ground_truth"))
        if answer is not None:
            return Probe(item["prompt"], (answer,), f"{group}/{item.get('name', name)}")
    raise DataError(f"a {group} entry needs 'prompt' and 'answer'; got {item!r}.")
