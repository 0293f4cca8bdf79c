"""AdaLoRA: LoRA whose ranks fall to a budget where they matter least (arXiv 2303.10512).

``W + (α/r) P diag(λ) Q`` starts with ``initial_rank`` triplets per matrix; after every epoch the
least important of all matrices are cut, down to ``rank`` per matrix on average. It is LoRA with
``lora_type="adalora"``. The trap: training cannot stop before the budget is reached, so an edit
that LoRA learns in ten steps takes most of ``num_steps`` here.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from easyeditor.methods.tuning import PRESETS, LowRankHyperParams, LowRankMethod


class AdaLoRAHyperParams(LowRankHyperParams):
    """Settings of AdaLoRA: LoRA's, with a budget."""

    presets: ClassVar[dict[str, dict[str, Any]]] = PRESETS

    alg_name: str = "AdaLoRA"
    lora_type: Literal["lora", "adalora"] = "adalora"


class AdaLoRA(LowRankMethod):
    """Low-rank fine-tuning with a falling budget of ranks."""

    name = "AdaLoRA"
    title = "low-rank adaptation with a budget of ranks, arXiv 2303.10512"
    hyperparams_class = AdaLoRAHyperParams

    hyperparams: AdaLoRAHyperParams
