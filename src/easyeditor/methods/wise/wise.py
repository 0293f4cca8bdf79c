"""WISE: edits in a side copy of one weight, behind a router, arXiv 2405.14768.

An edit trains the copy ``W + Δ`` on a random mask to give the target, to answer the edited prompt
strongly (``a(x) = ‖x Δ‖``) and unrelated prompts weakly::

    loss = NLL(target) + [a(x_i) − α]₊ + [β − a(x_e)]₊ + [γ − a(x_e) + a(x_i)]₊

averaged over the prompt behind several contexts, with x_e the edited prompt and x_i an unrelated
one. A prompt is answered by the copy if its activation is over a share of the least one among the
edits, and by W, to the bit, if not.

Beside published code: the router reads the prompt alone, row by row; there is no weight decay,
which shrinks the whole copy; α, β, γ are relative to the layer's own output; unrelated prompts come
with the package, not from a test set; thresholds follow from the edits that are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field
from torch.nn.functional import relu

from easyeditor.associative.contexts import context_prefixes
from easyeditor.associative.unrelated import inputs_of, unrelated_inputs
from easyeditor.edits import Edit
from easyeditor.gradients.losses import target_nll
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Row
from easyeditor.methods.adapted_layer import AdaptedLayer, AdapterHyperParams, RowLogits, descend
from easyeditor.methods.base import Method, Outcome
from easyeditor.methods.value_search import ContextState
from easyeditor.methods.wise.memory import SideMemory, activations, delta_of, packed, shards_of
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.stack import without_patches
from easyeditor.timing import Stopwatch

N_UNRELATED_PROMPTS = 64
PROMPTS_PER_EDIT = 8  # of them, others at every edit


class WISEHyperParams(AdapterHyperParams):
    """Settings of WISE; names as in the classic files.

    ``act_margin`` is (α, β, γ); by default β is ``act_share`` times the mean length of the layer's
    own output, α a quarter and γ half of it. ``save_freq`` edits fill a shard, ``merge_freq`` are
    merged at once; ``retrieve`` keeps all shards apart.
    """

    ignored: ClassVar[frozenset[str]] = frozenset(
        ("norm_constraint", "objective_optimization", "weights", "replay", "max_length")
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt2-xl": {
            "inner_params": ["transformer.h.8.mlp.c_fc"],
            "n_iter": 40,
            "act_margin": [5.0, 20.0, 10.0],
            "act_ratio": 0.8,
        },
        "gpt-j-6B": {"layers": [21], "act_margin": [15.0, 40.0, 20.0]},
        "llama-2-7b": {"layers": [27], "act_margin": [5.0, 20.0, 10.0]},
        "llama-3-8b": {
            "layers": [29],
            "edit_lr": 0.9,
            "n_iter": 30,
            "act_margin": [2.0, 20.0, 10.0],
            "act_ratio": 0.5,
        },
        "mistral-7b": {"layers": [27], "act_margin": [5.0, 20.0, 10.0]},
        "qwen2.5-7b": {"layers": [23], "act_margin": [5.0, 20.0, 10.0]},
        "smollm2-135m": {
            "layers": [25],
            "act_ratio": 0.7,
            "save_freq": 20,
            "merge_freq": 40,
            "stop_loss": 0.1,
        },
    }
    variants: ClassVar[dict[str, dict[str, Any]]] = {
        "WISE-Merge": {"retrieve": False},
        "WISE-Retrieve": {"retrieve": True},
    }

    alg_name: str = "WISE"
    stop_loss: float = Field(0.02, ge=0)
    mask_ratio: float = Field(0.2, gt=0, le=1)
    edit_lr: float = Field(1.0, gt=0)
    n_iter: int = Field(70, ge=1)
    act_margin: Annotated[
        tuple[float, float, float] | None,
        BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
    ] = None
    act_share: float = Field(1.0, gt=0)
    act_ratio: float = Field(0.88, gt=0)
    save_freq: int = Field(500, ge=1)
    merge_freq: int = Field(1000, ge=1)
    merge_alg: Literal["ties"] = "ties"
    densities: float = Field(0.53, gt=0, le=1)
    retrieve: bool = True
    context_template_length_params: tuple[tuple[int, int], ...] = ((5, 5), (10, 5))


@dataclass(frozen=True)
class WISEState(ContextState):
    """The contexts, and (α, β, γ)."""

    margins: tuple[float, float, float]


class WISE(Method[WISEState]):
    """One increment of a side memory per edit; continues the memory that the model carries."""

    name = "WISE"
    title = "a side memory beside one layer, with a router (Merge, Retrieve)"
    hyperparams_class = WISEHyperParams
    state_class = WISEState
    max_batch = 1

    hyperparams: WISEHyperParams

    def initial_state(self, lm: LM) -> WISEState:
        """Contexts and margins, from the unedited model."""
        settings = self.hyperparams
        contexts = context_prefixes(lm, settings.context_template_length_params, seed=settings.seed)
        if settings.act_margin is not None:
            return WISEState(contexts, settings.act_margin)
        layer = settings.adapted_layer(lm)
        inputs = unrelated_inputs(lm, layer.path, N_UNRELATED_PROMPTS, settings.seed)
        weight = layer.projection.weight.float().cpu()
        beta = settings.act_share * float(
            activations([some.cpu() for some in inputs], weight).mean()
        )
        return WISEState(contexts, (beta / 4, beta, beta / 2))

    def edit(
        self, lm: LM, edits: Sequence[Edit], state: WISEState | None = None
    ) -> Outcome[WISEState]:
        """The increment of one edit, trained on the model without adapters.

        Raises:
            DivergedError: a loss is not a number.
        """
        (edit,) = edits
        settings = self.hyperparams.resolved(lm.n_layers)
        state = state or self.initial_state(lm)
        layer, watch = settings.adapted_layer(lm), Stopwatch()
        carried = layer.carried(lm.model, SideMemory)
        shard, earlier = _open_shard(carried, settings)
        mask = earlier[0].where() if earlier else _random_mask(layer, settings, shard)
        start = delta_of(earlier) if earlier else torch.zeros(mask.shape)
        unrelated = unrelated_inputs(lm, layer.path, N_UNRELATED_PROMPTS, settings.seed)
        first = PROMPTS_PER_EDIT * len(carried)
        near = [unrelated[(first + i) % len(unrelated)] for i in range(PROMPTS_PER_EDIT)]
        with without_patches(lm.model, ModulePatch), watch("train"):
            (inputs,) = inputs_of(lm, layer.projection.module, [Row(lm.text.row(edit.prompt).ids)])
            change = _train(lm, layer, edit, state, settings, mask, start, near)
        adapter = SideMemory(
            packed(mask),
            change[mask],
            inputs.cpu(),
            shard,
            settings.act_ratio,
            not settings.retrieve,
            settings.save_freq,
            settings.merge_freq,
            settings.densities,
            layer.projection.d_out,
        )
        patch = layer.patch(lm, self.name, edits, settings, adapter, watch.seconds)
        return Outcome(patch, state)


def _open_shard(
    carried: Sequence[SideMemory], settings: WISEHyperParams
) -> tuple[int, list[SideMemory]]:
    """The number of the shard that an edit goes to, and the edits that are in it."""
    shards = shards_of(carried)
    if not shards:
        return 0, []
    newest = max(shards)
    full = len(shards[newest]) >= settings.save_freq
    return (newest + 1, []) if full else (newest, shards[newest])


def _plus(delta: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y + (x.float() @ delta).to(y.dtype)


def _random_mask(layer: AdaptedLayer, settings: WISEHyperParams, shard: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(settings.seed * 1_000_003 + shard)
    shape = (layer.projection.d_in, layer.projection.d_out)
    return torch.rand(shape, generator=draw) < settings.mask_ratio


def _train(
    lm: LM,
    layer: AdaptedLayer,
    edit: Edit,
    state: WISEState,
    settings: WISEHyperParams,
    mask: torch.Tensor,
    start: torch.Tensor,
    unrelated: Sequence[torch.Tensor],
) -> torch.Tensor:
    """What gradient descent on the mask adds to ``start``, ``(d_in, d_out)``."""
    device = layer.projection.device
    alpha, beta, gamma = state.margins
    rows = [lm.text.row(edit.prompt, edit.target, prefix=prefix) for prefix in state.contexts]
    prompts = [Row(lm.text.row(edit.prompt, prefix=prefix).ids) for prefix in state.contexts]
    edited = inputs_of(lm, layer.projection.module, prompts)
    others = [some.to(device) for some in unrelated]
    where, start = mask.to(device), start.to(device)
    change = torch.zeros_like(start, requires_grad=True)
    with lm.at_rest():
        logits_of = RowLogits(lm, layer, rows)

        def loss_of() -> torch.Tensor:
            delta = start + change * where
            inside, outside = activations(edited, delta), activations(others, delta)
            return (
                target_nll(logits_of(partial(_plus, delta)), rows).mean()
                + relu(outside - alpha).mean()
                + relu(beta - inside).mean()
                + relu(gamma - inside[:, None] + outside).mean()
            )

        descend(
            change,
            loss_of,
            method="WISE",
            lr=settings.edit_lr,
            steps=settings.n_iter,
            stop_loss=settings.stop_loss,
        )
    return (change.detach() * where).cpu()
