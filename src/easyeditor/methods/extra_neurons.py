"""``ExtraNeurons``: neurons beside an MLP, ``y + V·act(K x + b)``.

Each token's own input decides which neurons act on it, so scoring an answer and writing it step by
step agree, in any batch and with a cache. With ``"relu"`` a token whose every pre-activation is
negative keeps the MLP's output to the bit; other activations change every token a little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from torch.nn import functional

from easyeditor.gradients.minimize import refuse_diverged
from easyeditor.lm.forward.context import ForwardContext
from easyeditor.patches.adapter import Adapter, InOrder
from easyeditor.progress import bar

Activation = Literal["relu", "gelu", "silu"]

ACTIVATIONS: Final[dict[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}


@dataclass(frozen=True, slots=True)
class Neurons:
    """The tensors of some neurons, differentiable.

    Attributes:
        keys: ``(n, d_in)``.
        biases: ``(n,)``.
        values: ``(n, d_out)``.
    """

    keys: torch.Tensor
    biases: torch.Tensor
    values: torch.Tensor

    def pre_activations(self, x: torch.Tensor) -> torch.Tensor:
        """Their pre-activations at inputs ``(…, d_in)``: ``(…, n)``, float32."""
        return x.float() @ self.keys.T + self.biases

    def change(self, x: torch.Tensor, activation: Activation) -> torch.Tensor:
        """What they add to the output, ``(…, d_out)``, float32."""
        return ACTIVATIONS[activation](self.pre_activations(x)) @ self.values


class ExtraNeurons(Adapter):
    """Neurons beside a module that add to its output wherever their keys fit the input.

    Args:
        keys: ``(n, d_in)``.
        biases: ``(n,)``.
        values: ``(n, d_out)``.
        inputs: ``(m, d_in)``, what the module reads where the edits are answered: neurons of later
            edits learn to be silent there.
        activation: ``"relu"``, ``"gelu"`` or ``"silu"``.
    """

    name = "ExtraNeurons"

    def __init__(
        self,
        keys: torch.Tensor,
        biases: torch.Tensor,
        values: torch.Tensor,
        inputs: torch.Tensor,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        if activation not in get_args(Activation):
            raise ValueError(f"activation {activation!r}; {', '.join(get_args(Activation))}")
        shapes = [tuple(t.shape) for t in (keys, biases, values, inputs)]
        if [len(shape) for shape in shapes] != [2, 1, 2, 2] or not len(keys):
            raise ValueError(f"keys, biases, values and inputs of shapes {shapes}")
        if not len(keys) == len(biases) == len(values) or inputs.shape[1] != keys.shape[1]:
            raise ValueError(f"keys, biases, values and inputs of shapes {shapes}")
        tensors = {"keys": keys, "biases": biases, "values": values, "inputs": inputs}
        for field, tensor in tensors.items():
            self.register_buffer(field, tensor.detach().float().clone())
        self.activation: Activation = activation

    def neurons_on(self, device: torch.device) -> Neurons:
        """Their tensors on a device."""
        names = ("keys", "biases", "values")
        return Neurons(*(self.get_buffer(name).to(device) for name in names))

    def settings(self) -> dict[str, Any]:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""
        return {"activation": self.activation}

    @property
    def output_width(self) -> int:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""
        return int(self.get_buffer("values").shape[1])

    def forward(self, x: torch.Tensor, y: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""
        neurons = self.neurons_on(x.device)
        acting = ACTIVATIONS[self.activation](neurons.pre_activations(x))
        places = acting.ne(0).any(-1) & context.mask[:, context.start :].bool().to(x.device)
        if not places.any():
            return y
        change = (acting @ neurons.values).to(y)
        return torch.where(places[..., None].to(y.device), y + change, y)

    @classmethod
    def merge(cls, adapters: Sequence[ExtraNeurons]) -> Adapter:
        """The neurons of all, oldest first."""
        if len({adapter.activation for adapter in adapters}) > 1:
            return InOrder(adapters)
        if len(adapters) == 1:
            return adapters[0]
        names = ("keys", "biases", "values", "inputs")
        keys, biases, values, inputs = (
            torch.cat([a.get_buffer(name).cpu() for a in adapters]) for name in names
        )
        return cls(keys, biases, values, inputs, adapters[0].activation)


def with_neurons(
    adapters: Sequence[ExtraNeurons], x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    """The output ``y`` at inputs ``x`` ``(…, d_in)`` with the neurons of some adapters."""
    for adapter in adapters:
        y = y + adapter.neurons_on(x.device).change(x, adapter.activation).to(y)
    return y


def adam_descent(
    tensors: Sequence[torch.Tensor],
    loss_of: Callable[[], tuple[torch.Tensor, bool]],
    *,
    method: str,
    lr: float,
    steps: int,
) -> None:
    """Adam on ``tensors``, in place, until ``loss_of`` says that it is enough.

    Call it inside ``lm.at_rest()``.

    Args:
        tensors: leaves that need gradients.
        loss_of: the loss, and whether training may stop before a step on it.
        method: for the progress bar and errors.
        lr: the learning rate.
        steps: at most.

    Raises:
        DivergedError: a loss is not a number.
    """
    adam = torch.optim.Adam(list(tensors), lr=lr, foreach=False)
    with bar(steps, f"training {method}") as progress:
        for step in range(steps):
            loss, enough = loss_of()
            refuse_diverged(method, [loss.item()], f"step {step}", "edit_lr")
            progress.update()
            if enough:
                break
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            adam.zero_grad(set_to_none=True)
