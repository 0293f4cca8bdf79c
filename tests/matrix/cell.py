"""One cell: single edits by one method on one family, through the public interface."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cases import ITSELF, MatrixRow
from easyeditor import BaseEditor, Case
from easyeditor.evaluate.aggregate import averages
from matrix.archives import cached
from matrix.settings import BY_ROW, METHOD_OF, hyperparams
from zoo import load, models, world

EVERY = 2
"""Every second case of the eval split: 50 of 100, of every relation, the same for all cells."""


def chosen() -> tuple[Case, ...]:
    """The cases of the matrix."""
    return world.cases("eval")[::EVERY]


def few(every: int = 4) -> tuple[Case, ...]:
    """Those of the fast tier: every fourth of the matrix's, or fewer."""
    return chosen()[::every]


def of_one_token(family: str) -> tuple[Case, ...]:
    """The cases of the eval split whose answer is one token: all that FT-L can learn whole."""
    row = load(family).text.row
    cases = world.cases("eval")
    return tuple(case for case in cases if len(row(case.edit.prompt, case.edit.target).target) == 1)


def measure(
    row: str, family: str, folder: Path, cases: tuple[Case, ...] = (), *, retrain: bool = True
) -> dict[str, Any]:
    """Scores of one cell; each edit is made and scored alone, from the unedited model.

    Args:
        row: which method with which settings.
        family: which model.
        folder: for archives and second moments.
        cases: others than those of the matrix.
        retrain: train what a method learns anew, not only when the user's cache has no archive
            of an equal training.
    """
    entry, lm = BY_ROW[row], load(family)
    start = time.perf_counter()
    archive = None
    if entry.training is not None:
        config = training(entry, family, folder)
        archive = cached(config, family, lambda: train(config, family), retrain=retrain)
    trained = time.perf_counter()
    settings = hyperparams(entry, family, folder, archive)
    editor = BaseEditor.from_pretrained(lm.model, lm.tokenizer, settings)
    result = editor.edit_cases(
        cases or chosen(),
        keep_original_weight=True,
        verbose=False,
        train_ds=world.cases("train") if entry.shown else None,
    )
    end = time.perf_counter()
    mean = averages(result.metrics)
    return {
        "row": row,
        "family": family,
        "ids": [metric["case_id"] for metric in result.metrics],
        "before": _scores(mean["pre"]),
        "after": _scores(mean["post"]),
        "settings": entry.given(family),
        "training": None if entry.training is None else dict(entry.training),
        "seconds": {"train": round(trained - start, 1), "edit": round(end - trained, 1)},
    }


def training(row: MatrixRow, family: str, folder: Path) -> Any:
    """The training settings of one cell."""
    from easyeditor.methods.training import training_class_of

    model = str(models.FOLDER / family)
    settings = {k: model if v == ITSELF else v for k, v in (row.training or {}).items()}
    kind = training_class_of(METHOD_OF[row.row])
    return kind(model_name=model, results_dir=str(folder), **settings)


def train(config: Any, family: str) -> Path:
    """Train what a method learns beside one family; a tenth of the training cases judges it."""
    from easyeditor import EditTrainer

    cases = world.cases("train")
    held_out = cases[::10]
    rest = [case for i, case in enumerate(cases) if i % 10]
    return EditTrainer(config, rest, held_out, lm=load(family)).run().path


def _scores(part: dict[str, Any]) -> dict[str, float]:
    """The four numbers of a cell; before the edit only what is asked of the new answer."""
    scores = {"rewrite": part["rewrite_acc"], "rephrase": part["rephrase_acc"]}
    for group in ("locality", "portability"):
        kinds = [value for name, value in part.get(group, {}).items() if name.endswith("_acc")]
        if kinds:
            scores[group] = sum(kinds) / len(kinds)
    return {name: round(value, 4) for name, value in scores.items()}
