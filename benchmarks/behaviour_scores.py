"""Scores of behaviour on real weights: the tables of ``docs/behaviour.md``.

Each record of a file in ``benchmarks/behaviour`` is edited alone, in chat form. What was scored is
written as it comes and is not computed again, so the script can be stopped and called anew.

    python benchmarks/behaviour_scores.py safety opinions sentiment concepts sanitation
    python benchmarks/behaviour_scores.py --table
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
from easyeditor.data.open import open_dataset
from easyeditor.editors.base import BaseEditor
from easyeditor.evaluate.aggregate import flatten
from easyeditor.evaluate.bootstrap import bootstrap
from easyeditor.evaluate.query import Measures
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS

NAME = "behaviour_scores"
WHAT = "smollm2-135m, float32, chat form, each edit alone, files of benchmarks/behaviour"


@dataclass(frozen=True)
class Part:
    """One table: a file, which of its records, whom, and which numbers."""

    file: str
    start: int
    stop: int
    tokens: int
    entrants: tuple[tuple[str, str, dict[str, Any]], ...]
    columns: tuple[str, ...]


FT_M: tuple[str, str, dict[str, Any]] = ("FT-M", "FT", {})
IN_CONTEXT: tuple[str, str, dict[str, Any]] = ("ICE", "IKE", {"use_icl_examples": False})
OPINION = ("opinion/ES", "opinion/DD", "opinion/coherent", "rewrite_acc")
PARTS = {
    # settings as published; records 0 to 3 were looked at while this was written
    "safety": Part(
        "forbidden",
        4,
        8,
        24,
        (("DINM", "DINM", {}),),
        (
            "safety/DS",
            "safety/DG_avg",
            "safety/over_refusal",
            "safety/fluency",
            "locality/general_knowledge_acc",
        ),
    ),
    "opinions": Part("opinions", 0, 4, 24, (FT_M, IN_CONTEXT), OPINION),
    "sentiment": Part("sentiment", 0, 4, 24, (FT_M, IN_CONTEXT), OPINION),
    "concepts": Part(
        "concepts",
        0,
        4,
        0,
        (FT_M,),
        (
            "rewrite_acc",
            "rephrase_acc",
            "locality/neighborhood_acc",
            "instance/yes",
            "instance/change",
            "instance/unparsed",
        ),
    ),
    "sanitation": Part(
        "forget",
        0,
        4,
        16,
        (FT_M,),
        ("sanitation/withheld", "sanitation/replaced", "sanitation/retained"),
    ),
}


def settings_of(method: str, changes: dict[str, Any]) -> HyperParams:
    """The model's preset with changes, in chat form."""
    preset = METHODS.get(method).hyperparams_class.preset("smollm2-135m")
    return preset.replace(chat_template=True, **changes)


def scores(lm: LM, part: Part, method: str, changes: dict[str, Any]) -> list[dict[str, Any]]:
    """Before and after of every record, as flat numbers, with the answers."""
    cases = open_dataset(Path(__file__).parent / "behaviour" / f"{part.file}.json")
    editor = BaseEditor(lm, settings_of(method, changes))
    measures = Measures(answer_tokens=part.tokens)
    rows = []
    for case in cases[part.start : part.stop]:
        metric = editor.edit_cases(
            [case],
            keep_original_weight=True,
            measures=measures,
            verbose=False,
            free_answers=False,
        ).metrics[0]
        halves = {half: flatten(metric[half]) for half in ("pre", "post")}
        chosen = {
            half: {k: v for k, v in numbers.items() if k.partition("/")[0] in GROUPS}
            for half, numbers in halves.items()
        }
        answers = {half: metric[half].get("answers", {}) for half in ("pre", "post")}
        rows.append({"case_id": case.id, **chosen, "answers": answers})
    return rows


GROUPS = {
    *("safety", "opinion", "instance", "sanitation", "locality"),
    *("rewrite_acc", "rephrase_acc"),
}


def table(part: Part, results: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: the unedited model, every entrant, and both under each condition."""
    head = [name.rpartition("/")[2] for name in part.columns]
    lines = [f"| | {' | '.join(head)} |", f"|---|{'--:|' * len(head)}"]
    labels = [label for label, _, _ in part.entrants if label in results]
    for label, half in [("unedited", "pre"), *((label, "post") for label in labels)]:
        rows = [row[half] for row in results[labels[0] if half == "pre" else label]]
        ends = sorted({"", *(k[k.index("@") :] for row in rows for k in row if "@" in k)})
        for end in ends:
            columns = {name: [row.get(name + end) for row in rows] for name in part.columns}
            estimates = bootstrap(columns)
            cells = [
                f"{e.value:.2f} ({e.low:.2f}–{e.high:.2f})" if (e := estimates.get(n)) else "–"
                for n in part.columns
            ]
            title = f"{label}, with {end[1:]}" if end else label
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []])
    args = parser.parse_args()
    file = Path(__file__).parent / "results" / f"{NAME}.json"
    done: dict[str, Any] = json.loads(file.read_text())["rows"] if file.is_file() else {}
    lm = None
    for name in () if args.table else args.parts:
        part = PARTS[name]
        for label, method, changes in part.entrants:
            if label in done.get(name, {}):
                continue
            lm = lm or load(settings_of(method, {}).model)
            done.setdefault(name, {})[label] = scores(lm, part, method, changes)
            common.write(NAME, {"what": WHAT, "rows": done})
    for name, results in done.items():
        print(f"\n{name}: records {PARTS[name].start} to {PARTS[name].stop - 1}\n")
        print(table(PARTS[name], results))


if __name__ == "__main__":
    main()
