"""Does an edit hold in the chat and in other words: with ``expand`` and without, by method.

Facts of ``worldfacts`` that the model knows, each edited alone on the unedited model. Asked freely
(greedy, 16 tokens): the edited sentence as plain text and in chat form, a question of it in chat
form, the record's two rewordings and its alias; the last three were not edited with. Counted is
whether the text contains the whole target, a plain answer up to the end of its line. ``locality``
is the share of the argmax tokens of the record's five locality answers that are as before, also by
kind of probe; ``neighbors_ns`` the share of neighbors whose answer is likelier than the target.

Rows are written as they come and are not computed again, so the script can be stopped and called
anew:

    python benchmarks/expand.py --methods ROME,MEMIT,FT --facts reported
    python benchmarks/expand.py --table   # of docs/expand.md, from what is there
    python benchmarks/expand.py --methods ROME --facts development --out expand_dev --rewordings 3
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import common
from easyeditor.data.open import open_dataset
from easyeditor.editors.apply_method import outcome_of
from easyeditor.editors.expanding import Expansion, expanded_cases
from easyeditor.edits import Case, Prompt
from easyeditor.evaluate.bootstrap import bootstrap
from easyeditor.evaluate.degeneration import answer_mentions
from easyeditor.evaluate.generation_metrics import natural_answer
from easyeditor.evaluate.metrics import summarise
from easyeditor.evaluate.query import EvalOptions, Replies, observe
from easyeditor.evaluate.scorers.locality import LocalityScorer
from easyeditor.lm.inference import generate
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.patches.stack import applied
from easyeditor.rewording import question_of

MODEL = "smollm2-135m"
STRIDE = 7
"""Every so many of the known facts are reported, others are development facts."""
TRIED = {"brandenburg-gate", "british-museum", "cap-greece", "cap-ireland"}
"""Facts that the templates were written with."""
REPORTED, DEVELOPMENT = 40, 10
ANSWER_TOKENS = 16
COLUMNS = (
    *("plain", "chat", "question", "rewordings", "aliases"),
    *("locality", "neighbors", "neighbors_ns", "distracting", "other", "seconds"),
)
LOCALITY = {
    "neighbors": "neighborhood_acc",
    "neighbors_ns": "neighborhood_success",
    "distracting": "distracting_acc",
    "other": "other_attribution_acc",
}
BEFORE: dict[str, Replies] = {}
"""What the unedited model replies, by fact."""


def facts(which: str) -> list[Case]:
    """The facts that are reported, or those that settings were chosen on; none is in both."""
    text = files("easyeditor.data").joinpath("worldfacts.json").read_text(encoding="utf-8")
    known = {record["id"] for record in json.loads(text) if record["known"].get(MODEL)}
    cases = [case for case in open_dataset("worldfacts") if case.id in known]
    if which == "reported":
        candidates = [*cases[3::STRIDE], *cases[4::STRIDE]]
        return [case for case in candidates if case.id not in TRIED][:REPORTED]
    return cases[5 :: 4 * STRIDE][:DEVELOPMENT]


def measured(lm: LM, case: Case) -> Iterator[tuple[str, float]]:
    """What the model that ``lm`` is now answers, as numbers by column."""
    edit = case.edit
    sentence, question = edit.prompt.text, question_of(edit.prompt.text)
    asked = [
        ("plain", Prompt(sentence, chat=False)),
        ("chat", Prompt(sentence, chat=True)),
        ("question", Prompt(question, chat=True)),
        *(("rewordings", probe.prompt) for probe in case.probes if probe.kind == "rephrase"),
        *(("aliases", probe.prompt) for probe in case.probes if probe.kind == "portability/alias"),
    ]
    answers = generate(lm, [prompt for _, prompt in asked], ANSWER_TOKENS)
    for (name, prompt), answer in zip(asked, answers, strict=True):
        text = natural_answer(answer, bool(prompt.chat))
        yield name, float(answer_mentions(text, edit.target))


def row_of(
    lm: LM, method: Any, state: Any, case: Case, expansion: Expansion | None
) -> dict[str, Any]:
    """One fact, edited alone, measured and taken back."""
    scorers = [LocalityScorer(EvalOptions())]
    expanded = expanded_cases(lm, [case], expansion)[0]
    began = time.process_time()
    outcome = outcome_of(method, lm, [expanded.edit], state)
    seconds = time.process_time() - began
    if case.id not in BEFORE:
        BEFORE[case.id] = observe(lm, [case], all_scorers=scorers)
    before = BEFORE[case.id]
    row: dict[str, Any] = {"prompts": len(expanded.edit.rows), "seconds": round(seconds, 2)}
    values: dict[str, list[float]] = {}
    with applied(lm.model, outcome.patch):
        after = observe(lm, [case], all_scorers=scorers)
        for name, value in measured(lm, case):
            values.setdefault(name, []).append(value)
    locality = summarise(case, before, after, scorers)["locality"]
    for name, key in LOCALITY.items():
        if locality.get(key) is not None:
            values[name] = [locality[key]]
    counts = Counter(probe.name for probe in case.probes if probe.group == "locality")
    values["locality"] = [
        locality[f"{name}_acc"] for name, count in counts.items() for _ in range(count)
    ]
    means = {name: round(sum(some) / len(some), 4) for name, some in values.items() if some}
    return {**row, **means}


def main() -> None:
    """Compute the rows that are missing, and write the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="ROME,MEMIT,FT")
    parser.add_argument("--facts", choices=("reported", "development"), default="reported")
    parser.add_argument("--limit", type=int, default=REPORTED)
    parser.add_argument("--out", default="expand")
    parser.add_argument("--rewordings", type=int, default=Expansion().rewordings)
    parser.add_argument(
        "--only", choices=("with", "without"), help="one of the two, to choose settings"
    )
    parser.add_argument("--table", action="store_true", help="print the table, compute nothing")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON")
    args = parser.parse_args()
    place = Path(__file__).parent / "results" / f"{args.out}.json"
    rows: dict[str, dict[str, Any]] = {}
    if place.exists():
        rows = json.loads(place.read_text(encoding="utf-8"))["rows"]
    if args.table:
        print(table(rows))
        return
    cases = facts(args.facts)[: args.limit]
    lm = load(MODEL)
    given = {name: json.loads(value) for name, _, value in (s.partition("=") for s in args.set)}
    expansion = Expansion(rewordings=args.rewordings)
    for name in args.methods.split(","):
        kind = METHODS.get(name)
        method = kind(kind.hyperparams_class.for_model(MODEL, **given))
        state = method.initial_state(lm)
        for case in cases:
            for label, how in (("without", None), ("with", expansion)):
                key = f"{name}/{label}/{case.id}"
                if key in rows or args.only not in (None, label):
                    continue
                rows[key] = row_of(lm, method, state, case, how)
                print(key, rows[key], flush=True)
                save(place, args, expansion, cases, rows)
    save(place, args, expansion, cases, rows)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Means in percent with 95 % intervals over facts; both ways on the same facts, as a table."""
    lines = [
        "| method | expand | facts | plain | chat | question in chat | rewordings | locality "
        "| neighbors | distracting | other property | CPU seconds |",
        f"|{'---|' * 12}",
    ]
    shown = (
        *("plain", "chat", "question", "rewordings"),
        *("locality", "neighbors", "distracting", "other"),
    )
    for method in dict.fromkeys(key.partition("/")[0] for key in rows):
        ids = {
            label: {key.rpartition("/")[2] for key in rows if key.startswith(f"{method}/{label}/")}
            for label in ("without", "with")
        }
        both = sorted(ids["without"] & ids["with"])
        columns: dict[str, list[float | None]] = {}
        for label in ("without", "with"):
            chosen = [rows[f"{method}/{label}/{one}"] for one in both]
            columns |= {f"{label}/{name}": [row.get(name) for row in chosen] for name in COLUMNS}
        for name in shown:
            pairs = zip(columns[f"without/{name}"], columns[f"with/{name}"], strict=True)
            columns[f"gain/{name}"] = [None if a is None or b is None else b - a for a, b in pairs]
        means = bootstrap(columns)
        for label in ("without", "with", "gain"):
            cells = [
                f"{100 * e.value:.1f} ({100 * e.low:.0f} to {100 * e.high:.0f})"
                for e in (means[f"{label}/{name}"] for name in shown)
            ]
            time_spent = means.get(f"{label}/seconds")
            cells.append(f"{time_spent.value:.0f}" if time_spent else "")
            lines.append(f"| {method} | {label} | {len(both)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def save(
    place: Path, args: Any, expansion: Expansion, cases: list[Case], rows: dict[str, Any]
) -> None:
    """Write rows and means with their intervals over facts."""
    means: dict[str, Any] = {}
    for group in dict.fromkeys(key.rpartition("/")[0] for key in rows):
        chosen = [row for key, row in rows.items() if key.rpartition("/")[0] == group]
        columns = {name: [row.get(name) for row in chosen] for name in COLUMNS}
        estimates = bootstrap(columns)
        means[group] = {
            name: [round(x, 4) for x in (e.value, e.low, e.high)] for name, e in estimates.items()
        }
        means[group]["facts"] = len(chosen)
    document = {
        "machine": common.processor(),
        "when": time.strftime("%Y-%m-%d"),
        "model": MODEL,
        "facts": args.facts,
        "ids": [case.id for case in cases],
        "expansion": asdict(expansion),
        "settings": args.set,
        "means": means,
        "rows": rows,
    }
    part = place.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    part.replace(place)


if __name__ == "__main__":
    main()
