"""MEMOIR: a residual memory beside one linear layer, one sparse mask per edit, arXiv 2506.07899.

The layer gives ``W h + (m ⊙ h) W_r``. An edit's mask ``m`` selects the ``k`` inputs in which its
prompt differs most from other text, sent through a fixed random permutation; the edit trains the
rows of ``W_r`` under its mask. A prompt whose own selection overlaps enough with a stored one is
answered with the stored mask; every other prompt is answered by W alone, to the bit. The trap:
edits share rows, so a later edit also moves what an earlier one wrote.

Beside published code: the router reads the prompt alone, row by row, without its first token (an
attention sink); the permutation and the background are stored, not drawn anew; no weight decay,
which erodes earlier edits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field

from easyeditor.associative.contexts import context_prefixes
from easyeditor.associative.unrelated import inputs_of, unrelated_inputs
from easyeditor.edits import Edit
from easyeditor.gradients.losses import target_nll
from easyeditor.lm.forward.context import ForwardContext
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Row
from easyeditor.methods.adapted_layer import AdaptedLayer, AdapterHyperParams, RowLogits, descend
from easyeditor.methods.base import Method, Outcome
from easyeditor.methods.value_search import ContextState
from easyeditor.patches.adapter import Adapter
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.routed import RoutedAdapter
from easyeditor.patches.stack import without_patches
from easyeditor.timing import Stopwatch

N_UNRELATED_PROMPTS = 100


class MEMOIRHyperParams(AdapterHyperParams):
    """Settings of MEMOIR.

    ``active_share`` is the share of the layer's inputs that a mask selects, ``overlap_threshold``
    the share of a mask that a prompt's own selection must have in common with it.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "llama-3-8b": {"layers": [27], "n_iter": 30, "overlap_threshold": 0.4},
        "gpt-j-6B": {
            "layers": [21],
            "n_iter": 70,
            "active_share": 0.25,
            "overlap_threshold": 0.46,
        },
        "smollm2-135m": {"layers": [25], "stop_loss": 0.1},
    }

    alg_name: str = "MEMOIR"
    active_share: float = Field(0.286, gt=0, le=1)
    overlap_threshold: float = Field(0.5, gt=0, le=1)
    edit_lr: float = Field(1.0, gt=0)
    n_iter: int = Field(70, ge=1)
    gradient_norm: float = Field(1.0, gt=0)
    stop_loss: float = Field(0.02, ge=0)
    context_template_length_params: tuple[tuple[int, int], ...] = ((5, 5), (10, 5))


@dataclass(frozen=True)
class MEMOIRState(ContextState):
    """What is the same for all edits, beside the contexts.

    Attributes:
        background: ``(d_in,)``, the mean of what the layer reads in unrelated prompts.
        permutation: ``(d_in,)``, where a selected input's row lies in ``W_r``.
    """

    background: torch.Tensor
    permutation: torch.Tensor


def prompt_mean(inputs: torch.Tensor) -> torch.Tensor:
    """The mean of a prompt's inputs ``(tokens, d_in)`` without the first, where there are more."""
    return inputs[min(1, len(inputs) - 1) :].mean(0)


class ResidualMemory(Adapter):
    """The mask and the increment of one edit.

    Args:
        selected: ``(k,)``, the inputs in which the edited prompt differs most.
        rows: ``(k,)``, the rows of ``W_r`` under its mask.
        values: ``(k, d_out)``, what the edit adds to these rows.
        background: ``(d_in,)``, see :class:`MEMOIRState`.
        threshold: the least overlap.
    """

    name = "ResidualMemory"

    def __init__(
        self,
        selected: torch.Tensor,
        rows: torch.Tensor,
        values: torch.Tensor,
        background: torch.Tensor,
        threshold: float,
    ) -> None:
        super().__init__()
        k, width = len(selected), len(background)
        if not k or values.dim() != 2 or not len(rows) == len(values) == k:
            raise ValueError(f"{k} inputs, {len(rows)} rows, values {tuple(values.shape)}")
        if (
            min(int(selected.min()), int(rows.min())) < 0
            or max(int(selected.max()), int(rows.max())) >= width
        ):
            raise ValueError(f"an input outside of the layer's {width}")
        for field, tensor in (("selected", selected), ("rows", rows)):
            self.register_buffer(field, tensor.detach().to(torch.int32).clone())
        for field, tensor in (("values", values), ("background", background)):
            self.register_buffer(field, tensor.detach().float().clone())
        self.threshold = float(threshold)

    def settings(self) -> dict[str, Any]:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""
        return {"threshold": self.threshold}

    @property
    def output_width(self) -> int:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""
        return int(self.get_buffer("values").shape[1])

    def forward(self, x: torch.Tensor, y: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""
        result: torch.Tensor = ResidualMemories([self])(x, y, context)
        return result

    @classmethod
    def merge(cls, adapters: Sequence[ResidualMemory]) -> Adapter:
        """The memory of all these edits, with its router."""
        return ResidualMemories(adapters)


class ResidualMemories(RoutedAdapter):
    """``W_r`` and one mask per edit; never saved as one."""

    name = "ResidualMemories"

    def __init__(self, edits: Sequence[ResidualMemory]) -> None:
        super().__init__()
        self.threshold = edits[0].threshold
        background = edits[0].get_buffer("background")
        masks = torch.zeros(len(edits), len(background))
        for mask, edit in zip(masks, edits, strict=True):
            mask[edit.get_buffer("selected").cpu().long()] = 1
        self.register_buffer("background", background, persistent=False)
        self.register_buffer("masks", masks, persistent=False)
        self.register_buffer("weight", weight_of(edits), persistent=False)
        self.rows = [edit.get_buffer("rows").long() for edit in edits]

    def route(self, x: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """See :class:`RoutedAdapter`: the edit whose mask overlaps most, if it is enough."""
        masks = self.get_buffer("masks").to(x.device)
        background = self.get_buffer("background").to(x.device)
        prompt = context.prompt_tokens().to(x.device)
        sizes = masks.sum(1)
        result = torch.full((len(x),), -1, device=x.device)
        for row, (inputs, tokens) in enumerate(zip(x, prompt, strict=True)):
            if not tokens.any():
                continue
            difference = (prompt_mean(inputs[tokens].float()) - background).abs()
            selected = difference.topk(int(sizes[0])).indices
            overlap, edit = (masks[:, selected].sum(1) / sizes).max(0)
            if float(overlap) >= self.threshold:
                result[row] = edit
        return result

    def expert(self, x: torch.Tensor, y: torch.Tensor, entry: torch.Tensor) -> torch.Tensor:
        """See :class:`RoutedAdapter`: the output with the edit's mask."""
        weight = self.get_buffer("weight")
        changes = []
        for inputs, edit in zip(x, entry.tolist(), strict=True):
            rows = self.rows[edit].to(weight.device)
            under = weight[rows].to(x.device)
            changes.append(inputs[:, rows.to(x.device)].float() @ under)
        return y + torch.stack(changes).to(y)


def weight_of(edits: Sequence[ResidualMemory]) -> torch.Tensor:
    """``W_r`` ``(d_in, d_out)``: the sum of the edits' increments, in their order."""
    first = edits[0]
    result = torch.zeros(len(first.get_buffer("background")), first.output_width)
    for edit in edits:
        values = edit.get_buffer("values").cpu()
        result.index_add_(0, edit.get_buffer("rows").cpu().long(), values)
    return result


class MEMOIR(Method[MEMOIRState]):
    """One mask and one increment per edit; continues the memory that the model carries."""

    name = "MEMOIR"
    title = "a residual memory beside one layer, one sparse mask per edit"
    hyperparams_class = MEMOIRHyperParams
    state_class = MEMOIRState
    max_batch = 1

    hyperparams: MEMOIRHyperParams

    def initial_state(self, lm: LM) -> MEMOIRState:
        """Contexts, background and permutation, from the unedited model."""
        settings = self.hyperparams
        lengths = settings.context_template_length_params
        contexts = context_prefixes(lm, lengths, seed=settings.seed)
        layer = settings.adapted_layer(lm)
        inputs = unrelated_inputs(lm, layer.path, N_UNRELATED_PROMPTS, settings.seed)
        background = torch.stack([prompt_mean(some) for some in inputs]).mean(0).cpu()
        draw = torch.Generator().manual_seed(settings.seed)
        return MEMOIRState(contexts, background, torch.randperm(len(background), generator=draw))

    def edit(
        self, lm: LM, edits: Sequence[Edit], state: MEMOIRState | None = None
    ) -> Outcome[MEMOIRState]:
        """The mask and the increment of one edit, trained on the model without adapters.

        Raises:
            DivergedError: a loss is not a number.
        """
        (edit,) = edits
        settings = self.hyperparams.resolved(lm.n_layers)
        state = state or self.initial_state(lm)
        layer, watch = settings.adapted_layer(lm), Stopwatch()
        earlier = layer.carried(lm.model, ResidualMemory)
        width, d_out = layer.projection.d_in, layer.projection.d_out
        with without_patches(lm.model, ModulePatch), watch("train"):
            (inputs,) = inputs_of(lm, layer.projection.module, [Row(lm.text.row(edit.prompt).ids)])
            difference = (prompt_mean(inputs).cpu() - state.background).abs()
            selected = difference.topk(max(1, round(settings.active_share * width))).indices
            rows = state.permutation[selected]
            weight = weight_of(earlier) if earlier else torch.zeros(width, d_out)
            values = _train(lm, layer, edit, state.contexts, settings, rows, weight[rows])
        adapter = ResidualMemory(
            selected, rows, values, state.background, settings.overlap_threshold
        )
        patch = layer.patch(lm, self.name, edits, settings, adapter, watch.seconds)
        return Outcome(patch, state)


def _train(
    lm: LM,
    layer: AdaptedLayer,
    edit: Edit,
    contexts: Sequence[str],
    settings: MEMOIRHyperParams,
    under_mask: torch.Tensor,
    start: torch.Tensor,
) -> torch.Tensor:
    """What gradient descent adds to the rows ``start`` ``(k, d_out)`` under the mask."""
    device = layer.projection.device
    rows = [lm.text.row(edit.prompt, edit.target, prefix=prefix) for prefix in contexts]
    change = torch.zeros_like(start, device=device, requires_grad=True)
    under_mask, start = under_mask.to(device), start.to(device)
    with lm.at_rest():
        logits_of = RowLogits(lm, layer, rows)
        descend(
            change,
            lambda: target_nll(logits_of(partial(_plus, under_mask, start + change)), rows).mean(),
            method="MEMOIR",
            lr=settings.edit_lr,
            steps=settings.n_iter,
            stop_loss=settings.stop_loss,
            gradient_norm=settings.gradient_norm,
        )
    return change.detach().cpu()


def _plus(
    under_mask: torch.Tensor, weight: torch.Tensor, x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    return y + (x[..., under_mask].float() @ weight).to(y.dtype)
