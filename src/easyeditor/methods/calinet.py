"""CaliNet: a small feed-forward network beside one late MLP, trained on all facts (2210.03329).

The MLP gives ``y + Σ act(kᵢ·x + bᵢ) vᵢ`` with a fixed number of neurons that all facts share; keys
are drawn at random and values start at zero, so training starts from the unedited model. The loss
is the mean negative log-likelihood of the targets, each prompt also behind sampled prefixes (the
paper has several paraphrases of every fact). The trap: there is no gate. Every token meets the
neurons, and nothing but their small number keeps other answers; a fact cannot be taken out alone.

Beside the published method: Adam, with steps relative to the sizes of the MLP's input and output,
and neurons without a gate of their own also where the model's are gated.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field

from easyeditor.associative.contexts import context_prefixes
from easyeditor.associative.unrelated import unrelated_inputs
from easyeditor.edits import Edit, check_consistent
from easyeditor.gradients.losses import target_nll
from easyeditor.hyperparams import Layers
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Row
from easyeditor.methods.adapted_layer import AdaptedLayer, AdapterHyperParams, RowLogits
from easyeditor.methods.base import Method, Outcome
from easyeditor.methods.extra_neurons import (
    Activation,
    ExtraNeurons,
    Neurons,
    adam_descent,
    with_neurons,
)
from easyeditor.methods.value_search import ContextState
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.stack import without_patches
from easyeditor.timing import Stopwatch

N_UNRELATED_PROMPTS = 100  # by which the sizes of the MLP's input and output are measured


class CaliNetHyperParams(AdapterHyperParams):
    """Settings of CaliNet.

    ``n_neurons`` is the width (published: 64 for 100 facts), ``n_iter`` the number of steps at
    most, each on ``rows_together`` prompts; ``value_scale`` the size of a value's steps relative to
    the MLP's output.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {"smollm2-135m": {"edit_lr": 0.003}}

    alg_name: str = "CaliNet"
    layers: Layers = (-1,)
    n_neurons: int = Field(64, ge=1)
    edit_lr: float = Field(0.01, gt=0)
    n_iter: int = Field(200, ge=1)
    rows_together: int = Field(16, ge=1)
    value_scale: float = Field(1.0, gt=0)
    activation: Activation = "gelu"
    stop_loss: float = Field(0.05, ge=0)
    context_template_length_params: tuple[tuple[int, int], ...] = ((5, 3),)


class CaliNet(Method[ContextState]):
    """One network for all the edits of a call; those the model carries act while it is trained."""

    name = "CaliNet"
    title = "a small network beside one MLP, trained on all facts, arXiv 2210.03329"
    hyperparams_class = CaliNetHyperParams
    state_class = ContextState

    hyperparams: CaliNetHyperParams

    @property
    def batch_size(self) -> int:
        """All edits in one call."""
        return sys.maxsize

    def initial_state(self, lm: LM) -> ContextState:
        """The contexts, from the unedited model."""
        settings = self.hyperparams
        lengths = settings.context_template_length_params
        return ContextState(context_prefixes(lm, lengths, seed=settings.seed))

    def edit(
        self, lm: LM, edits: Sequence[Edit], state: ContextState | None = None
    ) -> Outcome[ContextState]:
        """The network that learns all ``edits``.

        Raises:
            ContradictingEditsError: one prompt, two targets.
            DivergedError: a loss is not a number.
        """
        check_consistent(edits)
        settings = self.hyperparams.resolved(lm.n_layers)
        state = state or self.initial_state(lm)
        layer, watch = settings.adapted_mlp(lm), Stopwatch()
        earlier = layer.carried(lm.model, ExtraNeurons)
        rows = [
            lm.text.row(edit.prompt, edit.target, prefix=prefix)
            for edit in edits
            for prefix in state.contexts
        ]
        with without_patches(lm.model, ModulePatch), watch("train"):
            adapter = _train(lm, layer, rows, settings, earlier)
        patch = layer.patch(lm, self.name, edits, settings, adapter, watch.seconds)
        return Outcome(patch, state)


def _train(
    lm: LM,
    layer: AdaptedLayer,
    rows: Sequence[Row],
    settings: CaliNetHyperParams,
    earlier: Sequence[ExtraNeurons],
) -> ExtraNeurons:
    unrelated = unrelated_inputs(lm, layer.path, N_UNRELATED_PROMPTS, settings.seed)
    scale = torch.cat(unrelated).norm(dim=1).mean()
    draw = torch.Generator().manual_seed(settings.seed)
    n, device = settings.n_neurons, layer.projection.device
    keys = torch.randn(n, layer.d_in, generator=draw).to(device).requires_grad_()
    biases = torch.zeros(n, device=device, requires_grad=True)
    steps = torch.zeros(n, layer.projection.d_out, device=device, requires_grad=True)
    batches = _batches(rows, settings.rows_together, draw)
    with lm.at_rest():
        logits_of = RowLogits(lm, layer, rows)
        size = _size_of_output(logits_of, rows[: settings.rows_together])
        losses: dict[int, float] = {}

        def neurons() -> Neurons:
            return Neurons(keys / scale, biases, steps * (settings.value_scale * size))

        def loss_of() -> tuple[torch.Tensor, bool]:
            batch, acting = next(batches), neurons()
            chosen = [rows[i] for i in batch]
            logits = logits_of(
                lambda x, y: (
                    with_neurons(earlier, x, y) + acting.change(x, settings.activation).to(y)
                ),
                chosen,
            )
            nll = target_nll(logits, chosen)
            losses.update(zip(batch, nll.tolist(), strict=True))
            enough = len(losses) == len(rows) and max(losses.values()) < settings.stop_loss
            return nll.mean(), enough

        adam_descent(
            [keys, biases, steps],
            loss_of,
            method="CaliNet",
            lr=settings.edit_lr,
            steps=settings.n_iter,
        )
        trained = neurons()
    tensors = (trained.keys.cpu(), trained.biases.cpu(), trained.values.cpu())
    return ExtraNeurons(*tensors, torch.zeros(0, layer.d_in), activation=settings.activation)


def _batches(rows: Sequence[Row], size: int, draw: torch.Generator) -> Iterator[list[int]]:
    """Numbers of rows, each once in every epoch, in a new order."""
    while True:
        order = torch.randperm(len(rows), generator=draw).tolist()
        for i in range(0, len(order), size):
            yield order[i : i + size]


def _size_of_output(logits_of: RowLogits, rows: Sequence[Row]) -> torch.Tensor:
    """The root mean square of what the layer gives at these rows, padding included."""
    outputs: list[torch.Tensor] = []

    def read(_x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        outputs.append(y.float().square().mean().sqrt())
        return y

    with torch.no_grad():
        logits_of(read, rows)
    return outputs[0]
