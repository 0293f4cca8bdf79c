"""What each method does to a model that sees: ``flags-135m``, one flag called another country's.

    python benchmarks/images.py measure --methods FT FT/projector ROME --cases 6
    python benchmarks/images.py table

Every edit is made alone on the unedited model. Settings are the presets of the text column's model,
chosen on text; the cases are those of ``flag_cases(seed=1)``. ``measure`` adds to
``results/images.json``, one row per method, so that it can be run method by method. A glued test
model and drawn flags: this compares methods with each other and says nothing about photographs.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "images.json"
SEED = 1
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "FT": ("FT", {}),
    "FT/last": ("FT", {"layers": [29]}),
    "FT/projector": ("FT", {"site": "projector", "layers": [0]}),
    "FT/vision": ("FT", {"site": "vision", "layers": [3]}),
    "LoRA": ("LoRA", {}),
    "IKE": ("IKE", {"use_icl_examples": False}),
    "ROME": ("ROME", {}),
    "MEMIT": ("MEMIT", {}),
    "GRACE": ("GRACE", {}),
    "WISE": ("WISE", {}),
}
COLUMNS = (
    "rewrite_acc",
    "rephrase_acc",
    "image_rephrase_acc",
    "portability/capital_acc",
    "locality/text_acc",
    "locality/image_acc",
    "locality/same_question_acc",
    "locality/no_image_acc",
)


def measure(names: list[str], n_cases: int) -> None:
    """Edit every case alone with each method; write the means."""
    from easyeditor.data.flag_cases import flag_cases
    from easyeditor.editors.session import EditSession
    from easyeditor.evaluate.metrics import summarise
    from easyeditor.evaluate.query import observe
    from easyeditor.evaluate.scorers import scorers
    from easyeditor.lm.loading import load
    from easyeditor.methods import METHODS

    lm = load("flags-135m")
    cases = flag_cases(n_cases, seed=SEED)
    before = observe(lm, cases)
    for name in names:
        method, changes = SETTINGS[name]
        kind = METHODS.get(method)
        session = EditSession(lm, kind(kind.hyperparams_class.for_model("flags-135m", **changes)))
        rows, seconds = [], []
        for case in cases:
            started = time.process_time()
            attempt = session.attempt(case.edits)
            seconds.append(time.process_time() - started)
            with session.carrying(attempt.patch):
                after = observe(lm, [case])
            rows.append(summarise(case, before, after, scorers()))
        values = {column: _mean(rows, column) for column in COLUMNS}
        record = {
            "cases": [case.id for case in cases],
            "settings": changes,
            "cpu_seconds": round(sum(seconds) / len(seconds), 1),
            **values,
        }
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(
            json.dumps({**results, name: record}, indent=1, ensure_ascii=False) + "\n"
        )
        print(name, record, flush=True)


def _mean(rows: list[dict[str, Any]], column: str) -> float | None:
    group, _, name = column.rpartition("/")
    values = [(row[group] if group else row).get(name) for row in rows]
    numbers = [value for value in values if value is not None]
    return round(sum(numbers) / len(numbers), 3) if numbers else None


def table() -> None:
    """The results as Markdown."""
    results = json.loads(RESULTS.read_text())
    print("| method | " + " | ".join(c.removesuffix("_acc") for c in COLUMNS) + " | CPU s |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    for name, record in results.items():
        cells = ["" if record[c] is None else f"{record[c]:.2f}" for c in COLUMNS]
        print(f"| {name} | " + " | ".join(cells) + f" | {record['cpu_seconds']} |")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("measure", "table"))
    parser.add_argument("--methods", nargs="*", default=list(SETTINGS))
    parser.add_argument("--cases", type=int, default=6)
    given = parser.parse_args()
    if given.command == "table":
        table()
    else:
        measure(given.methods, given.cases)


if __name__ == "__main__":
    main()
