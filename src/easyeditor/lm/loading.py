"""Load a model by what the user calls it: a hub name, a folder, a GGUF file, the embedded one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
)

from easyeditor.errors import MissingExtraError, ModelLoadError, did_you_mean
from easyeditor.lm import embedded
from easyeditor.lm.model import LM
from easyeditor.lm.quantized import SCHEMES, quantization_config
from easyeditor.paths import cache_dir

__all__ = ["cache_dir", "load", "pick_device"]


def pick_device(wanted: int | str | None) -> torch.device:
    """``None``: the accelerator if there is one, else the CPU. A number: that accelerator.

    A classic file says ``device: 0``; on a machine without an accelerator that means the CPU.
    """
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    if isinstance(wanted, str) and not wanted.isdigit():
        try:
            return torch.device(wanted)
        except RuntimeError as error:
            raise ModelLoadError(f"No such device {wanted!r}: {error}") from None
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, int(wanted or 0))


def load(
    name: str,
    *,
    device: int | str | None = None,
    dtype: str | None = None,
    model_parallel: bool = False,
    chat_template: bool = False,
    quantization: str | None = None,
) -> LM:
    """Load model and tokenizer, straight to this precision and device.

    The trap: without accelerate a model for an accelerator passes through the CPU's memory.

    Args:
        name: ``"smollm2-135m"`` (embedded), a hub name, a folder, or a ``.gguf`` file.
        device: see :func:`pick_device`; unused with ``model_parallel``.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``; the checkpoint's own by default,
            except that float16 is read as float32 on a CPU.
        model_parallel: spread the model over all devices (``device_map="auto"``).
        chat_template: wrap prompts by the tokenizer's chat template.
        quantization: ``"8bit"`` or ``"4bit"``: quantize the linear layers while loading, by
            bitsandbytes. An edited matrix is computed with in ``dtype`` while it is edited.

    Raises:
        ModelLoadError: nothing of that name, or it cannot be read.
        MissingExtraError: a GGUF file, and ``gguf`` or accelerate is not installed;
            ``quantization``, and bitsandbytes or accelerate is not.
    """
    if not name:
        raise ModelLoadError("No model was named. Set model_name, or pass --model.")
    where: Path | str = name
    options: dict[str, Any] = {}
    if name.lower() in embedded.NAMES:
        where = embedded.folder()
    elif name.lower().endswith(".gguf"):
        file = Path(name).expanduser()
        if not file.is_file():
            raise ModelLoadError(f"No GGUF file {name!r}.")
        embedded.require_gguf(f"The GGUF file {file.name}")
        where, options = file.parent, {"gguf_file": file.name}
    elif Path(name).expanduser().is_dir():
        where = Path(name).expanduser()
    elif name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ModelLoadError(f"No folder {name!r}. A model folder holds config.json and weights.")
    if dtype not in {None, "float32", "bfloat16", "float16"}:
        raise ModelLoadError(f"dtype={dtype!r}: use 'float32', 'bfloat16' or 'float16'.")
    if quantization not in {None, *SCHEMES}:
        raise ModelLoadError(f"quantization={quantization!r}: use '8bit', '4bit' or leave it out.")
    if quantization and "gguf_file" in options:
        raise ModelLoadError(
            f"quantization={quantization!r} is for checkpoints with whole weights; {name!r} is a "
            "GGUF file, whose weights are unpacked. Leave quantization out, or name the original "
            "checkpoint."
        )
    target = pick_device(device)
    try:
        model, tokenizer = _read(str(where), dtype, target, model_parallel, quantization, options)
    except MissingExtraError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        hint = did_you_mean(name, embedded.NAMES)
        raise ModelLoadError(
            f"The model {name!r} could not be loaded: {reason}{hint} Give a hub name that is "
            f"reachable from here, a folder, a .gguf file, or {embedded.NAMES[0]!r}."
        ) from error
    return LM(model, tokenizer, chat_template=chat_template)


def _read(
    where: str,
    dtype: str | None,
    device: torch.device,
    model_parallel: bool,
    quantization: str | None,
    options: dict[str, Any],
) -> tuple[PreTrainedModel, Any]:
    config = AutoConfig.from_pretrained(where, **options)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    kind: Any = getattr(torch, dtype) if dtype else getattr(config, "dtype", None) or torch.float32
    if dtype is None and kind == torch.float16 and device.type == "cpu":
        kind = torch.float32
    tokenizer = AutoTokenizer.from_pretrained(where, **options)
    direct = importlib.util.find_spec("accelerate") is not None
    if model_parallel and not direct:
        raise MissingExtraError.of("accelerate", "parallel", "model_parallel")
    how: dict[str, Any] = {}
    if quantization:
        if getattr(config, "quantization_config", None):
            raise ValueError("it is quantized already; leave quantization out.")
        how["quantization_config"] = quantization_config(quantization, kind)
    if model_parallel:
        how["device_map"] = "auto"
    elif quantization or (direct and not options and device.type != "cpu"):
        how["device_map"] = {"": device}
    model = auto.from_pretrained(where, dtype=kind, **how, **options)
    if options:
        model = embedded.plain_model(model)
    if "device_map" not in how and model.device != device:
        model = model.to(device)
    return model.eval(), tokenizer
