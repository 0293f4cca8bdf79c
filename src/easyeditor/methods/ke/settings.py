"""Settings of KE: for editing with a trained archive, and for training one."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from easyeditor.methods.gradient_learner import GradientHyperParams, GradientTrainingHparams
from easyeditor.methods.ke.nets import CONDITION, GATE_HIDDEN, HIDDEN
from easyeditor.methods.learning import PUBLISHED_SCHEDULE, TrainingHyperParams

_MODELS = ("gpt2-xl", "gpt-j-6B", "t5-3b", "smollm2-135m")


class KEHyperParams(GradientHyperParams):
    """Settings for editing with a trained archive; see :class:`GradientHyperParams`."""

    ignored: ClassVar[frozenset[str]] = (
        (TrainingHyperParams.ignored - {"archive", "lr_scale"})
        | (
            frozenset(TrainingHyperParams.model_fields)
            - frozenset(GradientHyperParams.model_fields)
        )
        | {"edit_lr", "lr_lr"}
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        name: {"archive": f"results/KE/{name}"} for name in _MODELS
    }

    alg_name: str = "KE"


class KETrainingHparams(GradientTrainingHparams):
    """Settings for training; those of large models are the classic files'.

    ``lr`` is the step size of the networks, ``lr_lr`` that of the scales ``s``, which begin at
    ``edit_lr``. The loss is ``cedit`` × edit + ``cloc`` × KL, as the classic files have it; the
    paper minimises the edit's loss subject to a bound on the KL, by a multiplier.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        **{
            name: {"lr": 1e-5, "lr_lr": 1e-3, "edit_lr": 1e-2, **PUBLISHED_SCHEDULE}
            for name in _MODELS
            if name != "smollm2-135m"
        },
        "smollm2-135m": {
            "lr": 1e-3,
            "edit_lr": 10.0,
            "lr_lr": 0.3,
            "lr_schedule": "cosine",
            "max_iters": 120,
            "log_interval": 10,
            "val_interval": 60,
        },
    }

    alg_name: str = "KE"
    hidden: int = Field(HIDDEN, ge=1)
    condition: int = Field(CONDITION, ge=1)
    gate_hidden: int = Field(GATE_HIDDEN, ge=1)
    edit_lr: float = Field(1e-2, gt=0)
    lr_lr: float = Field(1e-3, ge=0)
