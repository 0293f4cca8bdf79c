"""ROME: rank-one model editing (Meng et al., arXiv 2202.05262).

The MLP's down-projection ``W`` at one layer is read as a linear associative memory. ``k_star`` is
its input at the subject's last token, ``v_star = W k_star + δ`` the output that makes the model
answer with the target, and the edit is the rank-one change that stores the pair and disturbs as
little as possible of what the second moment ``C`` says the layer is used for::

    W += (v_star − W k) uᵀ / (uᵀ k),    u = C⁻¹ k_star

How the keys of the sampled contexts are used is the one choice (``key``):

- ``"ridge"`` (default): δ is stored for *every* context's own key, the bare prompt's exactly and
  the others as closely as ``key_slack`` allows: one constrained ridge, rank one. Exact on the bare
  prompt, cannot collapse (no division by a key that may be nearly orthogonal to ``u``), and the
  search did the same thing, adding δ in every context.
- ``"paper"``: ``u`` from the averaged key, division by the bare one. Exact, but one edit may ruin
  the model when the subject opens the prompt (arXiv 2406.11263, 2403.07175).
- ``"averaged"``: the averaged key everywhere (R-ROME). Safe, not exact on the bare prompt.
- ``"joint"``: averaged and bare key as two constraints of one solve, rank two.

Where the subject opens the prompt, keys that the change shall leave alone join the solve
(:mod:`easyeditor.associative.contrast`), as do those of the prompts that an edit keeps, but for
``"paper"``, whose formula has no place for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from easyeditor.associative.contrast import contrast_rows, kept_rows
from easyeditor.associative.keys import expansion_rows, keys_at, subject_rows
from easyeditor.associative.solve import KeyMetric, closed_form, double
from easyeditor.edits import Edit
from easyeditor.errors import HyperParamsError
from easyeditor.hyperparams import Layers
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.model import LM
from easyeditor.methods.base import Method, Need, Outcome
from easyeditor.methods.locate import KeyMetrics, LocateHyperParams
from easyeditor.methods.sweep_plan import ONE_LAYER, SweepPlan
from easyeditor.methods.value_search import ContextState, values_of
from easyeditor.patches.weight import LowRank, weight_patch
from easyeditor.timing import Stopwatch


class ROMEHyperParams(LocateHyperParams):
    """Settings of ROME; defaults as published for GPT-2 XL, the layer relative to the depth."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt2-xl": {"layers": [17]},
        "gpt-j-6B": {"layers": [5]},
        "gpt-neo-2.7B": {"layers": [5]},
        "llama-7b": {"layers": [5], "v_num_grad_steps": 25, "v_weight_decay": 1e-3},
        "llama-2-7b": {"layers": [5], "v_num_grad_steps": 25, "v_weight_decay": 1e-3},
        "t5-3b": {"layers": [6], "mom2_dataset": "wikipedia"},  # none was published
        # On tests/facts.json a third of the contexts and a stop at p(target) = 0.9 score as high.
        "smollm2-135m": {
            "layers": [3],
            "v_num_grad_steps": 25,
            "v_weight_decay": 1e-3,
            "v_stop_nll": 0.1,
            "context_template_length_params": [[5, 3], [10, 3]],
            "mom2_dataset": "self",
            "mom2_n_tokens": 6144,  # 4 × d_in: `easyedit demo` has to collect them in seconds
        },
    }

    sweep: ClassVar[SweepPlan | None] = ONE_LAYER

    alg_name: str = "ROME"
    layers: Layers = Field((0.17,), max_length=1)
    key: Literal["ridge", "paper", "averaged", "joint"] = "ridge"
    key_slack: float = Field(0.03, gt=0)


class ROME(Method[ContextState]):
    """One fact, one layer, one rank. Needs the subject."""

    name = "ROME"
    title = "rank-one model editing, arXiv 2202.05262"
    hyperparams_class = ROMEHyperParams
    state_class = ContextState
    max_batch = 1
    needs = frozenset({Need.SUBJECT})
    searches_expansions = True
    keeps = True

    hyperparams: ROMEHyperParams

    def __init__(self, hyperparams: ROMEHyperParams) -> None:
        super().__init__(hyperparams)
        self._metrics = KeyMetrics()

    def initial_state(self, lm: LM) -> ContextState:
        """Sample the contexts, and make sure that the moments are in their cache."""
        lm = self.hyperparams.column(lm)
        settings = self.hyperparams.resolved(lm.n_layers)
        self._metrics.prepare(lm, [int(settings.layers[0])], settings)
        return ContextState(settings.contexts(lm))

    def edit(
        self, lm: LM, edits: Sequence[Edit], state: ContextState | None = None
    ) -> Outcome[ContextState]:
        """The rank-one patch (rank two with ``key="joint"``) for one edit.

        Raises:
            SubjectRequiredError: the edit names no subject.
            DivergedError: the search left the finite numbers.
            HyperParamsError: several edits, or settings that do not fit the model.
        """
        if len(edits) != 1:
            raise HyperParamsError(f"{self.name} makes one edit at a time, not {len(edits)}.")
        return self.edit_each(lm, edits, state)[0]

    def edit_each(
        self, lm: LM, edits: Sequence[Edit], state: ContextState | None = None
    ) -> list[Outcome[ContextState]]:
        """The patches of edits that are made alone; their values are searched in one batch."""
        if len({bool(edit.expansions) for edit in edits}) > 1:  # they take other prefixes
            return super().edit_each(lm, edits, state)
        lm = self.hyperparams.column(lm)
        settings = self.hyperparams.resolved(lm.n_layers)
        layer = int(settings.layers[0])
        watch = Stopwatch()
        for edit in edits:
            subject_rows(lm, edit, [""])  # fails before any work when there is no subject
        with watch("contexts"):
            sampled = state.contexts if state else settings.contexts(lm)
            contexts = settings.contexts_of(edits, sampled)
            rows = [subject_rows(lm, e, contexts) + expansion_rows(lm, e) for e in edits]
        with watch("moments"):
            self._metrics.prepare(lm, [layer], settings)
        with watch("values"):
            optimized = values_of(lm, Site(layer, "down"), edits, contexts, settings)
        with watch("moments"):
            metric = self._metrics.get(lm, layer, settings)
        parts: list[LowRank] = []
        with watch("solve"):
            weight = lm.down_map(layer).weight
            for edit, of_edit, delta in zip(edits, rows, optimized.delta, strict=True):
                keys = keys_at(lm, [layer], of_edit)[layer].T  # (d_in, rows), the bare one first
                others = contrast_rows(lm, edit.rows) + kept_rows(lm, [edit])
                contrast = keys_at(lm, [layer], others)[layer].T if others else None
                parts.append(solve_rank_one(keys, delta, weight, metric, settings, contrast))
        path, seconds = lm.down_map(layer).path, watch.seconds
        return [
            Outcome(weight_patch(lm, self.name, [edit], settings, {path: [part]}, seconds))
            for edit, part in zip(edits, parts, strict=True)
        ]


def solve_rank_one(
    keys: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    metric: KeyMetric,
    settings: ROMEHyperParams,
    contrast: torch.Tensor | None = None,
) -> LowRank:
    """The change that stores δ under the keys, as ``settings.key`` says.

    Args:
        keys: ``(d_in, contexts)`` float32, the bare prompt's first.
        delta: ``(d_out,)`` float32.
        weight: ``(d_in, d_out)``, the matrix being edited.
        metric: of the layer's keys, ``C⁻¹``.
        settings: ``key`` and ``key_slack``.
        contrast: ``(d_in, m)``, keys that the change shall leave alone; not with ``"paper"``, which
            is the published formula.
    """
    bare, mean = keys[:, :1], keys.mean(1, keepdim=True)
    residual = double(delta[None])  # v_star − W k for the key that v_star was made for
    drift = (double((bare - mean).T) @ double(weight)) + residual  # v_star − W k_mean
    if settings.key == "ridge":
        solved = keys if contrast is None else torch.cat([keys, contrast], 1)
        slack = torch.full((solved.shape[1],), settings.key_slack * float(_energy(bare, metric)))
        slack[0] = 0.0
        u = closed_form(solved, metric, slack)[:, : keys.shape[1]].sum(1, keepdim=True)
        v = residual
    elif settings.key == "paper":
        direction = metric.solve(mean)
        u = direction / (direction.T @ double(bare))
        v = residual
    else:
        joint = settings.key == "joint"
        stored = torch.cat([bare, mean], 1) if joint else mean
        v = torch.cat([residual, drift]) if joint else drift
        if contrast is None:
            u = closed_form(stored, metric, 0.0)
        else:
            n = stored.shape[1]
            slack = torch.full(
                (n + contrast.shape[1],), settings.key_slack * float(_energy(bare, metric))
            )
            slack[:n] = 0.0
            u = closed_form(torch.cat([stored, contrast], 1), metric, slack)[:, :n]
    return LowRank(u.float().contiguous(), v.float().contiguous())


def _energy(key: torch.Tensor, metric: KeyMetric) -> torch.Tensor:
    """``kᵀ C⁻¹ k``: the unit in which slack is measured, so that it does not depend on scale."""
    return (double(key).T @ metric.solve(key))[0, 0]
