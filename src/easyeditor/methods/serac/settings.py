"""Settings of SERAC: for editing with a trained archive, and for training one."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from easyeditor.hyperparams import HyperParams
from easyeditor.lm.embedded import ENCODER
from easyeditor.methods.learning import PUBLISHED_SCHEDULE, TrainingHyperParams
from easyeditor.methods.serac.patch import IMAGE_WEIGHT, TEMPLATE, THRESHOLD

# What the classic files say of variants of the classifier, and of another method's networks that
# they list as well; one way is built here.
_CLASSIC = """
act bound_embeds checkpoint_grad cls_class combine cos cross_attend delta_only
dist_heads edit_bs edit_lr freeze hidden_dim init inner_params log_errors lora lr_lr
mlp_class n_hidden norm one_sided rank shared square supervised unlikelihood
use_all_negatives x_only
"""
_VARIANTS = frozenset(_CLASSIC.split())
_SMALL = {  # the small models with the tokenizer of the large one, as published
    "gpt2-xl": "gpt2",
    "gpt-j-6B": "gpt2",
    "gpt-neo-2.7B": "gpt2",
    "llama-7b": "JackFram/llama-160m",
    "llama-2-7b": "JackFram/llama-160m",
    "t5-3b": "google-t5/t5-small",
    "smollm2-135m": "smollm2-135m",
}
_PUBLISHED: dict[str, Any] = {
    "cls_name": "distilbert/distilbert-base-cased",
    "lr": 1e-5,
    "head_lr": 1e-5,
    "in_scope_weight": 1.0,
    **PUBLISHED_SCHEDULE,
}
_DESK: dict[str, Any] = {"max_iters": 48, "log_interval": 8, "val_interval": 16, "val_steps": 50}
"""For a small model with a sentence encoder: 6 minutes on 900 cases of ZsRE, two cores."""


def _asks(template: str) -> str:
    missing = [name for name in ("{prompt}", "{target}", "{query}") if name not in template]
    if missing:
        raise ValueError(f"{', '.join(missing)} is missing; write e.g. {TEMPLATE!r}")
    return template


class SERACHyperParams(HyperParams):
    """Settings for editing with a trained archive.

    ``archive`` is the file a training wrote, or its folder; both networks are in it.
    ``small_name`` and ``cls_name`` are held against it where they are given. ``threshold`` is the
    similarity, 0 to 1, over which a prompt is an edit's business. ``image_weight``, of a model that
    sees, is what the squared distance of two images' features (0 to 4) counts beside the texts'.
    """

    ignored: ClassVar[frozenset[str]] = (
        _VARIANTS
        | TrainingHyperParams.ignored - {"archive"}
        | (frozenset(TrainingHyperParams.model_fields) - frozenset(HyperParams.model_fields))
        - {"batch_size"}
        | {"soft_weighting", "freeze_cntr", "layers"}
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        name: {"archive": f"results/SERAC/{name}"} for name in _SMALL
    }

    alg_name: str = "SERAC"
    archive: str | None = None
    small_name: str | None = None
    cls_name: str | None = None
    threshold: float = Field(THRESHOLD, gt=0, lt=1)
    image_weight: float = Field(IMAGE_WEIGHT, ge=0)
    batch_size: int = Field(1, ge=1)


class SERACTrainingHparams(TrainingHyperParams):
    """Settings for training; the presets of large models are the published ones.

    ``small_name`` is the counterfactual model: any with the base model's tokenizer; a copy of the
    base (of one that sees, of its text column) if it is not given. ``cls_name`` is the scope
    classifier: any network that gives hidden states. ``lr`` is the step size of the one, ``cls_lr``
    of the other (the same if it is not given), ``head_lr`` of the linear map on the classifier.
    ``in_scope_weight`` is what paraphrases weigh against the nearest foreign edits of a batch,
    which are its hardest questions. ``template`` is what the counterfactual model is asked.
    ``freeze_cntr`` trains the classifier alone, for a counterfactual model that reads instructions
    by itself. ``soft_weighting`` trains both together on the mixture ``s · counterfactual + (1 − s)
    · base``, ``s`` the similarity.
    """

    ignored: ClassVar[frozenset[str]] = TrainingHyperParams.ignored | _VARIANTS | {"layers"}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        name: {"small_name": small, **(_PUBLISHED if name != "smollm2-135m" else _DESK)}
        for name, small in _SMALL.items()
    }

    alg_name: str = "SERAC"
    small_name: str | None = None
    cls_name: str = ENCODER
    template: Annotated[str, AfterValidator(_asks)] = TEMPLATE
    lr: float = Field(2e-5, gt=0)
    cls_lr: float | None = Field(None, gt=0)
    head_lr: float = Field(1e-3, gt=0)
    in_scope_weight: float = Field(2.0, gt=0)
    freeze_cntr: bool = False
    soft_weighting: bool = False
