"""LoRA: low-rank changes of linear layers, trained on the edits (arXiv 2106.09685).

``W + (α/r) A B`` with ``A`` drawn at random and ``B`` zero, on the modules that ``target_modules``
names, in all blocks or some. The patch holds the products' factors, so it exports to PEFT as it is.
The trap: with the published 70 steps at 5e-3 one prompt is overfitted; neighbours pay.
"""

from __future__ import annotations

from typing import Any, ClassVar

from easyeditor.methods.tuning import PRESETS, LowRankHyperParams, LowRankMethod


class LoRAHyperParams(LowRankHyperParams):
    """Settings of LoRA, as EasyEdit publishes them."""

    presets: ClassVar[dict[str, dict[str, Any]]] = PRESETS

    alg_name: str = "LoRA"


class LoRA(LowRankMethod):
    """Low-rank fine-tuning; ``edit`` learns all it is given together."""

    name = "LoRA"
    title = "low-rank adaptation, arXiv 2106.09685"
    hyperparams_class = LoRAHyperParams

    hyperparams: LoRAHyperParams
