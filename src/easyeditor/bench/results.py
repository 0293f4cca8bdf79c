"""Reading run folders; nothing is written or repaired, so a run may be going on meanwhile."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easyeditor.errors import BenchError
from easyeditor.json_log import scan_log

Record = dict[str, Any]
STAGES = ("post", "final")
SAID = {
    "model": str,
    "fingerprint": str,
    "protocol": str,
    "seed": int,
    "data": str,
    "data_sha256": str,
    "n": int,
    "case_ids": list,
    "methods": dict,
    "versions": dict,
}
"""What a caption needs of ``run.json``."""


@dataclass(frozen=True, slots=True)
class Run:
    """Content of a run directory so far.

    Attributes:
        name: the folder's name, unique among the runs read with it.
        about: ``run.json``.
        records: by method label and stage, in the order of editing; only units that are complete.
        downstream: ``downstream.json``, by label; empty if there is none.
    """

    name: str
    info: Mapping[str, Any]
    records: Mapping[str, Mapping[str, Sequence[Record]]]
    downstream: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def unedited(self) -> list[Record]:
        """One record per case, of whichever method; read their ``pre``."""
        by_position: dict[int, Record] = {}
        for stages in self.records.values():
            for record in stages.get("post", ()):
                by_position.setdefault(record["position"], record)
        return [by_position[position] for position in sorted(by_position)]

    def both(self, label: str) -> list[dict[str, Any]]:
        """``{"post": …, "final": …}`` of every edit of a finished sequence, in order."""
        stages = self.records[label]
        at_end = {record["position"]: record for record in stages.get("final", ())}
        return [
            {"post": record["post"], "final": at_end[record["position"]]["post"]}
            for record in stages.get("post", ())
            if record["position"] in at_end
        ]


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read one or several run folders.

    Raises:
        BenchError: no folder given, one that is no run folder or cannot be read, or a run that
            has no complete records yet.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise BenchError("There is nothing to report: give at least one run folder.")
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return [_read(path, name) for path, name in zip(paths, names, strict=True)]


def require_run(folder: Path) -> None:
    """Make sure that a run was written to this folder.

    Raises:
        BenchError: it holds none.
    """
    if not (folder / "run.json").is_file():
        raise BenchError(
            f"{folder} is no run folder: it holds no run.json. Give the folder that a benchmark "
            "run was written to."
        )


def _read(folder: Path, name: str) -> Run:
    require_run(folder)
    info = _json(folder / "run.json")
    if info.get("format") != 1:
        raise BenchError(
            f"{folder / 'run.json'}: format {info.get('format')!r} cannot be read; this version "
            "reads format 1."
        )
    lacking = [key for key, kind in SAID.items() if not isinstance(info.get(key), kind)]
    if lacking:
        raise BenchError(f"{folder / 'run.json'} does not say {', '.join(lacking)}.")
    records = {label: _stages(folder / label / "records.jsonl") for label in info["methods"]}
    records = {label: stages for label, stages in records.items() if any(stages.values())}
    if not records:
        raise BenchError(f"{folder} has no complete records yet: let the run finish some edits.")
    file = folder / "downstream.json"
    return Run(name, info, records, _downstream(file) if file.is_file() else {})


def _downstream(file: Path) -> dict[str, dict[str, Any]]:
    """Scores of downstream tasks by label, ``before`` and ``after``."""
    document = _json(file)
    for label, scores in document.items():
        tasks = [scores.get("before"), scores.get("after")] if isinstance(scores, dict) else [0]
        if not all(part is None or isinstance(part, dict) for part in tasks):
            raise BenchError(f"{file}: the scores of {label!r} are damaged. Delete the file.")
    return document


def _json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"{file} cannot be read: {error}.") from None
    if not isinstance(document, dict):
        raise BenchError(f"{file} must hold a JSON object, not {type(document).__name__}.")
    return document


def _stages(file: Path) -> dict[str, list[Record]]:
    """Complete units by stage, each in the order of editing; what was written last counts."""
    units: dict[tuple[str, int], dict[int, Record]] = defaultdict(dict)
    content = scan_log(file, BenchError)
    damaged = set(content.damaged)
    for number, record in content.lines:
        try:
            _check(record)
            units[record["stage"], record["unit"]][record["position"]] = record
        except (ValueError, TypeError, KeyError):
            damaged.add(number)
    if damaged:
        raise BenchError(
            f"{file}, line {min(damaged)} is damaged. Delete this line and continue the run: "
            "it computes the case again, or says that a sequence must start anew."
        )
    out: dict[str, list[Record]] = {stage: [] for stage in STAGES}
    for (stage, _), unit in sorted(units.items()):
        if stage in out and all(len(unit) >= record["of"] for record in unit.values()):
            out[stage] += unit.values()
    return {stage: sorted(rows, key=lambda r: r["position"]) for stage, rows in out.items()}


def _check(record: Mapping[str, Any]) -> None:
    parts = [record["pre"], record["post"], record["seconds"]]
    numbers = [record["unit"], record["position"], record["of"]]
    if not all(isinstance(part, dict) for part in parts) or record["of"] < 1:
        raise ValueError
    if not isinstance(record["stage"], str) or not all(isinstance(n, int) for n in numbers):
        raise TypeError
