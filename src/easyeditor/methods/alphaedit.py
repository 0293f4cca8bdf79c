"""AlphaEdit: edits in the null space of the keys (Fang et al., arXiv 2410.02355).

A hidden state is searched for every edit and written through several layers
(:mod:`easyeditor.methods.spread`) with the projector ``P`` onto the directions that keys hardly use
as the metric, and the keys ``Kₚ`` of earlier edits held::

    Δ = R KᵀP (KₚKₚᵀP + KKᵀP + L2·I)⁻¹

The published form inverts a ``d_in × d_in`` matrix per layer and batch; the small system gives the
same numbers.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from easyeditor.associative.solve import KeyMetric, NullSpace
from easyeditor.methods.spread import SpreadHyperParams, SpreadMethod
from easyeditor.methods.sweep_plan import SMOLLM2_SEARCH
from easyeditor.second_moments.metric import MetricOfMoment
from easyeditor.second_moments.null_space import NullSpaceOfMoment


class AlphaEditHyperParams(SpreadHyperParams):
    """Settings of AlphaEdit; defaults as published for GPT-J, layers relative to the depth.

    ``null_space`` is the share of directions that may change; with ``null_space_by="trace"`` as
    many as hold at most this share of the keys' mean squared length. ``L2`` is in units of
    ``‖P k‖²`` as published; without it ``L2_relative`` counts in units of the mean ``‖P k‖²`` of
    text, which means the same in every model. The trap in classic files: ``nullspace_threshold``
    compares with eigenvalues in the model's own units (on Mistral it leaves almost nothing to
    edit), so it is not used.
    """

    ignored: ClassVar[frozenset[str]] = SpreadHyperParams.ignored | {
        "P_loc",
        "max_length",
        "mom2_update_weight",
        "nullspace_threshold",
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt2-xl": {"layers": [13, 14, 15, 16, 17], "v_num_grad_steps": 20, "L2": 10},
        "gpt-j-6B": {"layers": [3, 4, 5, 6, 7, 8], "L2": 10},
        "llama-3-8b": {"layers": [4, 5, 6, 7, 8], "v_lr": 0.1, "L2": 10},
        "qwen2.5-7b": {
            "layers": [4, 5, 6, 7, 8],
            "v_weight_decay": 1e-3,
            "clamp_norm_factor": 4,
            "L2": 1,
        },
        # MEMIT's search; null space and L2 are the defaults, not tuned (docs/methods.md).
        "smollm2-135m": SMOLLM2_SEARCH,
    }

    alg_name: str = "AlphaEdit"
    protect_edits: bool = True
    null_space: float = Field(0.75, gt=0, lt=1)
    null_space_by: Literal["directions", "trace"] = "directions"
    L2: float | None = Field(None, gt=0)
    L2_relative: float = Field(1.0, gt=0)

    def metric(self) -> MetricOfMoment | None:
        """``P``; the identity without ``mom2_adjustment``: earlier keys are held all the same."""
        if not self.mom2_adjustment:
            return None
        return NullSpaceOfMoment(self.null_space, self.null_space_by)

    def regularization(self, metric: KeyMetric, edits: int) -> float:
        """``L2``."""
        if self.L2 is not None:
            return self.L2
        return self.L2_relative * (metric.energy if isinstance(metric, NullSpace) else 1.0)

    def recorded(self, metric: KeyMetric) -> dict[str, int]:
        """``rank(P)``."""
        return {"rank": metric.dimensions} if isinstance(metric, NullSpace) else {}


class AlphaEdit(SpreadMethod):
    """Any number of facts in one batch; sequences keep earlier facts. Needs the subjects."""

    name = "AlphaEdit"
    title = "edits in the null space of the keys, for long sequences, arXiv 2410.02355"
    hyperparams_class = AlphaEditHyperParams

    hyperparams: AlphaEditHyperParams
