"""ENCORE: MEMIT with a ridge on the change, earlier keys held, early stopping (arXiv 2502.01636).

A hidden state is searched for every edit until the target is the most probable answer in every
context, and written through several layers (:mod:`easyeditor.methods.spread`) with::

    Δ = R Kᵀ (λC + K₁K₁ᵀ + KKᵀ + μI)⁻¹

``K₁`` are the keys of earlier edits. ``μI`` keeps the change small in the directions that text
hardly uses, where ``λC`` allows any; over a long sequence the weights' norm grows more slowly.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from easyeditor.associative.solve import KeyMetric
from easyeditor.methods.spread import SpreadHyperParams, SpreadMethod
from easyeditor.methods.sweep_plan import SMOLLM2_SEARCH, SweepPlan
from easyeditor.second_moments.metric import InverseOfSum, MetricOfMoment


class ENCOREHyperParams(SpreadHyperParams):
    """Settings of ENCORE; layers relative to the depth.

    ``mom2_update_weight`` is λ. ``update_norm_lambda`` is μ in the units of the keys, as published;
    without it, ``norm_share`` times the mean diagonal of ``λC``, which means the same in every
    model. The search stops at the argmax (``v_stop_argmax``).
    """

    sweep: ClassVar[SweepPlan | None] = None  # MEMIT's searches were not measured with it

    ignored: ClassVar[frozenset[str]] = SpreadHyperParams.ignored | {
        *("add_prev_edits", "calculate_norms", "calculate_objective_value", "condition_num"),
        *("dynamic_multiplier", "emmet_lambda", "gd_lambda", "grad_desc_lr", "grad_desc_steps"),
        *("norm_control", "prob_cutoff", "random_vector_preservation", "spectral_norm", "use_gd"),
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt2-xl": {
            "layers": [13, 14, 15, 16, 17],
            "v_num_grad_steps": 20,
            "mom2_update_weight": 20000,
            "update_norm_lambda": 10,
        },
        "llama-2-7b": {
            "layers": [4, 5, 6, 7, 8],
            "v_weight_decay": 1e-3,
            "clamp_norm_factor": 4,
            "update_norm_lambda": 20,
        },
        "llama-3-8b": {
            "layers": [4, 5, 6, 7, 8],
            "v_weight_decay": 1e-3,
            "clamp_norm_factor": 4,
            "update_norm_lambda": 20,
        },
        "smollm2-135m": {**SMOLLM2_SEARCH, "mom2_update_weight": 2000},
    }

    alg_name: str = "ENCORE"
    protect_edits: bool = True
    v_stop_argmax: bool = True
    mom2_update_weight: float = Field(15000.0, gt=0)
    update_norm_lambda: float | None = Field(None, ge=0)
    norm_share: float = Field(0.05, ge=0)

    def metric(self) -> MetricOfMoment | None:
        """``(λC + μI)⁻¹``; the identity without ``mom2_adjustment``."""
        if not self.mom2_adjustment:
            return None
        return InverseOfSum(self.mom2_update_weight, self.update_norm_lambda, self.norm_share)

    def regularization(self, metric: KeyMetric, edits: int) -> float:
        """1, as λ and μ are in the metric; λ without ``mom2_adjustment``."""
        return 1.0 if self.mom2_adjustment else self.mom2_update_weight


class ENCORE(SpreadMethod):
    """Any number of facts in one batch; earlier facts and the weights' norm are held."""

    name = "ENCORE"
    title = "MEMIT with a ridge and early stopping, for long sequences, arXiv 2502.01636"
    hyperparams_class = ENCOREHyperParams

    hyperparams: ENCOREHyperParams
