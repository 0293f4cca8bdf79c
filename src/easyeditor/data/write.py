"""Cases → a plain file of edits, which ``EditsDataset`` reads back as it was."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from easyeditor.data import conditional
from easyeditor.data.edits_file import ARROW, HOP, NEAR
from easyeditor.edits import Case, Edit, Probe, Prompt
from easyeditor.errors import DataError, OutputError
from easyeditor.files import written_whole

SUFFIXES = (".json", ".jsonl", ".csv")
COLUMNS = (
    "case_id",
    "prompt",
    "target_new",
    "subject",
    "ground_truth",
    "rephrase_prompt",
    "locality",
    "portability",
)


def write_cases(
    cases: Iterable[Case], path: str | os.PathLike[str], *, force: bool = False
) -> Path:
    """Write cases as .json, .jsonl or .csv; the file appears whole or not at all.

    Raises:
        DataError: another suffix; the file exists and ``force`` is not set; it cannot be written;
            a case holds what the format does not (CSV: several probes of a group, several
            accepted answers, generation prompts, references, further edits).
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{file}: edits are written as .json, .jsonl or .csv, not {suffix!r}.")
    try:
        exists, is_file = file.exists(), file.is_file()
    except (OSError, ValueError):  # an impossible name; writing says why
        exists = is_file = False
    if exists and not (force and is_file):
        raise DataError(
            f"{file} exists{' and is no file' * (not is_file)}; take another name"
            f"{', or --force (in Python force=True) to replace it' * is_file}."
        )
    try:
        with written_whole(file) as part, part.open("w", encoding="utf-8", newline="") as out:
            if suffix == ".csv":
                rows = csv.DictWriter(out, COLUMNS)
                rows.writeheader()
                rows.writerows(map(row_of, cases))
            elif suffix == ".jsonl":
                out.writelines(_dump(case) + "\n" for case in cases)
            else:
                out.write("[")
                for i, case in enumerate(cases):
                    out.write(("," if i else "") + "\n" + _dump(case))
                out.write("\n]\n")
    except OutputError as error:
        raise DataError(str(error)) from None
    except OSError as error:
        raise DataError(f"{file} cannot be written: {error.strerror or error}.") from None
    except UnicodeEncodeError as error:
        raise DataError(f"{file} cannot be written as UTF-8: {error}.") from None
    return file


def _dump(case: Case) -> str:
    return json.dumps(record_of(case), ensure_ascii=False)


def record_of(case: Case) -> dict[str, Any]:
    """The case as a record of ``EditsDataset``; fields that hold nothing are left out.

    Probes of other kinds stand behind the usual ones.

    Raises:
        DataError: a rephrase that such a record cannot hold.
    """
    record = {
        "case_id": case.id,
        **_edit(case.edit),
        "rephrase_prompts": [_rephrase(case, p) for p in case.probes if p.group == "rephrase"],
        "locality": _groups(case, "locality"),
        "portability": _groups(case, "portability"),
        "generation_prompts": [prompt.to_json() for prompt in case.generation],
        "references": list(case.references),
        "also": [_edit(edit) for edit in case.also],
        "tests": [conditional.record_of(test) for test in case.tests],
        "probes": [
            {"kind": p.kind, "prompt": p.prompt.to_json(), "answers": list(p.answers)}
            for p in case.probes
            if p.group not in {"rephrase", "locality", "portability"}
        ],
    }
    return {name: value for name, value in record.items() if value}


WHOLE = ("generation_prompts", "references", "also", "expansions", "keep", "tests")
"""Fields that a row of CSV has no place for."""


def row_of(case: Case) -> dict[str, str]:
    """The case as a row of CSV, its probes written ``prompt => answer``.

    Raises:
        DataError: the case holds more than a row can.
    """
    record = record_of(case)
    lists = [name for name in (*WHOLE, "probes") if name in record]
    if lists:
        raise _no_csv(case, ", ".join(lists))
    rephrases: list[Any] = record.get("rephrase_prompts", [])
    if len(rephrases) > 1:
        raise _no_csv(case, f"{len(rephrases)} rephrase prompts")
    if not all(isinstance(rephrase, str) for rephrase in rephrases):
        raise _no_csv(case, "a rephrase that has a name or is not text alone")
    row = {name: value for name, value in record.items() if isinstance(value, str)}
    row["rephrase_prompt"] = "".join(rephrases)
    for group, name in (("locality", NEAR), ("portability", HOP)):
        probes = [probe for probe in case.probes if probe.group == group]
        if len(probes) > 1:
            raise _no_csv(case, f"{len(probes)} {group} probes")
        row[group] = "".join(_arrow(case, probe, f"{group}/{name}") for probe in probes)
    return row


def _no_csv(case: Case, what: str) -> DataError:
    return DataError(f"case {case.id} holds {what}; CSV cannot. Write .json or .jsonl.")


def _arrow(case: Case, probe: Probe, kind: str) -> str:
    (answer, *more), prompt = probe.answers, _plain(case, probe.prompt)
    if probe.kind != kind:
        raise _no_csv(case, f"a {probe.kind} probe")
    if more:
        raise _no_csv(case, f"{len(probe.answers)} accepted answers of one {kind} probe")
    if ARROW in prompt or prompt != prompt.strip() or answer != answer.strip():
        raise _no_csv(case, f"the probe {prompt!r}, which does not fit 'prompt {ARROW} answer'")
    return f"{prompt} {ARROW} {answer}"


def _plain(case: Case, prompt: Prompt) -> str:
    """The text of a prompt that is text alone."""
    if not prompt.bare:
        raise _no_csv(case, f"a prompt that is not text alone ({prompt!r})")
    return prompt.text


def _edit(edit: Edit) -> dict[str, Any]:
    fields = {
        "prompt": edit.prompt.to_json(),
        "target_new": edit.target,
        "subject": edit.subject,
        "ground_truth": edit.ground_truth,
        "rejected": edit.rejected,
        "expansions": [_expansion(edit, other) for other in edit.expansions],
        "keep": [prompt.to_json() for prompt in edit.keep],
    }
    return {name: value for name, value in fields.items() if value}


def _expansion(edit: Edit, other: Edit) -> dict[str, Any]:
    """A further prompt of an edit; its target and subject where they are not the edit's."""
    record: dict[str, Any] = {"prompt": other.prompt.to_json()}
    if other.target != edit.target:
        record["target_new"] = other.target
    if other.subject != edit.subject:
        record["subject"] = other.subject
    return record


def _rephrase(case: Case, probe: Probe) -> Any:
    if probe.answers != (case.edit.target,):
        raise DataError(
            f"case {case.id}: the rephrase {probe.prompt!r} accepts {list(probe.answers)}, a file "
            "of edits only the target."
        )
    prompt = probe.prompt.to_json()
    return {"prompt": prompt, "name": probe.name} if probe.name else prompt


def _groups(case: Case, group: str) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for probe in case.probes:
        if probe.group == group:
            answer = probe.answers[0] if len(probe.answers) == 1 else list(probe.answers)
            groups.setdefault(probe.name, []).append(
                {"prompt": probe.prompt.to_json(), "answer": answer}
            )
    return groups
