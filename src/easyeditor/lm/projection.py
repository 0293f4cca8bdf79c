"""Weights by name, and projections as linear maps, wherever accelerate or bitsandbytes put them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from easyeditor.lm.quantized import is_quantized, replaced_by, stored_as_conv1d
from easyeditor.lm.weights import weight_handle


class NamedWeight:
    """One parameter of a model by its name, wherever it lies.

    Attributes:
        path: its name in ``model.named_parameters()``.
        module: the module that holds it.
        shape: as the plain model stores it.
        transposed: whether it is a matrix stored ``(d_out, d_in)``, as ``nn.Linear`` does.

    Raises:
        UnsupportedModelError: the weight is stored in a way that cannot be read.
        MetaDeviceError: it is nowhere.
    """

    def __init__(self, model: nn.Module, path: str) -> None:
        owner, _, name = path.rpartition(".")
        self.path = path
        self.module = model.get_submodule(owner)
        self._handle = weight_handle(model, path)
        self.shape = self._handle.shape
        original = replaced_by(self.module) or self.module
        self.transposed = (
            name == "weight"
            and isinstance(original, nn.Linear)
            and not (is_quantized(original) and stored_as_conv1d(original))
        )

    @property
    def device(self) -> torch.device:
        """Where the model computes with the weight."""
        return self._handle.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision the model computes with it in."""
        return self._handle.dtype

    @property
    def stored(self) -> torch.Tensor:
        """The weight as the plain model stores it; only to be read, and read or made each time."""
        return self._handle.read_weight().to(self.device)


class Projection(NamedWeight):
    """One projection as a linear map ``y = x W + b`` with ``W`` of shape ``(d_in, d_out)``.

    Attributes:
        module: the ``nn.Linear`` or ``Conv1D`` itself, for hooks.
        d_in, d_out: the widths of its input and output.
    """

    def __init__(self, model: nn.Module, name: str, conv1d: bool) -> None:
        super().__init__(model, f"{name}.weight")
        self.transposed = not conv1d
        rows, columns = self.shape
        self.d_in, self.d_out = (columns, rows) if self.transposed else (rows, columns)

    @property
    def parameter(self) -> nn.Parameter:
        """The module's own; the trap: empty where it is offloaded, packed where quantized."""
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def keys(self, inputs: tuple[Any, ...]) -> torch.Tensor:
        """``x`` of every token, from the module's inputs."""
        keys: torch.Tensor = inputs[0]
        return keys

    @property
    def weight(self) -> torch.Tensor:
        """The same seen as ``(d_in, d_out)``."""
        return self.stored.T if self.transposed else self.stored
