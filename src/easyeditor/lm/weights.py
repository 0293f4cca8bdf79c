"""Where a weight lies, and how it is read and replaced there.

A parameter's own tensor is not always the weight: accelerate leaves an empty one where it has
offloaded the weight to the CPU or to disk, and bitsandbytes packs several numbers into a byte.
Whoever reads or changes a weight asks :func:`weight_handle`, which knows three places:

- **in memory**: the parameter's tensor;
- **offloaded**: accelerate's hook looks the weight up by name before each pass. Another weight is
  laid over that name; files and the shared state dict stay as they are;
- **quantized** (bitsandbytes, 8 or 4 bits): a plain layer with the other weight stands where the
  quantized one was, which is kept whole and put back as the same object.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import ChainMap
from typing import Any, ClassVar

import torch
from torch import nn

from easyeditor.errors import MetaDeviceError, UnsupportedModelError
from easyeditor.lm.quantized import (
    dequantized,
    is_quantized,
    plain_layer,
    quantized_shape,
    replaced_by,
)

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def float64_device(device: torch.device) -> torch.device:
    """Where float64 matrices of ``device`` live: on the CPU if it has no such numbers."""
    return torch.device("cpu") if device.type == "mps" else device


class WeightHandle(ABC):
    """Where one weight of a model lies.

    ``raw`` is what lies there now: a tensor, or None for a weight that is as it was loaded and is
    no tensor. :meth:`set_raw` takes whatever ``raw`` gave, which is then there again bit for bit.
    """

    exact: ClassVar[bool] = True
    """Whether the weight has the numbers of its checkpoint."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of the weight as the plain model stores it."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The precision the model computes with it in."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the model computes with it."""

    @property
    @abstractmethod
    def raw(self) -> torch.Tensor | None:
        """What lies there; see the class."""

    @abstractmethod
    def set_raw(self, raw: torch.Tensor | None) -> None:
        """Let the model compute with this from now on; the tensor is taken over, not copied."""

    @abstractmethod
    def as_loaded(self) -> torch.Tensor:
        """The weight that ``raw`` None stands for."""

    def read(self, raw: torch.Tensor | None) -> torch.Tensor:
        """The weight that a ``raw`` stands for; may share memory with the model."""
        return self.as_loaded() if raw is None else raw

    def numbers(self, raw: torch.Tensor | None) -> torch.Tensor:
        """Numbers that tell this weight from another: its own, or those it is packed in."""
        return self.read(raw)

    def read_weight(self) -> torch.Tensor:
        """The weight the model computes with; may share memory with it, and is only to be read."""
        return self.read(self.raw)


class _OfParameter(WeightHandle):
    """A weight whose parameter, full or empty, has its shape and precision."""

    _parameter: nn.Parameter

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._parameter.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self._parameter.dtype


class _InMemory(_OfParameter):
    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter = parameter

    @property
    def device(self) -> torch.device:
        return self._parameter.device

    @property
    def raw(self) -> torch.Tensor:
        return self._parameter.data

    def set_raw(self, raw: torch.Tensor | None) -> None:
        # A tensor of its own, never written into: the old one may be shared with an edited copy.
        self._parameter.data = self.read(raw).to(self.device, self.dtype)

    def as_loaded(self) -> torch.Tensor:
        return self._parameter.data


class _Over(ChainMap[str, torch.Tensor]):
    """Edited weights, laid over the map in which accelerate looks the weights up."""


class _Offloaded(_OfParameter):
    def __init__(
        self, path: str, parameter: nn.Parameter, hook: Any, name: str, tied: bool
    ) -> None:
        self._path, self._parameter, self._tied = path, parameter, tied
        self._hook, self._name = hook, name

    @property
    def device(self) -> torch.device:
        return torch.device(self._hook.execution_device)

    @property
    def _maps(self) -> tuple[dict[str, torch.Tensor], Any]:
        """What lies over accelerate's map, and that map."""
        result = self._hook.weights_map
        return (dict(result.maps[0]), result.maps[1]) if isinstance(result, _Over) else ({}, result)

    @property
    def raw(self) -> torch.Tensor | None:
        return self._maps[0].get(self._name)

    def set_raw(self, raw: torch.Tensor | None) -> None:
        over, loaded = self._maps
        over.pop(self._name, None)
        if raw is not None:
            if self._tied:
                raise UnsupportedModelError(
                    f"{self._path} is tied to another weight and offloaded, each by itself, so "
                    "that a change would reach only one of them. Load the model without "
                    "offloading the modules that share this weight."
                )
            over[self._name] = raw.to(self.dtype)
        self._hook.weights_map = _Over(over, loaded) if over else loaded

    def as_loaded(self) -> torch.Tensor:
        weight: torch.Tensor = self._maps[1][self._name]
        return weight.to(self.dtype)


class _Quantized(WeightHandle):
    exact = False

    def __init__(self, model: nn.Module, owner: str) -> None:
        parent, _, self._name = owner.rpartition(".")
        self._parent = model.get_submodule(parent)
        self._dtype = next(
            (p.dtype for p in model.parameters() if p.dtype in FLOATS), torch.float32
        )

    @property
    def _module(self) -> nn.Module:
        module = self._parent._modules[self._name]
        assert module is not None
        return module

    @property
    def _original(self) -> nn.Module:
        return replaced_by(self._module) or self._module

    @property
    def shape(self) -> tuple[int, ...]:
        return quantized_shape(self._original)

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        weight = self._module.weight
        assert isinstance(weight, nn.Parameter)
        return weight.device

    @property
    def raw(self) -> torch.Tensor | None:
        if replaced_by(self._module) is None:
            return None
        weight = self._module.weight
        assert isinstance(weight, nn.Parameter)
        return weight.data

    def set_raw(self, raw: torch.Tensor | None) -> None:
        original = self._original
        if raw is None:
            self._parent._modules[self._name] = original
        else:
            weight = raw.to(self.device, self._dtype)
            self._parent._modules[self._name] = plain_layer(original, weight)

    def numbers(self, raw: torch.Tensor | None) -> torch.Tensor:
        # Dequantising every matrix of a model takes seconds.
        packed = self._original.weight
        assert isinstance(packed, nn.Parameter)
        return packed.data

    def as_loaded(self) -> torch.Tensor:
        return dequantized(self._original).to(self._dtype)


def weight_handle(model: nn.Module, path: str) -> WeightHandle:
    """Where the weight at ``path`` lies.

    Raises:
        MetaDeviceError: it is nowhere: an empty tensor that no hook fills.
        UnsupportedModelError: it is stored in a way that only its own quantizer can read.
        AttributeError: there is no such module.
    """
    owner, _, name = path.rpartition(".")
    module = model.get_submodule(owner)
    parameter = module._parameters.get(name)
    if name == "weight" and (is_quantized(module) or replaced_by(module) is not None):
        if parameter is not None and parameter.is_meta:
            raise _unreadable(path, module, "quantized and offloaded at once, the weight")
        return _Quantized(model, owner)
    if parameter is None:
        raise _unreadable(path, module, "no parameter")
    if parameter.is_meta:
        return _offloaded(model, path, parameter)
    if parameter.dtype not in FLOATS or type(parameter.data) is not torch.Tensor:
        kind = f"a {type(parameter.data).__name__} of {parameter.dtype}"
        raise _unreadable(path, module, kind)
    return _InMemory(parameter)


def _unreadable(path: str, module: nn.Module, kind: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{path} is {kind} of a {type(module).__name__}, which cannot be turned back into a matrix "
        "here. Models quantized by bitsandbytes (quantization='8bit' or '4bit') and unquantized "
        "ones can be edited: edit one of those."
    )


def _offloaded(model: nn.Module, path: str, parameter: nn.Parameter) -> WeightHandle:
    owner = path.rpartition(".")[0]
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    while True:  # the hook may hang on a block and fill everything in it
        name = path.removeprefix(f"{owner}.") if owner else path
        for hook in _hooks(model.get_submodule(owner)):
            if getattr(hook, "offload", False) and getattr(hook, "weights_map", None) is not None:
                both = {*tied.keys(), *tied.values()}
                return _Offloaded(path, parameter, hook, name, path in both)
        if not owner:
            raise MetaDeviceError(
                f"{path} is on the meta device and no hook of accelerate's brings it into memory, "
                "so there is nothing to edit. Load the checkpoint: from_pretrained(..., "
                "device_map='auto', offload_folder=...), or without a device_map."
            )
        owner = owner.rpartition(".")[0]


def _hooks(module: nn.Module) -> list[Any]:
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def named_weights(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """``model.named_parameters()``, each once also where offloading has untied them."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    named = model.named_parameters()
    return [(name, p) for name, p in named if not (p.is_meta and name in tied)]


def whole_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict that the plain model would have: every weight read where it lies."""
    buffers = dict(model.named_buffers(remove_duplicate=False))
    stored = {name: t for name, t in model.state_dict().items() if name in buffers}
    named = model.named_parameters(remove_duplicate=False)
    return {**{name: weight_handle(model, name).read_weight() for name, _ in named}, **stored}


def missing_weights(model: nn.Module) -> list[str]:
    """Weights that lie nowhere: empty tensors that no hook fills."""
    missing = []
    for path, parameter in model.named_parameters():
        if parameter.is_meta:
            try:
                weight_handle(model, path)
            except MetaDeviceError:
                missing.append(path)
            except UnsupportedModelError:
                continue  # it lies somewhere; whoever wants to edit it is told
    return missing


def require_weights(model: nn.Module) -> None:
    """Check that every weight lies somewhere.

    Raises:
        MetaDeviceError: weights are on the meta device and no hook brings them into memory.
    """
    missing = missing_weights(model)
    if missing:
        raise MetaDeviceError(
            f"{len(missing)} weights of {type(model).__name__} are on the meta device (first: "
            f"{missing[0]}) and no hook of accelerate's brings them into memory, so there is "
            "nothing to edit. Load the checkpoint: from_pretrained(...), also with a "
            "device_map that offloads to 'cpu' or 'disk'."
        )


def shared_maps(model: nn.Module) -> list[Any]:
    """What accelerate's hooks share among each other: maps of weights, which hold many tensors."""
    result = [
        getattr(hook, name, None)
        for module in model.modules()
        for hook in _hooks(module)
        for name in ("weights_map", "tied_params_map")
    ]
    return [entry for entry in result if entry is not None]
