"""AnyEdit: texts of any length in windows, without a subject (arXiv 2502.05628).

MEMIT's search and solve (:mod:`easyeditor.methods.memit`) with a (key, value) pair for every window
of the text: the first is read at the question's last token, each other one at the last token of the
window before. There are no sampled contexts and no divergence term, and the keys of the text's
other tokens are held::

    Δ = R Kᵀ (λC + KₚKₚᵀ + KKᵀ)⁻¹

For facts with a subject MEMIT and AlphaEdit take the same ``window``, and read the first at it.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from easyeditor.methods.memit import MEMITHyperParams
from easyeditor.methods.spread import SpreadMethod
from easyeditor.methods.sweep_plan import SMOLLM2_SEARCH, ContextLengths, SweepPlan


class AnyEditHyperParams(MEMITHyperParams):
    """Settings of AnyEdit; defaults as published for LLaMA-3, layers relative to the depth."""

    sweep: ClassVar[SweepPlan | None] = None  # a sweep edits facts of a word at their subjects

    ignored: ClassVar[frozenset[str]] = MEMITHyperParams.ignored | {"ds_name", "overlap"}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "llama-3-8b": {"layers": [4, 5, 6, 7, 8]},
        "qwen2.5-7b": {"layers": [4, 5, 6, 7, 8], "window": 50},
        "smollm2-135m": {
            **SMOLLM2_SEARCH,
            "context_template_length_params": [],
            "layers": [10, 11, 12, 13, 14],
            "mom2_update_weight": 20,
            "window": 8,
        },
    }

    alg_name: str = "AnyEdit"
    layers: tuple[int | float, ...] = Field((0.125, 0.156, 0.19, 0.22, 0.25), min_length=1)
    window: int | None = Field(40, ge=1)
    first_window_at: Literal["subject_last", "prompt_last"] = "prompt_last"
    append_eos: bool = True
    kl_factor: float = Field(0.0, ge=0)
    v_weight_decay: float = Field(1e-3, ge=0)
    clamp_norm_factor: float = Field(4.0, gt=0)
    context_template_length_params: ContextLengths = ()
    batch_size: int = Field(1, ge=1)


class AnyEdit(SpreadMethod):
    """Texts of any length, each in windows of ``window`` tokens. Needs no subjects."""

    name = "AnyEdit"
    title = "a text in windows, each with a value of its own, arXiv 2502.05628"
    hyperparams_class = AnyEditHyperParams
    needs = frozenset()
    searches_expansions = False

    hyperparams: AnyEditHyperParams
