"""Methods that write a searched hidden state through several layers' down-projections.

For every edit a hidden state ``z`` at the last layer of a range is searched (block output at the
subject's last token + δ); the range's down-projections then carry the residual ``z − current``
upwards, each layer its share, in closed form for all edits at once (arXiv 2210.07229)::

    Δᵀ = M K (E + Kᵀ M K)⁻¹ Rᵀ

A method of this kind says which metric ``M`` it has (``metric``) and which regularization ``E``
(``regularization``). With ``protect_edits`` the keys of the edits that the model carries already
join ``K`` with a residual of zero: a later batch leaves them their answers.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from typing import ClassVar, Literal

import torch
from pydantic import Field

from easyeditor.associative.contrast import contrast_rows, read_after_subject
from easyeditor.associative.keys import (
    keys_at,
    rows_of_expansions,
    subject_rows,
    values_at,
    write_scale,
)
from easyeditor.associative.post_steps import PostStep, part_after
from easyeditor.associative.protected_keys import (
    keys_as_extras,
    protected_keys,
    without_stored_keys,
)
from easyeditor.associative.protected_metric import ProtectedMetrics
from easyeditor.associative.solve import KeyMetric
from easyeditor.associative.spread import solve_directions, stored_keys
from easyeditor.associative.value_optimization import OptimizedValues
from easyeditor.associative.windows import check_subjects, other_keys, other_rows, window_rows
from easyeditor.edits import Edit, check_consistent
from easyeditor.hyperparams import Layers
from easyeditor.lm.fingerprint import fingerprint
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.memory import give_back
from easyeditor.lm.model import LM
from easyeditor.methods.base import Method, Need, Outcome
from easyeditor.methods.locate import KeyMetrics, LocateHyperParams
from easyeditor.methods.spread_state import SpreadState
from easyeditor.methods.sweep_plan import LAYER_RANGE, ContextLengths, SweepPlan
from easyeditor.methods.text_windows import WindowSettings
from easyeditor.methods.value_search import values_of
from easyeditor.patches.stack import applied
from easyeditor.patches.weight import Part, weight_patch
from easyeditor.timing import Stopwatch

log = logging.getLogger(__name__)


class SpreadHyperParams(WindowSettings):
    """Settings that these methods share.

    ``key`` says what an edit's answer is stored under: ``"averaged"``, as published, one key (the
    bare prompt's and the mean of the contexts' count alike), or ``"ridge"``, every context's own,
    each with its own slack: rephrases follow more often, for a system contexts times as large.
    ``protect_edits`` leaves the outputs for earlier edits' keys unchanged. Each edit stores its
    keys in its patch (keys × d_in numbers per layer), and later edits read those of the patches
    that the model carries: an edit that is undone is no longer protected, and one whose subject is
    edited anew is replaced. Only edits of patches that store no keys are run again.
    ``anchor_norm`` (NAS, arXiv 2602.02543) gives every ``z`` the length that those of the first 50
    edits have on average, so that lengths do not drift along a sequence. ``post_step`` is done to
    each layer's change: ``"rect"`` (arXiv 2401.04700), ``"prune"`` (2405.16821; both dense),
    ``"sphere"`` (2510.01172).
    For ``window`` see :class:`~easyeditor.methods.text_windows.WindowSettings`.
    """

    ignored: ClassVar[frozenset[str]] = LocateHyperParams.ignored | {"layer_selection"}

    sweep: ClassVar[SweepPlan | None] = LAYER_RANGE

    layers: Layers = (0.11, 0.14, 0.18, 0.21, 0.25, 0.29)
    v_num_grad_steps: int = Field(25, ge=1)
    clamp_norm_factor: float = Field(0.75, gt=0)
    context_template_length_params: ContextLengths = ((10, 5),)
    batch_size: int = Field(100, ge=1)
    key: Literal["averaged", "ridge"] = "averaged"
    protect_edits: bool = False
    anchor_norm: bool = False
    post_step: PostStep = "none"

    @abstractmethod
    def regularization(self, metric: KeyMetric, edits: int) -> float:
        """``E`` of every key, in units of ``kᵀ M k``, for a batch of so many edits."""

    def share(self, left: int) -> float:
        """By what the residual is divided where ``left`` layers have yet to be written."""
        return left

    def recorded(self, metric: KeyMetric) -> dict[str, int]:
        """Numbers about a layer's metric that the patch keeps, by name; none by default."""
        return {}


class SpreadMethod(Method[SpreadState]):
    """Any number of facts in one batch, spread over several layers. Needs the subjects."""

    state_class = SpreadState
    needs = frozenset({Need.SUBJECT})
    searches_expansions = True

    hyperparams: SpreadHyperParams

    def __init__(self, hyperparams: SpreadHyperParams) -> None:
        super().__init__(hyperparams)
        self._metrics = KeyMetrics()
        self._protected = ProtectedMetrics()

    def initial_state(self, lm: LM) -> SpreadState:
        """Sample the contexts, and make sure that the metrics are in their cache."""
        lm = self.hyperparams.column(lm)
        settings = self.hyperparams.resolved(lm.n_layers)
        _, layers, _ = self._where(lm, [int(layer) for layer in settings.layers])
        self._metrics.prepare(lm, layers, settings)
        return SpreadState(settings.contexts(lm))

    def edit(
        self, lm: LM, edits: Sequence[Edit], state: SpreadState | None = None
    ) -> Outcome[SpreadState]:
        """The patch for all ``edits``: one low-rank change per layer, of rank ``len(edits)``.

        Raises:
            SubjectRequiredError: an edit names no subject.
            ContradictingEditsError: one prompt, two targets.
            DivergedError: the search left the finite numbers.
            HyperParamsError: settings that do not fit the model.
        """
        return self._edit(lm, edits, state, None)

    def edit_each(
        self, lm: LM, edits: Sequence[Edit], state: SpreadState | None = None
    ) -> list[Outcome[SpreadState]]:
        """The patches of edits that are made alone; their values are searched in one batch."""
        settings = self.hyperparams.resolved(lm.n_layers)
        if len(edits) == 1 or len({bool(edit.expansions) for edit in edits}) > 1:
            return super().edit_each(lm, edits, state)
        column = settings.column(lm)
        check_subjects(edits, at_subject=settings.at_subject)
        windows = settings.windows(column, edits)
        site = self._where(column, [int(layer) for layer in settings.layers])[0]
        state = state or SpreadState(settings.contexts(column))
        contexts = self.hyperparams.contexts_of(edits, state.contexts)
        values = values_of(column, site, edits, contexts, settings, windows)
        return [
            self._edit(
                lm, [e], state, values.rows([n for n, w in enumerate(windows) if w.edit == i])
            )
            for i, e in enumerate(edits)
        ]

    def _edit(
        self, lm: LM, edits: Sequence[Edit], state: SpreadState | None, z: OptimizedValues | None
    ) -> Outcome[SpreadState]:
        """:meth:`edit` with values that were searched already, if there are any."""
        lm = self.hyperparams.column(lm)
        check_consistent(edits)
        check_subjects(edits, at_subject=self.hyperparams.at_subject)
        settings = self.hyperparams.resolved(lm.n_layers)
        windows, eos = settings.windows(lm, edits), settings.append_eos
        layers = [int(layer) for layer in settings.layers]
        site, layers, scale = self._where(lm, layers)
        settings, kind = settings.replace(layers=layers), settings.key
        watch = Stopwatch()
        with watch("contexts"):
            state = state or SpreadState(settings.contexts(lm))
            contexts = self.hyperparams.contexts_of(edits, state.contexts)
            of_windows = [
                window_rows(lm, edits[w.edit], w, contexts, append_eos=eos) for w in windows
            ]
            bare = [some[0] for some in of_windows]
            rows = [row for some in of_windows for row in some]
            expansions, of_edit = rows_of_expansions(lm, edits)
            opening = [
                i
                for i, window in enumerate(windows)
                if window.at_subject and read_after_subject(lm, edits[window.edit])
            ]
            contrast = contrast_rows(lm, edits) if opening else []
            text = other_rows(lm, edits, windows, append_eos=eos) if settings.protect_text else []
        with watch("moments"):
            self._metrics.prepare(lm, layers, settings)
        with watch("values"):
            optimized = z or values_of(lm, site, edits, contexts, settings, windows)
            width = optimized.delta.shape[1] // len(site.parts())
        entries: dict[str, list[Part]] = {}
        stored: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        recorded: dict[str, torch.Tensor] = {}
        new = (optimized.origin + optimized.delta)[:, :width]  # a second part is not written
        if settings.anchor_norm:
            state = state.anchored_with(new)
            new = torch.nn.functional.normalize(new, dim=1) * state.anchor
        with ExitStack() as lower_layers:
            for i, layer in enumerate(layers):
                projection = lm.down_map(layer)
                with watch("solve"):
                    every, n = keys_at(lm, [layer], rows + expansions)[layer], len(rows)
                    keys, more = every[:n].view(len(windows), len(contexts), -1), every[n:]
                    residual = (new - values_at(lm, site, bare)) / (
                        settings.share(len(layers) - i) * scale
                    )
                with watch("moments"):
                    plain = self._metrics.get(lm, layer, settings)
                with watch("solve"):
                    weight = settings.regularization(plain, len(edits))
                    metric, earlier = self._protecting(lm, layer, edits, contexts, plain, weight)
                    if text:
                        earlier = [*earlier, other_keys(lm, layer, text)]
                    others = keys_at(lm, [layer], contrast)[layer] if contrast else None
                    args = keys, opening, others, earlier, metric, plain, weight, kind, more
                    u, solved, owner = solve_directions(*args, of_edit)
                    if settings.protect_edits:
                        of = torch.tensor([window.edit for window in windows])
                        stored[projection.path] = (solved, of[owner.cpu()])
                    for name, number in settings.recorded(plain).items():
                        numbers = torch.tensor([number] * len(edits))
                        recorded[f"{name}:{projection.path}"] = numbers
                    del metric, plain  # large, and the next layer has another
                    part = part_after(settings.post_step, lm, layer, u, residual)
                    entries[projection.path] = [part]
                    if layer != layers[-1]:  # what the next one is solved from is read above it
                        step = weight_patch(
                            lm, self.name, (), settings, {projection.path: [part]}, {}
                        )
                        lower_layers.enter_context(applied(lm.model, step))
                    give_back()
        extras = keys_as_extras(edits, stored) | recorded
        patch = weight_patch(lm, self.name, edits, settings, entries, watch.seconds, extras)
        return Outcome(patch, state if settings.anchor_norm else None)

    def _where(self, lm: LM, layers: list[int]) -> tuple[Site, list[int], float]:
        """Where z is searched, the layers that write it, and how much of a write arrives.

        A model that normalises what its MLPs write cannot be given a vector at a block's output;
        there z is searched at the last down-projection itself, which alone carries it.
        """
        scale = write_scale(lm, layers[-1])
        if scale is not None:
            return Site(layers[-1], "block"), layers, scale
        name = type(lm.model).__name__
        log.info("%s normalises what its MLPs write; only layer %d is edited.", name, layers[-1])
        return Site(layers[-1], "down"), layers[-1:], 1.0

    def _protecting(
        self,
        lm: LM,
        layer: int,
        new: Sequence[Edit],
        contexts: Sequence[str],
        plain: KeyMetric,
        weight: float,
    ) -> tuple[KeyMetric, list[torch.Tensor]]:
        """A metric that holds most keys of the edits that the model carries, and the others.

        Without ``protect_edits`` it is ``plain``, and there are no others.

        Stored keys are held in the metric as far as they fill blocks; the rest, and keys of patches
        that store none, are returned, each ``(n, d_in)``.
        """
        metric, result = plain, list[torch.Tensor]()
        if not self.hyperparams.protect_edits:
            return metric, result
        path = lm.down_map(layer).path
        stored = protected_keys(lm.model, path, new)
        if stored is not None:
            name = fingerprint(lm.model).digest, path
            held = stored.to(lm.down_map(layer).device)
            metric, rest = self._protected.extended(name, plain, held, weight)
            result.append(rest)
        earlier = without_stored_keys(lm.model, path, new)
        others = [row for edit in earlier for row in edit.rows]
        if others:
            rows = [row for edit in others for row in subject_rows(lm, edit, contexts)]
            keys = keys_at(lm, [layer], rows)[layer].view(len(others), len(contexts), -1)
            result.append(stored_keys(keys, self.hyperparams.key).flatten(0, 1))
        return metric, result
