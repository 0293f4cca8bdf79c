"""Settings of MALMEN: for editing with a trained archive, and for training one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import Field

from easyeditor.hyperparams import Layers, resolve_layers
from easyeditor.methods.gradient_learner import GradientHyperParams, GradientTrainingHparams
from easyeditor.methods.learning import TrainingHyperParams

USUAL: tuple[int | float, ...] = (-6, -5, -4, -3, -2, -1)
"""The last six blocks, or as many as there are."""


def shortened(layers: Layers, n_layers: int) -> Layers:
    """The usual layers as many as a model of ``n_layers`` has; others as they are."""
    return layers[-n_layers:] if tuple(layers) == USUAL else layers


BUILD = frozenset(["editor_batch_size", "token"])
"""What classic files say of chunks and of the positions that are read; both are fixed here."""


def named(pattern: str, layers: Iterable[int]) -> list[str]:
    """Names of one weight in several blocks."""
    return [pattern.format(layer) for layer in layers]


_LAST_SIX: dict[str, list[str]] = {
    "gpt2-xl": named("transformer.h.{}.mlp.c_proj", range(42, 48)),
    "gpt-j-6B": named("transformer.h.{}.mlp.fc_out", range(22, 28)),
}


class MALMENHyperParams(GradientHyperParams):
    """Settings for editing with a trained archive; see :class:`GradientHyperParams`.

    ``batch_size`` is how many edits are solved for at once: about the number that the archive was
    trained for (``n_edits`` in classic files).
    """

    ignored: ClassVar[frozenset[str]] = (
        (TrainingHyperParams.ignored - {"archive", "lr_scale"})
        | BUILD
        | (
            frozenset(TrainingHyperParams.model_fields)
            - frozenset(GradientHyperParams.model_fields)
        )
        | {"edit_lr", "loc_coef", "max_grad_norm", "meta_lr", "n_blocks", "rank"}
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        **{name: {"archive": f"results/MALMEN/{name}", "batch_size": 512} for name in _LAST_SIX},
        "smollm2-135m": {"archive": "results/MALMEN/smollm2-135m", "batch_size": 32},
    }

    alg_name: str = "MALMEN"
    layers: Layers = USUAL

    def __init__(self, /, **data: Any) -> None:
        super().__init__(**with_edits_at_once(data))

    def resolved(self, n_layers: int) -> MALMENHyperParams:
        """The same settings with absolute layer numbers; of a short model the usual are all."""
        return self.replace(layers=resolve_layers(shortened(self.layers, n_layers), n_layers))


class MALMENTrainingHparams(GradientTrainingHparams):
    """Settings for training; the presets of large models are the published ones.

    ``batch_size`` is the number of edits that are solved for at once: the networks learn for this
    number. ``lr`` is their step size; the learned rates begin at ``edit_lr``. Classic files call
    these ``n_edits``, ``meta_lr`` and ``lr``, and ``cloc`` and ``grad_clip`` ``loc_coef`` and
    ``max_grad_norm``; they are read as they are. ``rank`` is never more than a weight's two widths
    together. Passes of the model take as many rows as 512 tokens are, whatever the number of edits.
    """

    ignored: ClassVar[frozenset[str]] = TrainingHyperParams.ignored | BUILD
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        **{
            name: {
                "inner_params": paths,
                "lr": 1e-5,
                "edit_lr": 1e-6,
                "batch_size": 512,
                "max_iters": 10_000,
                "log_interval": 100,
                "val_interval": 100,
            }
            for name, paths in _LAST_SIX.items()
        },
        # Half of these steps are measured (docs/methods.md). Untrained, an edit_lr of 1e-3 learns
        # more of 64 edits and costs a third of the unrelated answers.
        "smollm2-135m": {
            "lr": 1e-4,
            "edit_lr": 3e-4,
            "rank": 512,
            "lr_schedule": "cosine",
            "batch_size": 32,
            "max_iters": 30,
            "log_interval": 5,
            "val_interval": 15,
            "val_steps": 64,
        },
    }

    alg_name: str = "MALMEN"
    layers: Layers = USUAL
    batch_size: int = Field(64, ge=1)
    cedit: float = Field(1.0, ge=0)
    cloc: float = Field(1.0, ge=0)
    grad_clip: float | None = Field(1.0, gt=0)
    n_blocks: int = Field(2, ge=0)
    rank: int = Field(1920, ge=1)
    edit_lr: float = Field(1e-6, gt=0)

    def __init__(self, /, **data: Any) -> None:
        if "meta_lr" in data:  # classic: lr is the initial rate of the edits
            data = {**data, "lr": data["meta_lr"]} | (
                {"edit_lr": data["lr"]} if "lr" in data else {}
            )
            del data["meta_lr"]
        for classic, name in (("loc_coef", "cloc"), ("max_grad_norm", "grad_clip")):
            if classic in data:
                data = {**data, name: data[classic]}
                del data[classic]
        super().__init__(**self.counted(data))

    @classmethod
    def counted(cls, data: dict[str, Any]) -> dict[str, Any]:
        """``data`` with the number of edits under the name it has here."""
        return with_edits_at_once(data)


def with_edits_at_once(data: dict[str, Any]) -> dict[str, Any]:
    """Classic ``n_edits`` as ``batch_size``, which there is the size of a forward pass."""
    if "n_edits" not in data:
        return data
    return {k: v for k, v in data.items() if k != "n_edits"} | {"batch_size": data["n_edits"]}
