"""ROME on ``flags-135m`` with the word "flag" or the picture itself as the subject, by block.

    python benchmarks/image_subject.py --blocks 3 22 26 --cases 3

The cases are those of ``flag_cases(seed=2)``, each edited alone with three views of its picture and
no kept ones. Writes ``results/image_subject.json``. Few cases: a direction, no result.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from images import COLUMNS, VIEWS, _mean

RESULTS = Path(__file__).parent / "results" / "image_subject.json"
SEED = 2


def measure(blocks: list[int], n_cases: int) -> dict[str, Any]:
    """The mean scores for every block and subject."""
    from easyeditor.data.flag_cases import SUBJECT, flag_cases
    from easyeditor.editors.session import EditSession
    from easyeditor.edits import IMAGE, Edit
    from easyeditor.evaluate.metrics import summarise
    from easyeditor.evaluate.query import observe
    from easyeditor.evaluate.scorers import scorers
    from easyeditor.lm.loading import load
    from easyeditor.methods import METHODS

    def about(edit: Edit, subject: str) -> Edit:
        views = [Edit(view.prompt, view.target, subject) for view in edit.expansions]
        return Edit(edit.prompt, edit.target, subject, edit.ground_truth, expansions=views)

    lm, kind = load("flags-135m"), METHODS.get("ROME")
    cases = flag_cases(n_cases, seed=SEED, pictures=2, views=VIEWS)
    before = observe(lm, cases)
    result: dict[str, Any] = {"cases": [case.id for case in cases], "rows": []}
    for block in blocks:
        method = kind(kind.hyperparams_class.for_model("flags-135m", layers=[block]))
        session = EditSession(lm, method)
        for subject in (SUBJECT, IMAGE):
            rows, started = [], time.process_time()
            for case in cases:
                case = replace(case, edit=about(case.edit, subject))
                attempt = session.attempt(case.edits)
                with session.carrying(attempt.patch):
                    after = observe(lm, [case])
                rows.append(summarise(case, before, after, scorers()))
            scores = {column: _mean(rows, column) for column in COLUMNS}
            seconds = round(time.process_time() - started)
            row = {"block": block, "subject": subject, "cpu_seconds": seconds, **scores}
            result["rows"].append(row)
            print(row, flush=True)
    return result


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, nargs="*", default=[3, 22, 26])
    parser.add_argument("--cases", type=int, default=3)
    given = parser.parse_args()
    result = measure(given.blocks, given.cases)
    RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
