"""GRACE: a codebook at one linear layer, arXiv 2211.11031.

An entry has a key (what the layer reads at the last token of the edited prompt), a value (what the
layer gives there instead of its own output) and a radius. A prompt whose key lies within the radius
of its nearest entry gets that entry's value; every other prompt gets the unedited model. No weight
changes. The trap: a rephrased prompt is seldom within a radius that leaves other prompts alone.

Beside the published method: every edit has a value of its own (none is trained again for an edit
with an equal label), and the radii follow from the entries in their order, so that removing one
edit gives exactly the codebook that never held it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from easyeditor.associative.keys import values_at
from easyeditor.associative.unrelated import (
    inputs_of,
    nearest_distance_quantile,
    unrelated_inputs,
)
from easyeditor.edits import Edit, check_consistent
from easyeditor.gradients.losses import target_nll
from easyeditor.gradients.minimize import refuse_diverged
from easyeditor.lm.forward.batching import row_batches
from easyeditor.lm.forward.context import ForwardContext
from easyeditor.lm.forward.partial import EditRow, open_forward
from easyeditor.lm.image_tokens import through_unit
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Row
from easyeditor.methods.adapted_layer import AdaptedLayer, AdapterHyperParams
from easyeditor.methods.base import Method, Outcome, State
from easyeditor.patches.module import ModulePatch
from easyeditor.patches.routed import RoutedAdapter
from easyeditor.patches.stack import without_patches
from easyeditor.progress import bar
from easyeditor.timing import Stopwatch

GAP = 1e-5  # between the balls of entries with different labels
N_UNRELATED_PROMPTS = 300  # by which the initial radius is chosen
TOKENS_TOGETHER = 1024  # of the values that are searched in one batch


class GraceHyperParams(AdapterHyperParams):
    """Settings of GRACE.

    ``eps`` is the initial radius. Distances between activations differ tenfold from model to model,
    so by default it is the ``eps_quantile`` of the distances from the keys of unrelated prompts to
    the nearest other one. ``val_init`` starts a value at random ("cold") or at the layer's own
    output ("warm"); the search stops once the mean loss of the target's tokens is below
    ``stop_loss``.
    """

    ignored: ClassVar[frozenset[str]] = frozenset(
        (
            *("dist_fn", "val_train", "val_reg", "reg", "replacement"),
            *("eps_expand", "num_pert", "dropout", "max_length"),
        )
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt2-xl": {"inner_params": ["transformer.h.35.mlp.c_fc"], "n_iter": 100, "eps": 1.0},
        "gpt-j-6B": {"layers": [25], "n_iter": 200, "eps": 1.0},
        "llama-2-7b": {"layers": [27], "n_iter": 50, "eps": 1.0},
        "qwen2.5-7b": {"layers": [18], "n_iter": 50, "eps": 1.0},
        "smollm2-135m": {"layers": [25]},
    }

    alg_name: str = "GRACE"
    edit_lr: float = Field(1.0, gt=0)
    n_iter: int = Field(100, ge=1)
    eps: float | None = Field(None, gt=0)
    eps_quantile: float = Field(0.05, ge=0, le=1)
    val_init: Literal["cold", "warm"] = "cold"
    stop_loss: float = Field(0.01, ge=0)
    batch_size: int = Field(1, ge=1)


@dataclass(frozen=True)
class GraceState(State):
    """The radius that a new entry gets."""

    radius: float


class ValueCodebook(RoutedAdapter):
    """Entries ``(key, value, label, radius)``; the nearest entry's value replaces the output.

    Args:
        keys: ``(n, d_in)``, oldest first.
        values: ``(n, d_out)``.
        labels: ``(n,)``, equal for equal targets.
        initial_radii: ``(n,)``, before the entries' neighbours are looked at.
    """

    name = "ValueCodebook"

    def __init__(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        labels: torch.Tensor,
        initial_radii: torch.Tensor,
    ) -> None:
        super().__init__()
        n = len(keys)
        if keys.dim() != 2 or values.dim() != 2 or not n:
            raise ValueError(f"keys {tuple(keys.shape)}, values {tuple(values.shape)}")
        if not len(values) == len(labels) == len(initial_radii) == n:
            raise ValueError(f"{n} keys, {len(values)} values, {len(labels)} labels")
        self.register_buffer("keys", keys.detach().float().clone())
        self.register_buffer("values", values.detach().float().clone())
        self.register_buffer("labels", labels.detach().clone())
        self.register_buffer("initial_radii", initial_radii.detach().float().clone())
        result = radii(self.get_buffer("keys"), labels, self.get_buffer("initial_radii"))
        self.register_buffer("radii", result, persistent=False)

    @property
    def output_width(self) -> int:
        """See :class:`~easyeditor.patches.adapter.Adapter`."""
        return self.get_buffer("values").shape[1]

    def route(self, x: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        """See :class:`RoutedAdapter`: the nearest entry, if the key lies within its radius."""
        keys = self.get_buffer("keys").to(x.device)
        query = context.at_prompt_end(x).float()
        distances = torch.cdist(query, keys, compute_mode="donot_use_mm_for_euclid_dist")
        shadowed = self.get_buffer("radii").to(x.device) < 0
        nearest, entry = distances.masked_fill(shadowed, torch.inf).min(1)
        return torch.where(nearest <= self.get_buffer("radii").to(x.device)[entry], entry, -1)

    def places(self, context: ForwardContext) -> torch.Tensor:
        """See :class:`RoutedAdapter`: the last token of the prompt."""
        columns = torch.arange(context.start, context.mask.shape[1], device=context.mask.device)
        return columns[None] == context.prompt_end.to(context.mask.device)[:, None]

    def expert(self, x: torch.Tensor, y: torch.Tensor, entry: torch.Tensor) -> torch.Tensor:
        """See :class:`RoutedAdapter`: the entry's value."""
        return self.get_buffer("values").to(y)[entry][:, None].expand(y.shape)

    @classmethod
    def merge(cls, adapters: Sequence[ValueCodebook]) -> ValueCodebook:
        """One codebook with the entries of all, in their order."""
        if len(adapters) == 1:
            return adapters[0]
        names = ("keys", "values", "labels", "initial_radii")
        return cls(*(torch.cat([a.get_buffer(name).cpu() for a in adapters]) for name in names))


def radii(keys: torch.Tensor, labels: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
    """The radius of each entry after all were added in order, ``(n,)``; −1 for one replaced.

    A new entry at distance ``d`` from the nearest earlier one: beyond both radii it changes
    nothing; with an equal label the earlier radius grows to ``d``; with another label neither
    radius is more than ``d/2``. An entry at the key of an earlier one stands in its place.
    """
    wide = keys.double().cpu()
    squares = (wide * wide).sum(1)
    distances = (squares[:, None] + squares - 2 * wide @ wide.T).clamp(min=0).sqrt()
    result = [float(radius) for radius in initial.tolist()]
    alive = torch.zeros(len(keys), dtype=torch.bool)
    place: dict[bytes, int] = {}
    rows = (keys.float().cpu() + 0.0).numpy()  # no negative zeros
    for new in range(len(keys)):
        old = place.get(rows[new].tobytes())
        if old is not None:
            result[old], alive[old] = -1.0, False
        place[rows[new].tobytes()] = new
        if alive.any():
            near = int(distances[new].masked_fill(~alive, torch.inf).argmin())
            d = float(distances[new, near])
            if d <= result[near] + result[new]:
                if labels[near] == labels[new]:
                    result[near] = max(result[near], d)
                else:
                    result[near] = min(result[near], d / 2 - GAP)
                    result[new] = min(result[new], d / 2)
        alive[new] = True
    return torch.tensor(result, device=keys.device)


class GRACE(Method[GraceState]):
    """One codebook entry per edit; any number of values is searched together."""

    name = "GRACE"
    title = "a codebook of activations at one layer, for a lifetime of edits"
    hyperparams_class = GraceHyperParams
    state_class = GraceState

    hyperparams: GraceHyperParams

    def initial_state(self, lm: LM) -> GraceState:
        """The initial radius: ``eps``, or from the keys of unrelated prompts."""
        settings = self.hyperparams
        if settings.eps is not None:
            return GraceState(settings.eps)
        path = settings.adapted_layer(lm).path
        inputs = unrelated_inputs(lm, path, N_UNRELATED_PROMPTS, settings.seed)
        keys = torch.stack([row[-1] for row in inputs])
        return GraceState(nearest_distance_quantile(keys, settings.eps_quantile))

    def edit(
        self, lm: LM, edits: Sequence[Edit], state: GraceState | None = None
    ) -> Outcome[GraceState]:
        """The entries of ``edits``; their values are searched on the model without adapters.

        Raises:
            ContradictingEditsError: one prompt, two targets.
            DivergedError: a loss is not a number.
        """
        check_consistent(edits)
        settings = self.hyperparams.resolved(lm.n_layers)
        state = state or self.initial_state(lm)
        layer, watch = settings.adapted_layer(lm), Stopwatch()
        with without_patches(lm.model, ModulePatch):
            with watch("keys"):
                prompts = [Row(lm.text.row(edit.prompt).ids) for edit in edits]
                keys = inputs_of(lm, layer.projection.module, prompts)
            with watch("values"), lm.at_rest():
                values = _values(lm, layer, edits, settings)
        adapter = ValueCodebook(
            torch.stack([inputs[-1] for inputs in keys]).cpu(),
            values.cpu(),
            torch.tensor([_label(lm, edit) for edit in edits]),
            torch.full((len(edits),), state.radius),
        )
        patch = layer.patch(lm, self.name, edits, settings, adapter, watch.seconds)
        return Outcome(patch, state)


def _label(lm: LM, edit: Edit) -> int:
    """A number that equal targets share."""
    target = lm.text.row(edit.prompt, edit.target).target
    digest = hashlib.sha256(",".join(map(str, target)).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _values(
    lm: LM, layer: AdaptedLayer, edits: Sequence[Edit], settings: GraceHyperParams
) -> torch.Tensor:
    rows = [lm.text.row(edit.prompt, edit.target) for edit in edits]
    result = torch.zeros(len(rows), layer.projection.d_out)
    with bar(len(rows), "searching values") as progress:
        for chunk in row_batches(rows, TOKENS_TOGETHER, 1 << 30):
            result[chunk] = _search(lm, layer, [rows[i] for i in chunk], settings).cpu()
            progress.update(len(chunk))
    return result


def _search(
    lm: LM, layer: AdaptedLayer, rows: Sequence[Row], settings: GraceHyperParams
) -> torch.Tensor:
    """The value of each row with the least loss that Adam met, ``(rows, d_out)``."""
    runs, ends = [], []
    for row in rows:
        if lm.encoder_decoder:
            runs.append(EditRow(row.ids, 0, tuple(range(len(row.target))), row.target))
            ends.append(Row(row.ids, (), 0))
        else:
            at = row.prompt_length - 1
            runs.append(EditRow(row.ids[:-1], at, tuple(range(at, len(row.ids) - 1))))
            ends.append(Row(row.ids[: through_unit(row.ids, at + 1)], (), at))
    forward = open_forward(lm, layer.site, runs)
    origin = values_at(lm, layer.site, ends)
    value = origin.clone()
    if settings.val_init == "cold":  # each row's start is the same in any batch
        draw = torch.Generator().manual_seed(settings.seed)
        value.copy_(torch.rand(value.shape[1], generator=draw).expand(value.shape))
    value.requires_grad_()
    adam = torch.optim.Adam([value], lr=settings.edit_lr, foreach=False)
    least, best = torch.full((len(rows),), torch.inf), origin.clone()
    for step in range(settings.n_iter):
        losses = target_nll(forward.logits(value - origin), rows)
        now = losses.detach().cpu()
        refuse_diverged("GRACE", now.tolist(), f"step {step}", "edit_lr")
        better = (now < least).to(value.device)
        best[better], least = value.detach()[better], torch.minimum(least, now)
        running = (least >= settings.stop_loss).to(value.device)
        if not running.any():
            break
        losses.sum().backward()  # type: ignore[no-untyped-call]
        stopped = value.detach().clone()
        adam.step()
        adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            value.copy_(torch.where(running[:, None], value, stopped))
    return best
