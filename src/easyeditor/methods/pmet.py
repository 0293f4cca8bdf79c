"""PMET: MEMIT's spread of a value that was searched beside one of attention (arXiv 2308.08742).

Two vectors are searched together at the last layer of the range: one at the MLP's down-projection,
one at attention's output projection, each within its own ball and with its own decay. The second
takes up what is attention's share in the answer and is thrown away; only the first is written, in
closed form as by MEMIT, each layer carrying the residual divided by the square root of the number
of layers left. The trap: what attention took up is missing from the edited model's answer.
"""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Any, ClassVar

from pydantic import Field

from easyeditor.associative.solve import KeyMetric
from easyeditor.associative.value_optimization import ValueOptions
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.model import LM
from easyeditor.methods.spread import SpreadHyperParams, SpreadMethod
from easyeditor.methods.sweep_plan import SMOLLM2_SEARCH, SweepPlan

STOP_KL = 0.01
NLL_FACTOR_ONCE_RIGHT = 0.1


class PMETHyperParams(SpreadHyperParams):
    """Settings of PMET; defaults as its authors publish them for GPT-J, layers relative.

    ``mom2_update_weight`` is λ. Where the target is the most probable answer in every context its
    loss counts a tenth, and the search ends once the KL term is at most 0.01.
    """

    sweep: ClassVar[SweepPlan | None] = None  # MEMIT's searches were not measured with it

    ignored: ClassVar[frozenset[str]] = SpreadHyperParams.ignored | {
        "nll_loss_factor",
        "rewrite_module_tmps",
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt-j-6B": {"layers": [3, 4, 5, 6, 7, 8]},
        "llama-2-7b": {  # of another implementation; the authors publish none
            "layers": [4, 5, 6, 7, 8],
            "v_num_grad_steps": 20,
            "v_lr": 0.5,
            "kl_factor": 0.0625,
            "mom2_update_weight": 15000,
            "clamp_norm_factor": 1,
        },
        "smollm2-135m": {**SMOLLM2_SEARCH, "mom2_update_weight": 2000},
    }

    alg_name: str = "PMET"
    v_num_grad_steps: int = Field(30, ge=1)
    v_lr: float = Field(0.2, gt=0)
    kl_factor: float = Field(1.0, ge=0)
    mom2_update_weight: float = Field(6000.0, gt=0)

    def regularization(self, metric: KeyMetric, edits: int) -> float:
        """λ."""
        return self.mom2_update_weight

    def share(self, left: int) -> float:
        """``√left``."""
        return sqrt(left)

    def search(self) -> ValueOptions:
        """The settings of the value search, with its own rule of stopping."""
        return replace(
            super().search(),
            argmax_nll_factor=NLL_FACTOR_ONCE_RIGHT,
            argmax_stop_kl=STOP_KL if self.kl_factor else None,
        )


class PMET(SpreadMethod):
    """Any number of facts in one batch, their values freed of attention's share."""

    name = "PMET"
    title = "MEMIT with a second, discarded value at attention, arXiv 2308.08742"
    hyperparams_class = PMETHyperParams

    hyperparams: PMETHyperParams

    def _where(self, lm: LM, layers: list[int]) -> tuple[Site, list[int], float]:
        """Both projections of the last layer; all layers, or the last where outputs are normed."""
        _, layers, _ = super()._where(lm, layers)
        module = lm.sublayer(layers[-1], "attention")
        path = next(name for name, other in lm.model.named_modules() if other is module)
        return Site(layers[-1], "down", also=path), layers, 1.0
