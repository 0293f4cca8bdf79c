"""EMMET: equality-constrained mass editing (Gupta et al., arXiv 2403.14236).

MEMIT's solve in one layer with next to no regularization, so that every fact is stored exactly; one
fact without any is ROME with the averaged key.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from easyeditor.associative.solve import KeyMetric
from easyeditor.hyperparams import Layers
from easyeditor.methods.spread import SpreadHyperParams, SpreadMethod
from easyeditor.methods.sweep_plan import LAYER_RANGE, SweepPlan


class EMMETHyperParams(SpreadHyperParams):
    """Settings of EMMET; the layer relative to the depth.

    For several edits the regularization is ``mom2_update_weight × emmet_lambda``, the weight of the
    second moment times the slack; a single edit has none and is exact.
    """

    ignored: ClassVar[frozenset[str]] = SpreadHyperParams.ignored | {
        "calculate_objective_value",
        "max_length",
        "update_norm_lambda",
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt2-xl": {"layers": [17], "v_num_grad_steps": 20, "mom2_update_weight": 1000},
        "gpt-j-6B": {"layers": [5]},
        "llama-2-7b": {"layers": [5], "v_weight_decay": 1e-3, "clamp_norm_factor": 4},
    }

    sweep: ClassVar[SweepPlan | None] = replace(LAYER_RANGE, probe="EMMET", per_width={}, width=0.0)

    alg_name: str = "EMMET"
    layers: Layers = (0.17,)
    mom2_update_weight: float = Field(1.0, ge=0)
    emmet_lambda: float = Field(0.1, ge=0)

    def regularization(self, metric: KeyMetric, edits: int) -> float:
        """None for one edit."""
        return self.mom2_update_weight * self.emmet_lambda if edits > 1 else 0.0


class EMMET(SpreadMethod):
    """Any number of facts, stored exactly in one layer. Needs the subjects."""

    name = "EMMET"
    title = "equality-constrained mass editing, arXiv 2403.14236"
    hyperparams_class = EMMETHyperParams

    hyperparams: EMMETHyperParams
