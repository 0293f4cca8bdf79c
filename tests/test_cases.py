"""The table of cases has one row for every method, and every row says what is so."""

from __future__ import annotations

from cases import BY_NAME, CASES
from easyeditor.methods import METHODS
from easyeditor.methods.training import training_class_of


def test_every_method_has_one_row() -> None:
    assert len(BY_NAME) == len(CASES)
    assert BY_NAME.keys() == set(METHODS)


def test_settings_are_of_the_method() -> None:
    for case in CASES:
        kind = METHODS.get(case.name).hyperparams_class
        for settings in (case.quick, *case.variants, *(row.settings for row in case.matrix)):
            kind(**settings)


def test_what_learns_has_a_quick_training() -> None:
    for case in CASES:
        learns = "archive" in METHODS.get(case.name).hyperparams_class.model_fields
        assert (case.trainer is not None) == learns, case.name
        if learns:
            assert case.trainer.keys() <= training_class_of(case.name).model_fields.keys()
