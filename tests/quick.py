"""Methods with the quick settings of the table of cases, on tiny models, their archives trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiny
from cases import BY_NAME, ENCODER, ITSELF
from easyeditor import LM, Edit
from easyeditor.methods import METHODS
from easyeditor.methods.base import Method
from easyeditor.patches.patch import Patch
from support import EDITS


class Maker:
    """Makes methods; what they learn is trained once per family and kept for the session."""

    def __init__(self, folder: Path, corpus: str, stats_dir: str) -> None:
        self._folder, self._corpus, self._stats_dir = folder, corpus, stats_dir
        self._archives: dict[tuple[str, str, str], str] = {}

    def __call__(self, name: str, lm: LM, family: str, **changes: Any) -> Method:
        """The method with its quick settings and ``changes``, for a tiny model."""
        kind = METHODS.get(name)
        fields = kind.hyperparams_class.model_fields
        settings = {**BY_NAME[name].quick, **changes}
        if "mom2_n_tokens" in settings:
            settings |= {"mom2_dataset": self._corpus, "stats_dir": self._stats_dir}
        if "archive" in fields:
            settings["archive"] = self._archive(name, lm, family)
        return kind(kind.hyperparams_class(**settings))

    def _archive(self, name: str, lm: LM, family: str) -> str:
        from easyeditor import EditTrainer
        from learning_cases import CASES

        key = (name, family, str(next(lm.model.parameters()).dtype))
        if key not in self._archives:
            folder = self._folder / "-".join(key)
            paths = {ITSELF: str(folder), ENCODER: str(self._encoder())}
            given = {
                field: paths.get(value, value) if isinstance(value, str) else value
                for field, value in (BY_NAME[name].trainer or {}).items()
            }
            config = METHODS.get(name).training_class(results_dir=str(folder), **given)
            self._archives[key] = str(EditTrainer(config, CASES, CASES, lm=lm).run().path)
        return self._archives[key]

    def _encoder(self) -> Path:
        place = self._folder / "encoder"
        if not place.is_dir():
            tiny.model("gpt2", seed=2).save_pretrained(place)
            tiny.tokenizer().save_pretrained(place)
        return place


def edit_with(method: Method, lm: LM, edits: Sequence[Edit]) -> Patch:
    """The patch of one edit."""
    return method.edit(lm, edits).patch


def batch_of(name: str) -> Sequence[Edit]:
    """As many of the three edits as one call takes."""
    return EDITS if METHODS.get(name).max_batch is None else EDITS[: METHODS.get(name).max_batch]
