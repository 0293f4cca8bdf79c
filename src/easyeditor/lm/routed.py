"""Routed experts as one linear map: a sparse key of all experts, the fused weights as its matrix.

With routing weights ``w_e`` and the experts' inner activations ``h_e``, a mixture of experts adds
``Σ_e w_e (h_e D_e + b_e)`` to the residual stream. Without the biases that is ``k D`` with
``k = [w_1 h_1, …, w_E h_E]`` (zero where the token is not routed to an expert) and ``D`` the
experts' down-projections one below the other: the same associative memory as an MLP's, with a
longer key.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from easyeditor.errors import UnsupportedModelError
from easyeditor.lm.projection import NamedWeight


class RoutedExperts(NamedWeight):
    """The fused down-projections of one layer's experts as ``y = k D``, ``D`` ``(E · f, d_out)``.

    Attributes:
        module: the experts' module; its output is the routing-weighted sum.
        experts: their number E.
        d_in: ``E · f`` with ``f`` the width of one expert.
        d_out: the model's width.
        in_first: whether one expert is stored ``(f, d_out)``.

    Raises:
        UnsupportedModelError: the experts are not built as transformers' fused experts are.
    """

    def __init__(self, model: nn.Module, path: str, width: int) -> None:
        super().__init__(model, path)
        self.experts, rows, columns = self.shape
        known = all(hasattr(self.module, name) for name in ("has_gate", "is_transposed"))
        if not known or getattr(self.module, "has_post_expert_norm", False):
            raise UnsupportedModelError(
                f"The experts of {path.rpartition('.')[0]} ({type(self.module).__name__}) are not "
                "built as transformers' fused experts, so their keys cannot be read. Fine-tuning "
                "can train them all the same."
            )
        self.in_first = bool(self.module.is_transposed)
        self.d_out = columns if self.in_first else rows
        self.d_in = self.experts * (rows if self.in_first else columns)
        assert self.d_out == width

    @property
    def weight(self) -> torch.Tensor:
        """``D``, ``(E · f, d_out)``: a copy unless an expert is stored ``(f, d_out)``."""
        stored = self.stored
        return (stored if self.in_first else stored.mT).reshape(self.d_in, self.d_out)

    @torch.no_grad()
    def keys(self, inputs: tuple[Any, ...]) -> torch.Tensor:
        """``k`` of every token of the module's inputs (hidden states, experts, weights)."""
        hidden, chosen, weights = inputs[:3]
        states = hidden.reshape(-1, hidden.shape[-1])
        keys = states.new_zeros(len(states), self.experts, self.d_in // self.experts)
        for expert in chosen.unique().tolist():
            if expert < self.experts:
                token, slot = torch.where(chosen == expert)
                keys[token, expert] = (
                    self._inner(states[token], expert) * weights[token, slot, None]
                )
        return keys.reshape(*hidden.shape[:-1], self.d_in)

    def _inner(self, states: torch.Tensor, expert: int) -> torch.Tensor:
        """The activations of one expert before its down-projection, ``(tokens, f)``."""
        module: Any = self.module
        name = "gate_up_proj" if module.has_gate else "up_proj"
        weight = getattr(module, name)[expert]
        up = states @ (weight if self.in_first else weight.T)
        if module.has_bias:
            up = up + getattr(module, f"{name}_bias")[expert]
        inner: torch.Tensor = module._apply_gate(up) if module.has_gate else module.act_fn(up)
        return inner
