"""Training by a method's name: its settings and its learner."""

from __future__ import annotations

from easyeditor.errors import TrainingError
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.methods.learning import Learner, TrainingHyperParams


def trainable() -> list[str]:
    """The names of the methods that are trained."""
    return [name for name in METHODS if METHODS.get(name).training_class is not None]


def training_class_of(method: str) -> type[TrainingHyperParams]:
    """The settings with which a method is trained.

    Raises:
        UnknownMethodError: no such method.
        TrainingError: it is not trained.
    """
    training_class = METHODS.get(method).training_class
    if training_class is None:
        raise TrainingError(
            f"{METHODS.canonical(method)} needs no training: edit with it as it is. Methods that "
            f"are trained: {', '.join(trainable()) or 'none'}."
        )
    return training_class


def learner_of(lm: LM, config: TrainingHyperParams) -> Learner:
    """The networks to be trained for ``config.alg_name`` on this model.

    Raises:
        TrainingError: the method is not trained.
        HyperParamsError: these are not settings of a training, or do not fit the model.
    """
    training_class_of(config.alg_name)
    lm.check_claims(config.family_claims)
    return METHODS.get(config.alg_name).learner(lm, config)
