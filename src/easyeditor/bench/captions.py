"""Captions of tables: models, settings and data of the runs, and how to read the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from easyeditor.bench.results import Run

SHORT = 12
SHOWN = 5


def captions(runs: Sequence[Run]) -> tuple[str, ...]:
    """One sentence per run, warnings where runs do not compare, and how to read the numbers."""
    notes: list[str] = []
    for run in runs:
        notes.append(f"Run {run.name}: model {_what(run)}" if runs[1:] else f"Model {_what(run)}")
        notes += _gaps(run)
    for key, word in (
        ("fingerprint", "models"),
        ("data_sha256", "cases"),
        ("protocol", "protocols"),
    ):
        if len({run.info.get(key) for run in runs}) > 1:
            notes.append(f"The runs are of different {word}: compare rows within a run.")
    notes.append(
        "Shares, differences of probabilities, fluency and consistency are multiplied by 100. "
        "Intervals: 95 % bootstrap over cases, 1000 resamples; memory is the largest of all edits."
    )
    return tuple(notes)


def _what(run: Run) -> str:
    info = run.info
    size = info.get("batch_size", 1)
    together = f", {size} edits at a time" if size != 1 else ""
    preset = f", preset {info['preset']}" if info.get("preset") else ""
    versions = ", ".join(f"{name} {version}" for name, version in info["versions"].items())
    return (
        f"{info['model']} (fingerprint {info['fingerprint'][:SHORT]}), protocol "
        f"{info['protocol']}{together}{preset}, {info['n']} cases ({_ids(info['case_ids'])}) of "
        f"{info['data'] or 'unnamed data'} (sha256 {info['data_sha256'][:SHORT]}), seed "
        f"{info['seed']}; {versions}."
    )


def _ids(ids: Sequence[str]) -> str:
    """``ids 0–99`` for whole numbers in a row, the ids themselves for few, else the ends."""
    first = int(ids[0]) if ids and ids[0].isdecimal() else 0
    if ids[1:] and list(ids) == [str(first + i) for i in range(len(ids))]:
        return f"ids {ids[0]}–{ids[-1]}"
    if len(ids) <= SHOWN:
        return f"ids {', '.join(ids)}"
    return f"ids from {ids[0]} to {ids[-1]}, not in a row"


def _gaps(run: Run) -> Iterator[str]:
    for label in run.info["methods"]:
        stages = run.records.get(label, {})
        records = stages.get("post", ())
        if len(records) < run.info["n"]:
            yield f"{label}: {len(records)} of {run.info['n']} cases so far."
        failed = sum(bool(record.get("error")) for record in records)
        if failed:
            yield f"{label}: {failed} edits failed; they count, measured without the edit."
