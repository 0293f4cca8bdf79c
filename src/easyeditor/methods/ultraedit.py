"""UltraEdit: normalised gradient factors and one ridge (Gu et al., arXiv 2505.14679).

One forward and one backward pass give, per weight, the input ``h`` and the output's gradient ``g``
at the positions that predict the answer. Both are normalised with statistics that run over the
sequence of edits; each position then wants its output changed by ``v``, and a ridge finds the
change that does it for all of them::

    v = −η ‖ĥ‖² ĝ        Δᵀ = (HᵀH + λI)⁻¹ Hᵀ V = Hᵀ (HHᵀ + λI)⁻¹ V    (rows of H: the raw h)

No subject, no training, no search. The ``n × n`` form is solved: its size is the number of answer
tokens, and the patch has their rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field

from easyeditor.associative.solve import Cholesky, closed_form
from easyeditor.edits import Edit, check_consistent
from easyeditor.gradients.factors import answer_factors
from easyeditor.gradients.running_statistics import RunningStatistics
from easyeditor.gradients.sites import named_projections
from easyeditor.hyperparams import HyperParams, Layers
from easyeditor.lm.model import LM
from easyeditor.lm.projection import Projection
from easyeditor.methods.base import Method, Outcome
from easyeditor.methods.statistics_state import StatisticsState
from easyeditor.patches.weight import Part, smallest_part, weight_patch
from easyeditor.timing import Stopwatch


def _named(pattern: str, layers: range) -> list[str]:
    return [pattern.format(layer) for layer in layers]


class UltraEditHyperParams(HyperParams):
    """Settings of UltraEdit.

    ``inner_params`` names the weights (with or without ``.weight``); without it the
    down-projections of ``layers`` are edited. ``lr`` is η and ``ridge`` λ, both in the units of the
    model's activations: the published 1e-6 and 1 are for hidden widths of 4,096 and more.
    """

    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            "alg",
            "batch_size_once",
            "dropout",
            "editor_batch_size",
            "half",
            "max_length",
            "model_class",
            "no_grad_layers",
            "results_dir",
            "silent",
            "token",
            "tokenizer_class",
            "tokenizer_name",
        ]
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt-j-6B": {"inner_params": _named("transformer.h.{}.mlp.fc_out", range(18, 27))},
        "llama-3-8b": {
            "inner_params": [
                *_named("model.layers.{}.mlp.gate_proj", range(11, 16)),
                *_named("model.layers.{}.mlp.up_proj", range(18, 25)),
            ]
        },
        "mistral-7b": {"inner_params": _named("model.layers.{}.mlp.down_proj", range(29, 31))},
        "qwen2.5-7b": {
            "inner_params": [
                *_named("model.layers.{}.mlp.gate_proj", range(18, 27)),
                *_named("model.layers.{}.mlp.up_proj", range(18, 27)),
            ]
        },
        # By records 300 to 311 of CounterFact: 5e-5 learns a third, 2e-4 leaves neighbours a
        # quarter (docs/methods.md).
        "smollm2-135m": {
            "inner_params": [
                *_named("model.layers.{}.mlp.gate_proj", range(24, 30)),
                *_named("model.layers.{}.mlp.up_proj", range(24, 30)),
            ],
            "lr": 1e-4,
        },
    }

    alg_name: str = "UltraEdit"
    layers: Layers = (0.91, 0.94)
    inner_params: tuple[str, ...] = ()
    lr: float = Field(1e-6, gt=0)
    ridge: float = Field(1.0, gt=0)
    batch_size: int = Field(100, ge=1)


class UltraEdit(Method[StatisticsState]):
    """Any number of edits at once, in a fraction of a second each; needs no subject."""

    name = "UltraEdit"
    title = "normalised gradients and a ridge, for long sequences, arXiv 2505.14679"
    hyperparams_class = UltraEditHyperParams
    state_class = StatisticsState

    hyperparams: UltraEditHyperParams

    def initial_state(self, lm: LM) -> StatisticsState:
        """Statistics that have seen nothing but one vector of zeros.

        Raises:
            HyperParamsError: the weights that are named are not in this model.
        """
        sites = self._sites(lm)
        return StatisticsState.of(
            {site.path: RunningStatistics.start(site.d_in + site.d_out) for site in sites}
        )

    def edit(
        self, lm: LM, edits: Sequence[Edit], state: StatisticsState | None = None
    ) -> Outcome[StatisticsState]:
        """The low-rank patch for all ``edits``, and the statistics that have seen them.

        Raises:
            ContradictingEditsError: one prompt, two targets.
            HyperParamsError: the weights that are named are not in this model.
            DivergedError: a number of the change is not finite.
        """
        check_consistent(edits)
        settings = self.hyperparams.resolved(lm.n_layers)
        state = state or self.initial_state(lm)
        watch = Stopwatch()
        sites = self._sites(lm)
        rows = [lm.text.row(edit.prompt, edit.target) for edit in edits]
        with watch("gradient"):
            factors = answer_factors(lm, sites, rows)
        entries: dict[str, list[Part]] = {}
        statistics: dict[str, RunningStatistics] = {}
        with watch("solve"):
            for site in sites:
                h, g = factors[site.path]
                pairs = torch.cat([h, g], 1)
                seen = statistics[site.path] = state.statistics(site.path).updated(pairs)
                normalized = seen.normalized(pairs, (site.d_in, site.d_out))
                h_hat, g_hat = normalized[:, : site.d_in], normalized[:, site.d_in :]
                wanted = -settings.lr * (h_hat**2).sum(1, keepdim=True) * g_hat
                u = closed_form(h.T, Cholesky.identity(), settings.ridge)
                entries[site.path] = [smallest_part(u, wanted)]
        patch = weight_patch(lm, self.name, edits, settings, entries, watch.seconds)
        return Outcome(patch, StatisticsState.of(statistics))

    def _sites(self, lm: LM) -> list[Projection]:
        settings = self.hyperparams
        if settings.inner_params:
            return named_projections(lm, settings.inner_params)
        layers = settings.resolved(lm.n_layers).layers
        return [site for layer in layers for site in lm.projections(int(layer))]
