"""T-Patcher: one neuron per wrong answer token beside the last MLP, arXiv 2301.09785.

The MLP gives ``y + Σ relu(kᵢ·x + bᵢ) vᵢ``. A neuron of a token starts with ``k·q + b = 1``, ``q``
being what the MLP reads where the token is predicted, and learns from::

    loss = NLL(target) + act · mean of the largest exp(−a(q))
         + mem · (mean of the largest exp(a(m) + 3) + mean of the largest exp(a(m) − a(q) + 3))

``a`` is its pre-activation; ``m`` are inputs at tokens of unrelated text, at the edit's other
tokens, and where earlier edits are answered. The trap: a neuron of the last MLP changes the next
token only, and nothing but the training keeps it silent on text it has not seen.

Beside the published method: the activation is ReLU, so that a token at which no neuron acts keeps
its bits; a key starts where text is least, not at ``q/‖q‖²``, which most text fits, too; steps are
relative to the sizes of the MLP's input and output; there are as many neurons as wrong tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field

from easyeditor.associative.contexts import context_prefixes
from easyeditor.associative.unrelated import unrelated_inputs
from easyeditor.edits import Edit
from easyeditor.gradients.losses import target_nll
from easyeditor.hyperparams import Layers
from easyeditor.lm.model import LM
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

LARGEST_ACTIVATIONS = 5
LARGEST_MEMORIES = 1000
MARGIN = 3.0  # by which unrelated pre-activations shall stay under zero, and under the edit's
LARGEST_EXPONENT = 30.0


class TPatcherHyperParams(AdapterHyperParams):
    """Settings of T-Patcher.

    ``act_factor`` and ``memory_factor`` weigh the terms of the loss (published: 1, and 10 on zsRE),
    ``memory_prompts`` is the number of unrelated prompts whose tokens a neuron learns to be silent
    on, ``value_scale`` the size of a value's steps relative to the MLP's output. ``key_ridge`` is
    that of the least squares in which a key starts, relative to the inputs' size; None starts at
    the published ``q/‖q‖²``. With ``context_template_length_params`` the neurons also learn the
    prompt behind sampled prefixes.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {"smollm2-135m": {"memory_factor": 1.0}}

    alg_name: str = "T-Patcher"
    layers: Layers = (-1,)
    edit_lr: float = Field(0.01, gt=0)
    n_iter: int = Field(100, ge=1)
    act_factor: float = Field(1.0, ge=0)
    memory_factor: float = Field(10.0, ge=0)
    memory_prompts: int = Field(300, ge=1)
    value_scale: float = Field(10.0, gt=0)
    key_ridge: float | None = Field(1e-2, gt=0)
    activation: Activation = "relu"
    stop_loss: float = Field(0.05, ge=0)
    context_template_length_params: tuple[tuple[int, int], ...] = ()


class TPatcher(Method[ContextState]):
    """The neurons of one edit; those that the model carries act while they are trained."""

    name = "T-Patcher"
    title = "one neuron per wrong token beside the last MLP, arXiv 2301.09785"
    hyperparams_class = TPatcherHyperParams
    state_class = ContextState
    max_batch = 1

    hyperparams: TPatcherHyperParams

    def initial_state(self, lm: LM) -> ContextState:
        """The contexts, from the unedited model."""
        settings = self.hyperparams
        lengths = settings.context_template_length_params
        return ContextState(context_prefixes(lm, lengths, seed=settings.seed))

    def edit(
        self, lm: LM, edits: Sequence[Edit], state: ContextState | None = None
    ) -> Outcome[ContextState]:
        """One neuron per token of the target that is not the argmax; at least one.

        Raises:
            DivergedError: a loss is not a number.
        """
        (edit,) = edits
        settings = self.hyperparams.resolved(lm.n_layers)
        state = state or self.initial_state(lm)
        layer, watch = settings.adapted_mlp(lm), Stopwatch()
        earlier = layer.carried(lm.model, ExtraNeurons)
        with without_patches(lm.model, ModulePatch), watch("train"):
            adapter = _train(lm, layer, edit, state.contexts, settings, earlier)
        patch = layer.patch(lm, self.name, edits, settings, adapter, watch.seconds)
        return Outcome(patch, state)


def _train(
    lm: LM,
    layer: AdaptedLayer,
    edit: Edit,
    contexts: Sequence[str],
    settings: TPatcherHyperParams,
    earlier: Sequence[ExtraNeurons],
) -> ExtraNeurons:
    rows = [lm.text.row(edit.prompt, edit.target, prefix=prefix) for prefix in contexts]
    unrelated = unrelated_inputs(lm, layer.path, settings.memory_prompts, settings.seed)
    carried = [adapter.get_buffer("inputs") for adapter in earlier]
    with lm.at_rest():
        logits_of = RowLogits(lm, layer, rows)
        read: list[torch.Tensor] = []
        written: list[torch.Tensor] = []

        def plain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            read.append(x.float())
            written.append(y.float())
            return with_neurons(earlier, x, y)

        with torch.no_grad():
            logits = logits_of(plain)
        x, size = read[0], written[0].square().mean().sqrt()
        first = [0 if lm.encoder_decoder else row.prompt_length - 1 for row in rows]
        lengths = [x.shape[1] if lm.encoder_decoder else len(row.ids) - 1 for row in rows]
        places = _wrong(logits, rows[0].target)
        queries = torch.stack([x[i, [at + p for p in places]] for i, at in enumerate(first)], 1)
        others = torch.stack([x[i, : lengths[i]] for i in range(len(rows))][:1])[0]
        memory = torch.cat([t.to(x) for t in (*unrelated, *carried)] + [others])
        is_answer = torch.zeros(len(places), len(memory), dtype=torch.bool, device=x.device)
        for neuron, place in enumerate(places):
            is_answer[neuron, len(memory) - len(others) + first[0] + place] = True
        scale = memory.norm(dim=1).mean()  # Adam's steps are of one size, whatever the input's is
        queries, memory = queries / scale, memory / scale
        keys, biases = _start(queries[:, 0], memory, is_answer, settings.key_ridge)
        keys.requires_grad_()
        biases.requires_grad_()
        steps = torch.zeros(len(places), layer.projection.d_out, device=x.device)
        steps.requires_grad_()

        def neurons() -> Neurons:
            return Neurons(keys / scale, biases, steps * (settings.value_scale * size))

        def loss_of() -> tuple[torch.Tensor, bool]:
            acting = neurons()
            logits = logits_of(
                lambda x, y: (
                    with_neurons(earlier, x, y) + acting.change(x, settings.activation).to(y)
                )
            )
            nll = target_nll(logits, rows).mean()
            inside = torch.einsum("nrd,nd->nr", queries, keys) + biases[:, None]
            outside = (keys @ memory.T + biases[:, None]).masked_fill(is_answer, -torch.inf)
            loss = (
                nll
                + settings.act_factor * _largest(-inside, LARGEST_ACTIVATIONS)
                + settings.memory_factor
                * (
                    _largest(outside + MARGIN, LARGEST_MEMORIES)
                    + _largest(outside - inside.mean(1, keepdim=True) + MARGIN, LARGEST_MEMORIES)
                )
            )
            return loss, bool(nll < settings.stop_loss and outside.max() < 0)

        adam_descent(
            [keys, biases, steps],
            loss_of,
            method="T-Patcher",
            lr=settings.edit_lr,
            steps=settings.n_iter,
        )
        trained = neurons()
    answered = (queries[:, 0] * scale).cpu()
    tensors = (trained.keys.cpu(), trained.biases.cpu(), trained.values.cpu(), answered)
    return ExtraNeurons(*tensors, activation=settings.activation)


def _start(
    queries: torch.Tensor, memory: torch.Tensor, is_answer: torch.Tensor, ridge: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and biases with pre-activation 1 at ``queries``; with a ridge next to −1 at ``memory``.

    With a ridge, ``a = 2f − 1`` for the linear ``f`` with ``f(q) = 1`` whose mean square over the
    memory, plus the ridge times the mean square input, is the least.
    """
    if ridge is None:
        keys = queries / queries.square().sum(1, keepdim=True)
        return keys.clone(), keys.new_zeros(len(keys))
    text = memory[~is_answer.any(0)].double()
    inputs = torch.cat([text, text.new_ones(len(text), 1)], 1)
    wide = torch.cat([queries.double(), inputs.new_ones(len(queries), 1)], 1)
    gram = inputs.T @ inputs / len(inputs)
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    solved = torch.linalg.solve(gram, wide.T).T
    solved /= (solved * wide).sum(1, keepdim=True)
    return (2 * solved[:, :-1]).float().clone(), (2 * solved[:, -1] - 1).float().clone()


def _wrong(logits: torch.Tensor, target: Sequence[int]) -> list[int]:
    """Which target tokens the model does not give; the least probable one if it gives all."""
    bare = logits[: len(target)].float().log_softmax(-1)
    wanted = torch.tensor(target, device=bare.device)
    wrong = (bare.argmax(-1) != wanted).nonzero()[:, 0].tolist()
    return wrong or [int(bare.gather(1, wanted[:, None])[:, 0].argmin())]


def _largest(exponents: torch.Tensor, n: int) -> torch.Tensor:
    """The mean of the ``n`` largest ``exp`` of these numbers."""
    numbers = exponents.flatten()
    return numbers.topk(min(n, len(numbers))).values.clamp(max=LARGEST_EXPONENT).exp().mean()
