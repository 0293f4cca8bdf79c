"""What each method does to a model that sees: ``flags-135m``, one flag called another country's.

    python benchmarks/images.py train --out archives     # MEND and SERAC
    python benchmarks/images.py measure --methods FT FT/projector ROME --cases 6 --archives archives
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
TRAINED: dict[str, Any] = {"layers": [27], "num_steps": 50}
"""Chosen on cases of ``flag_cases(seed=2)``."""
KEPT, VIEWS = 8, 3
"""Other flags an edit keeps, and distorted copies of its own picture it is made with."""
_FT = {**TRAINED, "lr": 1e-3}
_TOLD = {"use_icl_examples": False}
SETTINGS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "FT": ("FT", _FT, 0, VIEWS),
    "FT, others kept": ("FT", _FT, KEPT, VIEWS),
    "LoRA": ("LoRA", TRAINED, 0, VIEWS),
    "LoRA, others kept": ("LoRA", TRAINED, KEPT, VIEWS),
    "IKE": ("IKE", _TOLD, 0, 0),
    "IKE, near the picture": ("IKE", {**_TOLD, "image_reach": 0.8}, 0, 0),
    "MEND": ("MEND", {}, 0, 0),
    "SERAC": ("SERAC", {"image_weight": 0.9}, 0, 0),
    "ROME": ("ROME", {}, 0, VIEWS),
    "ROME, others kept": ("ROME", {}, KEPT, VIEWS),
    "MEMIT": ("MEMIT", {}, 0, VIEWS),
    "GRACE": ("GRACE", {}, 0, 0),
    "WISE": ("WISE", {}, 0, 0),
}
"""For each row of the table: method, settings beside the preset, prompts kept, views."""
LEARNT = ("MEND", "SERAC")
MOST_CASES, PICTURES = 10, 3
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


def train(names: list[str], out: Path) -> None:
    """Train MEND and SERAC on flags of which none is measured; the archives lie in ``out``."""
    from easyeditor import MENDTrainingHparams, MultimodalTrainer, SERACTrainingHparams
    from easyeditor.data.flag_cases import flag_cases
    from easyeditor.data.flag_pictures import COUNTRIES
    from easyeditor.lm.loading import load

    measured = [str(case.edit.ground_truth) for case in flag_cases(len(COUNTRIES), seed=SEED)]
    others = tuple(country for country in COUNTRIES if country not in measured[:MOST_CASES])
    cases = flag_cases(len(others), 11, others, pictures=2)
    held = flag_cases(4, 14, others, pictures=2)
    lm = load("flags-135m")
    common = {"results_dir": str(out), "val_steps": 4, "log_interval": 5, "edit_loss_on": "both"}
    configs = (
        MENDTrainingHparams.for_model(
            "flags-135m",
            **{**common, "layers": [-2, -1], "lr": 3e-4, "lr_lr": 1e-3, "edit_lr": 1e-3},
            rank=256,
            cedit=1.0,
            max_iters=40,
            val_interval=20,
            lr_schedule="cosine",
        ),
        SERACTrainingHparams.for_model(
            "flags-135m",
            **{**common, "edit_loss_on": "rephrase", "max_iters": 48, "val_interval": 16},
            small_name="smollm2-135m",
        ),
    )
    for config in (config for config in configs if config.alg_name in names):
        started = time.process_time()
        begun = (out / config.alg_name / "flags-135m" / "checkpoints").is_dir()
        result = MultimodalTrainer(config, cases, held, lm=lm).run(resume=begun)
        print(config.alg_name, result, f"{time.process_time() - started:.0f} CPU s", flush=True)


def measure(names: list[str], n_cases: int, archives: Path) -> None:
    """Edit every case alone with each method; write the means."""
    from easyeditor.data.flag_cases import flag_cases
    from easyeditor.editors.session import EditSession
    from easyeditor.evaluate.metrics import summarise
    from easyeditor.evaluate.query import observe
    from easyeditor.evaluate.scorers import scorers
    from easyeditor.lm.loading import load
    from easyeditor.methods import METHODS

    lm = load("flags-135m")
    before = observe(lm, flag_cases(n_cases, seed=SEED, pictures=PICTURES))
    for name in names:
        method, changes, keep, views = SETTINGS[name]
        cases = flag_cases(n_cases, seed=SEED, pictures=PICTURES, keep=keep, views=views)
        kind = METHODS.get(method)
        named = dict(changes)
        if method in LEARNT:
            named["archive"] = str(archives / method / "flags-135m")
        session = EditSession(lm, kind(kind.hyperparams_class.for_model("flags-135m", **named)))
        rows, seconds = [], []
        for case in cases:
            started = time.process_time()
            attempt = session.attempt(case.edits)
            seconds.append(time.process_time() - started)
            with session.carrying(attempt.patch):
                after = observe(lm, [case])
            rows.append(summarise(case, before, after, scorers()))
            print(name, case.id, rows[-1], flush=True)
        values = {column: _mean(rows, column) for column in COLUMNS}
        record = {
            "cases": [case.id for case in cases],
            "settings": changes,
            "kept": keep,
            "views": views,
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
    parser.add_argument("command", choices=("train", "measure", "table"))
    parser.add_argument("--out", "--archives", type=Path, default=Path("results"))
    parser.add_argument("--methods", nargs="*", default=list(SETTINGS))
    parser.add_argument("--cases", type=int, default=6)
    given = parser.parse_args()
    if given.command == "table":
        table()
    elif given.command == "train":
        train(given.methods, given.out)
    else:
        measure(given.methods, given.cases, given.out)


if __name__ == "__main__":
    main()
