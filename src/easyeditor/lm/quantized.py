"""Layers that bitsandbytes has quantized: reading them, and a plain layer in the place of one.

Everything here works by the names of bitsandbytes' classes, so that nothing is imported before a
model holds such a layer.
"""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from easyeditor.errors import MissingExtraError, UnsupportedModelError

LAYERS = ("Linear8bitLt", "Linear4bit")
SCHEMES = ("8bit", "4bit")
_ORIGINAL = "easyedit_quantized"


def quantization_config(scheme: str, dtype: torch.dtype) -> Any:
    """The loading configuration of a scheme; 4 bits are NF4, computed with in ``dtype``.

    Raises:
        MissingExtraError: bitsandbytes or accelerate is not installed.
    """
    for package in ("bitsandbytes", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError.of(package, "quantized", f"quantization={scheme!r}")
    from transformers import BitsAndBytesConfig

    if scheme == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def is_quantized(module: nn.Module) -> bool:
    """Whether this is a layer of bitsandbytes with a quantized weight."""
    return any(kind.__name__ in LAYERS for kind in type(module).__mro__) and not getattr(
        module.weight, "has_fp16_weights", False
    )


def quantized_layers(model: nn.Module) -> list[nn.Module]:
    """Those of the model, and those that plain layers stand for now."""
    result = [replaced_by(module) or module for module in model.modules()]
    return [module for module in result if is_quantized(module)]


def keep_readable(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights in its first pass on some CPUs.

    What it makes there has no gradients and cannot be turned back. It changes no number.
    """
    for module in quantized_layers(model):
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def quantized_shape(module: nn.Module) -> tuple[int, int]:
    """Of the weight in the unquantized model; a ``Conv1D`` stored it the other way round."""
    out, into = module.out_features, module.in_features
    assert isinstance(out, int)
    assert isinstance(into, int)
    return (into, out) if stored_as_conv1d(module) else (out, into)


def dequantized(module: nn.Module) -> torch.Tensor:
    """The weight as the unquantized model would store it, in bitsandbytes' own precision.

    Raises:
        UnsupportedModelError: an earlier pass has repacked it for this CPU.
    """
    import bitsandbytes.functional as bnb

    weight: Any = module.weight
    state = getattr(weight, "quant_state", None)
    if state is None and hasattr(weight, "SCB"):
        scale = weight.SCB if weight.SCB is not None else module.state.SCB  # type: ignore[union-attr]
        whole = bnb.int8_vectorwise_dequant(weight.data, scale)
    elif state is None or getattr(state, "packing_format_for_cpu", False):
        raise UnsupportedModelError(
            "bitsandbytes has repacked the 4-bit weights for this CPU in a forward pass, and they "
            "can no longer be read. Load the model again and hand it over before its first pass, "
            "or load it with easyeditor.load(..., quantization='4bit')."
        )
    else:
        whole = bnb.dequantize_4bit(weight.data, state)
    stored: torch.Tensor = whole.T if stored_as_conv1d(module) else whole
    return stored


def stored_as_conv1d(module: nn.Module) -> bool:
    """Whether a quantized layer was a ``Conv1D``, which stores its weight ``(d_in, d_out)``."""
    source: Any = getattr(module, "source_cls", nn.Linear)
    return issubclass(source, Conv1D)


def plain_layer(module: nn.Module, weight: torch.Tensor) -> nn.Module:
    """A layer that computes with ``weight`` where ``module`` stood: its hooks, bias and mode."""
    kind = Conv1D if stored_as_conv1d(module) else nn.Linear
    layer: nn.Module = kind.__new__(kind)
    shared = {
        name: value
        for name, value in vars(module).items()
        if name not in {"forward", "_old_forward", "_hf_hook", "state", "quant_state"}
    }
    layer.__dict__.update(shared)
    layer._parameters = {**module._parameters, "weight": nn.Parameter(weight, requires_grad=False)}
    if kind is Conv1D:
        layer.__dict__.update(nx=module.in_features, nf=module.out_features)
    if hasattr(module, "_hf_hook"):  # accelerate's, which brings inputs to the layer's device
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(layer, module._hf_hook)
    # Not as a submodule: it is no part of the model while another stands for it.
    layer.__dict__[_ORIGINAL] = module
    return layer


def replaced_by(layer: nn.Module) -> nn.Module | None:
    """The quantized layer that a plain one stands for."""
    result: nn.Module | None = vars(layer).get(_ORIGINAL)
    return result


def shared_parts(module: nn.Module) -> dict[int, Any]:
    """For ``copy.deepcopy``: a twin of the layer shares what is packed, in objects of its own."""
    weight: Any = module.weight
    if hasattr(weight, "quant_state"):
        twin = copy.copy(weight)
        return {id(weight): twin, id(weight.quant_state): weight.quant_state}
    twin = type(weight)(
        weight.data, requires_grad=False, has_fp16_weights=False, CB=weight.CB, SCB=weight.SCB
    )
    held = [tensor for tensor in vars(module.state).values() if isinstance(tensor, torch.Tensor)]
    return {id(weight): twin, **{id(tensor): tensor for tensor in held}}
