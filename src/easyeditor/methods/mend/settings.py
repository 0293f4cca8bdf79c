"""Settings of MEND: for editing with a trained archive, and for training one."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from easyeditor.gradients.sites import named_projections
from easyeditor.hyperparams import Layers
from easyeditor.lm.model import LM
from easyeditor.lm.projection import Projection
from easyeditor.methods.gradient_learner import GradientHyperParams, GradientTrainingHparams
from easyeditor.methods.learning import PUBLISHED_SCHEDULE, TrainingHyperParams

USUAL: tuple[int | float, ...] = (-3, -2, -1)
"""The last three blocks; of an encoder-decoder the last two of each column."""

# What the classic files say of how the networks are built; an archive knows that itself.
_BUILD = frozenset(
    [
        "act",
        "combine",
        "delta_only",
        "hidden_dim",
        "init",
        "mlp_class",
        "norm",
        "one_sided",
        "shared",
        "x_only",
    ]
)
_PUBLISHED: dict[str, Any] = {
    "lr": 1e-6,
    "lr_lr": 1e-4,
    **PUBLISHED_SCHEDULE,
}


class MENDHyperParams(GradientHyperParams):
    """Settings for editing with a trained archive; see :class:`GradientHyperParams`."""

    ignored: ClassVar[frozenset[str]] = (
        TrainingHyperParams.ignored
        - {
            "archive",
            "lr_scale",
        }
        | _BUILD
        | frozenset(
            [
                "accumulate_bs",
                "cedit",
                "cloc",
                "early_stop_patience",
                "edit_lr",
                "grad_clip",
                "half",
                "log_interval",
                "lr",
                "lr_lr",
                "max_iters",
                "n_hidden",
                "opt",
                "rank",
                "results_dir",
                "seed",
                "val_batch_size",
                "val_interval",
                "val_steps",
            ]
        )
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        name: {"archive": f"results/MEND/{name}"}
        for name in (
            "gpt2-xl",
            "gpt-j-6B",
            "gpt-neo-2.7B",
            "llama-7b",
            "llama-2-7b",
            "t5-3b",
            "smollm2-135m",
        )
    }

    alg_name: str = "MEND"


class MENDTrainingHparams(GradientTrainingHparams):
    """Settings for training; the presets of large models are the published ones.

    ``lr`` is the networks', ``lr_lr`` that of the learned rates, which begin at ``edit_lr``.
    ``rank`` is never more than a weight's two widths together. The defaults are for what fits
    beside a desk: batches of 8 and a step size that converges in hundreds of steps.
    """

    ignored: ClassVar[frozenset[str]] = TrainingHyperParams.ignored | _BUILD
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        **{
            name: dict(_PUBLISHED)
            for name in ("gpt2-xl", "gpt-j-6B", "gpt-neo-2.7B", "llama-7b", "llama-2-7b")
        },
        "t5-3b": {**_PUBLISHED, "layers": [-2, -1]},
        # 900 cases of ZsRE, two cores: 13 minutes (docs/methods.md).
        "smollm2-135m": {
            "lr_schedule": "cosine",
            "max_iters": 240,
            "log_interval": 10,
            "val_interval": 60,
        },
    }

    alg_name: str = "MEND"
    n_hidden: int = Field(1, ge=0)
    rank: int = Field(1920, ge=1)
    edit_lr: float = Field(1e-4, gt=0)
    lr_lr: float = Field(1e-4, ge=0)


def sites_of(lm: LM, layers: Layers, inner_params: tuple[str, ...]) -> list[Projection]:
    """The weights to edit: those named, else every MLP projection at ``layers``.

    Raises:
        HyperParamsError: names that are no weights of linear maps of this model; lists all.
    """
    if not inner_params:
        return lm.mlp_projections(blocks_of(lm, layers))
    return named_projections(lm, inner_params)


def blocks_of(lm: LM, layers: Layers) -> tuple[int | float, ...]:
    """``layers`` as they are meant for this model: a short model has no third block from above."""
    if tuple(layers) != USUAL:
        return tuple(layers)
    return (-2, -1) if lm.encoder_decoder else USUAL[-min(len(USUAL), lm.n_layers) :]
