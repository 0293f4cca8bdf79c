"""QLoRA: LoRA beside a model quantized to 4 (or 8) bits (arXiv 2305.14314).

Its settings load the model through bitsandbytes; the frozen matrices stay packed, and only the
factors are trained. A model that is handed over unquantized is trained as it is, which is LoRA;
one log line says so. The trap: applying the patch replaces each changed matrix by a plain one
(dequantized, plus the change) until it is undone, so fewer modules take less memory.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from easyeditor.edits import Edit
from easyeditor.lm.model import LM
from easyeditor.lm.quantized import quantized_layers
from easyeditor.methods.base import Outcome, State
from easyeditor.methods.tuning import PRESETS, LowRankHyperParams, LowRankMethod

log = logging.getLogger(__name__)


class QLoRAHyperParams(LowRankHyperParams):
    """Settings of QLoRA; classic files name the bits ``quantization_bit`` and the rank ``lora_r``.

    The trap: the published single step at 5e-3 hardly trains anything; the default is LoRA's 70.
    """

    ignored: ClassVar[frozenset[str]] = LowRankHyperParams.ignored | {"double_quant", "quant_type"}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "llama-2-7b": {**PRESETS["llama-2-7b"], "num_steps": 1},
        "llama-3-8b": {**PRESETS["llama-3-8b"], "num_steps": 1},
        "smollm2-135m": PRESETS["smollm2-135m"],
    }

    alg_name: str = "QLoRA"
    quantization: Literal["8bit", "4bit"] | None = "4bit"

    def __init__(self, /, **data: Any) -> None:
        if "quantization_bit" in data:
            data.setdefault("quantization", f"{data.pop('quantization_bit')}bit")
        if "lora_r" in data:
            data.setdefault("rank", data.pop("lora_r"))
        super().__init__(**data)


class QLoRA(LowRankMethod):
    """Low-rank fine-tuning beside a quantized model."""

    name = "QLoRA"
    title = "low-rank adaptation of a quantized model, arXiv 2305.14314"
    hyperparams_class = QLoRAHyperParams

    hyperparams: QLoRAHyperParams

    def edit(self, lm: LM, edits: Sequence[Edit], state: State | None = None) -> Outcome[State]:
        """See :class:`~easyeditor.methods.tuning.LowRankMethod`."""
        if not quantized_layers(lm.model):
            log.warning(
                "QLoRA: %s is not quantized, so this is LoRA. Load it with quantization='4bit' "
                "(pip install 'easyedit-lm[quantized]').",
                lm.name,
            )
        return super().edit(lm, edits, state)
