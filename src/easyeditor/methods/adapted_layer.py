"""The linear layer, or the MLP, that a method puts an adapter on, and how settings name it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BeforeValidator, Field
from torch import nn

from easyeditor.edits import Edit
from easyeditor.errors import HyperParamsError, did_you_mean
from easyeditor.gradients.minimize import refuse_diverged
from easyeditor.hyperparams import HyperParams, Layers
from easyeditor.lm.forward.lower_block_cache import logits_above
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.hooks import hidden_of, with_hidden
from easyeditor.lm.model import LM
from easyeditor.lm.projection import Projection
from easyeditor.lm.restoring import hooks_on
from easyeditor.lm.tokens import Row
from easyeditor.patches.adapter import Adapter
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.patch import PatchInfo
from easyeditor.patches.stack import applied_patches
from easyeditor.progress import bar

A = TypeVar("A", bound=Adapter)


def _plain_names(value: object) -> object:
    """``h[35].mlp.c_fc.weight`` of the classic files as PyTorch names it, ``h.35.mlp.c_fc``."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)):
        return value
    return tuple(re.sub(r"\[(\d+)\]", r".\1", str(n)).removesuffix(".weight") for n in names)


@dataclass(frozen=True, slots=True)
class AdaptedLayer:
    """One linear layer of one block, or its whole MLP.

    Attributes:
        layer: the block's number.
        path: the module's name in the model.
        projection: the layer's weight and widths; of a whole MLP, those of its down-projection.
        mlp: the module of a whole MLP.
    """

    layer: int
    path: str
    projection: Projection
    mlp: nn.Module | None = None

    @property
    def site(self) -> Site:
        """The layer's output, for passes that resume there."""
        return Site(self.layer, "down", self.path)

    @property
    def module(self) -> nn.Module:
        """The module that is adapted."""
        return self.projection.module if self.mlp is None else self.mlp

    @property
    def d_in(self) -> int:
        """The width of what it reads: an MLP reads the hidden states that it adds to."""
        return self.projection.d_in if self.mlp is None else self.projection.d_out

    def patch(
        self,
        lm: LM,
        method: str,
        edits: Sequence[Edit],
        settings: HyperParams,
        adapter: Adapter,
        seconds: dict[str, float],
    ) -> ModulePatch:
        """The patch that puts ``adapter`` on this layer."""
        info = PatchInfo.of(lm, method, edits, settings, seconds)
        return ModulePatch({self.path: (adapter.eval(),)}, info)

    def carried(self, model: nn.Module, kind: type[A]) -> list[A]:
        """The adapters of one class that ``model`` carries at this layer, oldest first."""
        return [
            adapter
            for patch in applied_patches(model)
            if isinstance(patch, ModulePatch)
            for adapter in patch.adapters.get(self.path, ())
            if isinstance(adapter, kind)
        ]

    @contextmanager
    def replaced(
        self, rows: int, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> Iterator[None]:
        """Inside, the layer gives ``function(x, y)`` for inputs ``(rows, length, d_in)``.

        ``y`` is its output; gradients flow through ``function``.
        """

        def compute(_module: Any, args: tuple[Any, ...], output: Any) -> Any:
            hidden = hidden_of(output)
            x = args[0].reshape(rows, -1, args[0].shape[-1])
            y = hidden.reshape(rows, -1, hidden.shape[-1])
            return with_hidden(output, function(x, y).to(hidden.dtype).view(hidden.shape))

        with hooks_on([(self.module, compute)]):
            yield


class AdapterHyperParams(HyperParams):
    """Fields of the methods that put an adapter on one linear layer.

    ``layers`` names one block, whose down-projection is adapted; ``inner_params``, as classic files
    have it, names another linear layer of a block in its place.
    """

    layers: Layers = (0.83,)
    inner_params: Annotated[
        tuple[str, ...], BeforeValidator(_plain_names), Field(max_length=1)
    ] = ()
    seed: int = 0

    def adapted_layer(self, lm: LM) -> AdaptedLayer:
        """The layer that these settings name in ``lm``.

        Raises:
            HyperParamsError: several layers, or no linear layer of a block.
            UnsupportedModelError: the block has routed experts alone, or no MLP.
        """
        if not self.inner_params:
            layers = self.resolved(lm.n_layers).layers
            if len(layers) > 1:
                raise HyperParamsError(
                    f"layers={list(layers)}: {self.alg_name} adapts one layer. Name one."
                )
            projection = lm.projection(int(layers[0]))
            return AdaptedLayer(int(layers[0]), projection.path.removesuffix(".weight"), projection)
        (path,) = self.inner_params
        named = dict(lm.model.named_modules())
        blocks = next(name for name, module in named.items() if module is lm.blocks)
        number = path.removeprefix(f"{blocks}.").partition(".")[0]
        linear = path in named and hasattr(named[path], "weight") and named[path].weight.dim() == 2
        if not (linear and path.startswith(f"{blocks}.") and number.isdigit()):
            raise HyperParamsError(
                f"inner_params names {path!r}, which is no linear layer of a block of "
                f"{type(lm.model).__name__}.{did_you_mean(path, named)} Name one, such as "
                f"{lm.projection(0).path!r}, or leave it out and give layers."
            )
        return AdaptedLayer(int(number), path, Projection(lm.model, path, lm.family.conv1d))

    def adapted_mlp(self, lm: LM) -> AdaptedLayer:
        """The whole MLP of the block that ``layers`` names; else as :meth:`adapted_layer`.

        Where the projections hang on the block itself (OPT) no module is the MLP, and the
        down-projection stands for it.

        Raises:
            HyperParamsError: several layers, or no linear layer of a block.
            UnsupportedModelError: the block has routed experts alone, or no MLP.
        """
        linear = self.adapted_layer(lm)
        stack = lm.family.decoder
        name = stack.at(linear.layer).mlp
        if self.inner_params or not name:
            return linear
        path = f"{stack.blocks}.{linear.layer}.{name}"
        return AdaptedLayer(linear.layer, path, linear.projection, lm.model.get_submodule(path))


class RowLogits:
    """Logits of the targets of some rows, again and again, from the adapted layer's block on.

    What is below that block is computed once where the model allows it, see
    :func:`~easyeditor.lm.forward.lower_block_cache.logits_above`. Make it inside ``lm.at_rest()``.
    """

    def __init__(self, lm: LM, layer: AdaptedLayer, rows: Sequence[Row]) -> None:
        self._layer, self.rows = layer, list(rows)
        self._logits = logits_above(lm, [layer.path], self.rows)

    def __call__(
        self,
        function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        rows: Sequence[Row] | None = None,
    ) -> torch.Tensor:
        """``(sum of target lengths, vocabulary)`` with ``function(x, y)`` for the layer's output.

        See :meth:`AdaptedLayer.replaced`; differentiable. ``rows`` are some of the rows; None: all.
        """
        chosen = self.rows if rows is None else list(rows)
        with self._layer.replaced(len(chosen), function):
            return self._logits(chosen)


def descend(
    change: torch.Tensor,
    loss_of: Callable[[], torch.Tensor],
    *,
    method: str,
    lr: float,
    steps: int,
    stop_loss: float,
    gradient_norm: float | None = None,
) -> None:
    """Plain gradient descent on ``change``, in place, until the loss is under ``stop_loss``.

    ``gradient_norm`` is the largest norm of a step's gradient; None: any. Call it inside
    ``lm.at_rest()``.

    Raises:
        DivergedError: a loss is not a number.
    """
    sgd = torch.optim.SGD([change], lr=lr, foreach=False)
    with bar(steps, f"training {method}") as progress:
        for step in range(steps):
            loss = loss_of()
            value = loss.item()
            refuse_diverged(method, [value], f"step {step}", "edit_lr")
            progress.update()
            if value < stop_loss:
                break
            loss.backward()  # type: ignore[no-untyped-call]
            if gradient_norm is not None:
                torch.nn.utils.clip_grad_norm_([change], gradient_norm, foreach=False)
            sgd.step()
            sgd.zero_grad(set_to_none=True)
