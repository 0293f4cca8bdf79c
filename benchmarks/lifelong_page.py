"""The tables and pictures of ``benchmarks/lifelong.py``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from easyeditor.bench.drawing import COLOURS, MARKS, legend, panels, styled
from easyeditor.bench.plots import ageing
from easyeditor.bench.results import read_runs
from easyeditor.bench.run_dir import write_whole
from lifelong_rows import EXTRA, PARTS, RUNS, SCORES, SHARES, Row, stored
from lifelong_targets import EOS, always_ends

MARKER = "<!-- the tables: benchmarks/lifelong.py table --into docs/lifelong.md -->"


def picture(data: str, part: str, count: int, names: Sequence[str], file: Path) -> None:
    """Draw how much of the edits of some methods is left, by their age, from the runs made here."""
    runs = read_runs([RUNS / f"{data}-{part}-{count}-0-{name}" for name in names])
    records = {label: stages for one in runs for label, stages in one.records.items()}
    drawn = ageing([replace(runs[0], records=records)])
    assert drawn is not None, "no sequence was measured"
    drawn.savefig(file, dpi=110)


def growth(data: str, part: str, count: int, names: Sequence[str], file: Path) -> None:
    """Draw what a sequence does elsewhere after more and more edits: mean over its orders."""
    wanted = {"kl": "KL elsewhere, nats", "known": "other facts known, %"}
    lines: dict[str, dict[str, dict[int, list[float]]]] = {key: {} for key in wanted}
    for name in names:
        for log in RUNS.glob(f"{data}-{part}-{count}-*-{name}.jsonl"):
            if not log.stem.removesuffix(f"-{name}").rpartition("-")[2].isdecimal():
                continue  # of another method, whose name ends in this one
            by_length = {r["edits"]: r for r in map(json.loads, log.read_text().splitlines())}
            for length, record in by_length.items():
                for key in wanted.keys() & record.keys():
                    lines[key].setdefault(name, {}).setdefault(length, []).append(record[key])
    shown_keys = [key for key in wanted if lines[key]]
    with styled():
        figure, axes = panels(len(shown_keys), 3.2, width=5.5)
        for axis, key in zip(axes, shown_keys, strict=True):
            share = 100 if key in SHARES else 1
            for i, name in enumerate(names):
                by_length = lines[key].get(name, {})
                lengths = sorted(by_length)
                means = [share * sum(by_length[n]) / len(by_length[n]) for n in lengths]
                colour, mark = COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]
                axis.plot(lengths, means, color=colour, marker=mark, label=name)
            axis.set_xscale("log")
            axis.set_xlabel("edits")
            axis.set_title(wanted[key], loc="left")
            if key == "kl":
                axis.set_yscale("symlog", linthresh=1e-3)
                axis.set_ylim(bottom=-3e-4)
        legend(figure, axes[0])
        figure.savefig(file, dpi=110)


def tables(rows: Mapping[str, Row]) -> Iterator[str]:
    """A table per data, part and number of cases: a row per method, means over the orders."""
    groups: dict[tuple[str, str, str, bool], dict[str, list[Row]]] = {}
    for key, row in rows.items():
        data, part, n, _, name = key.split("|")
        groups.setdefault((data, part, n, name.endswith(EOS)), {}).setdefault(name, []).append(row)
    for (data, part, n, ends), rows_of in groups.items():
        if ends:  # beside those that always learn the end
            alike = groups.get((data, part, n, False), {})
            rows_of |= {name: runs for name, runs in alike.items() if always_ends(name)}
    places = list(PARTS)
    of_size = sorted(groups, key=lambda g: (g[0].startswith("small-"), g[3], places.index(g[1])))
    for data, part, n, ends in of_size:
        methods = groups[data, part, n, ends]
        every = [run for runs in methods.values() for run in runs]
        keys = [key for key in SCORES if any(key in run["scores"] for run in every)]
        extra = [key for key in EXTRA if any(key in run for run in every)]
        titles = ["method", "orders", *map(SCORES.get, keys), *map(EXTRA.get, extra)]
        taught = ", an end-of-sequence token behind every answer" if ends else ""
        yield f"### {PARTS[part].title.format(n=n)}{taught} ({data})\n"
        yield line([str(title) for title in titles])
        yield "|" + "---|" * len(titles)
        before = [shown(key, [every[0]["unedited"].get(key)]) for key in keys]
        able = [[run["unedited"][key] for run in every if key in run["unedited"]] for key in extra]
        pairs = zip(extra, able, strict=True)
        costs = [shown(key, values[:1]) if values else "" for key, values in pairs]
        yield line(["unedited", "", *before, *costs])
        for name, runs in sorted(methods.items(), key=lambda item: -answered(item[1])):
            costs = [shown(key, [run.get(key) for run in runs]) for key in extra]
            yield line(
                [
                    name.removesuffix(EOS),
                    str(len(runs)),
                    *(scored(key, runs) for key in keys),
                    *costs,
                ]
            )
        yield ""


def answered(runs: Sequence[Row]) -> float:
    """By what the rows are ordered: free answers to the sentence and in other words."""
    keys = ("generation/rewrite_acc", "generation/rephrase_acc")
    found = [run["scores"].get(key, [0.0])[0] for run in runs for key in keys]
    return float(sum(found)) / len(runs)


def line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def scored(key: str, runs: Sequence[Row]) -> str:
    """The mean over orders; of one order with its interval over cases."""
    values = [run["scores"].get(key) for run in runs]
    text = shown(key, [value and value[0] for value in values])
    if len(runs) > 1 or not values[0] or key not in SHARES or math.isnan(values[0][1]):
        return text
    return f"{text} ({100 * values[0][1]:.0f} to {100 * values[0][2]:.0f})"


def shown(key: str, values: Sequence[float | None]) -> str:
    """A mean, in percent where it is a share."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "–"
    mean = sum(numbers) / len(numbers)
    return f"{100 * mean:.1f}" if key in SHARES else f"{mean:.3g}"


def write(page: Path | None) -> None:
    """Print the tables, or write them below the page's marker."""
    text = "\n".join(tables(stored()))
    if page is None:
        print(text)
        return
    above, marker, _ = page.read_text(encoding="utf-8").partition(MARKER)
    assert marker, f"{page} has no line {MARKER}"
    write_whole(page, f"{above}{marker}\n\n{text.rstrip()}\n")
