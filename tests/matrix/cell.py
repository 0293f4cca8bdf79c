"""One cell: single edits by one method on one family, through the public interface."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from easyeditor import BaseEditor, Case
from easyeditor.evaluate.aggregate import averages
from matrix.settings import BY_ROW, ITSELF, Entrant, hyperparams
from zoo import load, models, world

EVERY = 2
"""Every second case of the eval split: 50 of 100, of every relation, the same for all cells."""


def chosen() -> tuple[Case, ...]:
    """The cases of the matrix."""
    return world.cases("eval")[::EVERY]


def of_one_token(family: str) -> tuple[Case, ...]:
    """The cases of the eval split whose answer is one token: all that FT-L can learn whole."""
    row = load(family).text.row
    cases = world.cases("eval")
    return tuple(case for case in cases if len(row(case.edit.prompt, case.edit.target).target) == 1)


def measure(row: str, family: str, folder: Path, cases: tuple[Case, ...] = ()) -> dict[str, Any]:
    """What a cell shows; each edit is made and scored alone, from the unedited model.

    Args:
        row: which method with which settings.
        family: which model.
        folder: for what is trained or collected on the way.
        cases: others than those of the matrix, for tuning.
    """
    entrant, lm = BY_ROW[row], load(family)
    began = time.perf_counter()
    archive = train(entrant, family, folder) if entrant.training is not None else None
    trained = time.perf_counter()
    settings = hyperparams(entrant, family, folder, archive)
    editor = BaseEditor.from_pretrained(lm.model, lm.tokenizer, settings)
    result = editor.edit_cases(
        cases or chosen(),
        keep_original_weight=True,
        verbose=False,
        train_ds=world.cases("train") if entrant.shown else None,
    )
    spent = time.perf_counter()
    mean = averages(result.metrics)
    return {
        "row": row,
        "family": family,
        "ids": [metric["case_id"] for metric in result.metrics],
        "before": _scores(mean["pre"]),
        "after": _scores(mean["post"]),
        "settings": entrant.given(family),
        "training": entrant.training,
        "seconds": {"train": round(trained - began, 1), "edit": round(spent - trained, 1)},
    }


def train(entrant: Entrant, family: str, folder: Path) -> Path:
    """Train what a method learns beside one family; a tenth of the training cases judges it."""
    from easyeditor import EditTrainer
    from easyeditor.methods.learning import training_class_of

    cases = world.cases("train")
    own = str(models.FOLDER / family)
    given = {k: own if v == ITSELF else v for k, v in (entrant.training or {}).items()}
    config = training_class_of(entrant.method)(model_name=own, results_dir=str(folder), **given)
    held_out = cases[::10]
    rest = [case for i, case in enumerate(cases) if i % 10]
    return EditTrainer(config, rest, held_out, lm=load(family)).run().path


def _scores(part: dict[str, Any]) -> dict[str, float]:
    """The four numbers of a cell; before the edit only what is asked of the new answer."""
    found = {"rewrite": part["rewrite_acc"], "rephrase": part["rephrase_acc"]}
    for group in ("locality", "portability"):
        kinds = [value for name, value in part.get(group, {}).items() if name.endswith("_acc")]
        if kinds:
            found[group] = sum(kinds) / len(kinds)
    return {name: round(value, 4) for name, value in found.items()}
