"""``ModelSpec``: which model is loaded, and how; nested in the hyperparameters of every method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["8bit", "4bit"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The options of :func:`easyeditor.load`; flat fields of classic hyperparameter files.

    Attributes:
        model_name: ``"smollm2-135m"`` (embedded), a hub name, a folder, or a ``.gguf`` file.
        device: None: the accelerator if there is one, else the CPU; a number: that accelerator; or
            a device of torch's. Unused with ``model_parallel``.
        dtype: the precision to compute in; the checkpoint's by default, except that float16 is
            read as float32 on a CPU.
        fp16: the classic spelling of ``dtype="float16"``.
        quantization: quantize the linear layers while loading, by bitsandbytes. An edited matrix
            is computed with in ``dtype`` while it is edited.
        chat_template: wrap prompts by the tokenizer's chat template.
        model_parallel: spread the model over all devices (``device_map="auto"``).
        trust_remote_code: run Python code that lies in the model's repository or folder. Without
            it such code is never run and nobody is asked.
    """

    model_name: str = ""
    device: int | str | None = None
    dtype: Dtype | None = None
    fp16: bool = False
    quantization: Quantization | None = None
    chat_template: bool = False
    model_parallel: bool = False
    trust_remote_code: bool = False

    @property
    def precision(self) -> Dtype | None:
        """``dtype``, with ``fp16`` taken into account."""
        return "float16" if self.fp16 else self.dtype
