"""MEMIT: mass-editing memory in a transformer (Meng et al., arXiv 2210.07229).

A hidden state is searched for every edit and written through several layers
(:mod:`easyeditor.methods.spread`) with the metric ``C⁻¹``::

    Δ = R Kᵀ (λC + KKᵀ)⁻¹ = R (λI + Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹

λ (``mom2_update_weight``) multiplies the *mean* second moment. Every ``C`` comes from the unedited
model, and is factored once for any number of batches. With ``protect_edits`` earlier keys join
``K``: that is ``C`` updated by them (arXiv 2410.02355 has it as ``K₁K₁ᵀ``).
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from easyeditor.associative.solve import KeyMetric
from easyeditor.methods.spread import SpreadHyperParams, SpreadMethod
from easyeditor.methods.sweep_plan import SMOLLM2_SEARCH


class MEMITHyperParams(SpreadHyperParams):
    """Settings of MEMIT; defaults as published for GPT-J, layers relative to the depth.

    ``protect_edits`` and ``key="ridge"`` are not in the paper; see
    :class:`~easyeditor.methods.spread.SpreadHyperParams`.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt2-xl": {
            "layers": [13, 14, 15, 16, 17],
            "v_num_grad_steps": 20,
            "mom2_update_weight": 20000,
        },
        "gpt-j-6B": {"layers": [3, 4, 5, 6, 7, 8]},
        "gpt-neo-2.7B": {"layers": [3, 4, 5, 6, 7, 8]},
        "llama-7b": {"layers": [4, 5, 6, 7, 8], "v_weight_decay": 1e-3, "clamp_norm_factor": 4},
        "llama-2-7b": {"layers": [4, 5, 6, 7, 8], "v_weight_decay": 1e-3, "clamp_norm_factor": 4},
        # None was published. In an encoder an averaged key may miss the bare one by a tenth.
        "t5-3b": {"layers": [5, 6, 7, 8, 9], "key": "ridge", "mom2_dataset": "wikipedia"},
        "smollm2-135m": {**SMOLLM2_SEARCH, "mom2_update_weight": 2000},
    }

    alg_name: str = "MEMIT"
    mom2_update_weight: float = Field(15000, ge=0)

    def regularization(self, metric: KeyMetric, edits: int) -> float:
        """λ."""
        return self.mom2_update_weight


class MEMIT(SpreadMethod):
    """Any number of facts in one batch, spread over several layers. Needs the subjects."""

    name = "MEMIT"
    title = "mass-editing memory in a transformer, arXiv 2210.07229"
    hyperparams_class = MEMITHyperParams

    hyperparams: MEMITHyperParams
