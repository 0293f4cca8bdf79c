"""MEMIT: mass-editing memory in a transformer (Meng et al., arXiv 2210.07229).

For every edit a hidden state ``z`` at the last layer of a range is searched (block output at the
subject's last token + δ); the range's down-projections then carry the residual ``z − current``
upwards, each layer its share, in closed form for all edits at once::

    Δ = R Kᵀ (λC + KKᵀ)⁻¹ = R (λI + Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹

λ (``mom2_update_weight``) multiplies the *mean* second moment. Every ``C`` comes from the unedited
model, and is factored once for any number of batches.

With ``protect_edits`` the keys of the edits that the model carries already join ``K`` with a
residual of zero: a later batch leaves them their answers. That is ``C`` updated by their keys
(arXiv 2410.02355 has it as ``K₁K₁ᵀ``), and only the small ``n × n`` system grows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from easyeditor.associative.contrast import contrast_rows, read_after_subject
from easyeditor.associative.keys import keys_at, subject_rows, values_at, write_scale
from easyeditor.associative.protected_keys import (
    keys_as_extras,
    protected_keys,
    without_stored_keys,
)
from easyeditor.associative.solve import KeyMetric, closed_form, key_energy
from easyeditor.edits import Edit, check_consistent
from easyeditor.hyperparams import Layers
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.memory import give_back
from easyeditor.lm.model import LM
from easyeditor.methods.base import Method, Need, Outcome
from easyeditor.methods.locate import (
    ContextLengths,
    ContextState,
    Factors,
    LocateHyperParams,
    values_of,
)
from easyeditor.patches.stack import applied
from easyeditor.patches.weight import Dense, LowRank, Part, weight_patch
from easyeditor.timing import Stopwatch

log = logging.getLogger(__name__)


class MEMITHyperParams(LocateHyperParams):
    """Settings of MEMIT; defaults as published for GPT-J, layers relative to the depth.

    ``key`` says what an edit's answer is stored under: ``"averaged"``, as published, one key (the
    bare prompt's and the mean of the contexts' count alike), or ``"ridge"``, every context's own,
    each with the slack λ: rephrases follow more often, for a system contexts times as large.
    ``protect_edits`` (not in the paper) leaves the outputs for earlier edits' keys unchanged. Each
    edit stores its keys in its patch (keys × d_in numbers per layer), and later edits read those of
    the patches that the model carries: an edit that is undone is no longer protected, and one whose
    subject is edited anew is replaced. Only edits of patches that store no keys are run again.
    """

    ignored: ClassVar[frozenset[str]] = LocateHyperParams.ignored | {"layer_selection"}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt2-xl": {
            "layers": [13, 14, 15, 16, 17],
            "v_num_grad_steps": 20,
            "mom2_update_weight": 20000,
        },
        "gpt-j-6B": {"layers": [3, 4, 5, 6, 7, 8]},
        "gpt-neo-2.7B": {"layers": [3, 4, 5, 6, 7, 8]},
        "llama-7b": {"layers": [4, 5, 6, 7, 8], "v_weight_decay": 1e-3, "clamp_norm_factor": 4},
        "llama-2-7b": {"layers": [4, 5, 6, 7, 8], "v_weight_decay": 1e-3, "clamp_norm_factor": 4},
        # None was published. In an encoder an averaged key may miss the bare one by a tenth.
        "t5-3b": {"layers": [5, 6, 7, 8, 9], "key": "ridge", "mom2_dataset": "wikipedia"},
        # By what 100 CounterFact edits in one batch showed (docs/counterfact.md).
        "smollm2-135m": {
            "layers": [1, 2, 3, 4, 5],
            "key": "ridge",
            "v_lr": 1.0,
            "v_weight_decay": 1e-3,
            "v_stop_nll": 0.2,
            "clamp_norm_factor": 4,
            "context_template_length_params": [[10, 3]],
            "mom2_update_weight": 2000,
            "mom2_n_tokens": 6144,  # 4 × d_in: `easyedit demo` has to collect them in seconds
        },
    }

    alg_name: str = "MEMIT"
    layers: Layers = (0.11, 0.14, 0.18, 0.21, 0.25, 0.29)
    v_num_grad_steps: int = Field(25, ge=1)
    clamp_norm_factor: float = Field(0.75, gt=0)
    context_template_length_params: ContextLengths = ((10, 5),)
    mom2_update_weight: float = Field(15000, ge=0)
    batch_size: int = Field(100, ge=1)
    key: Literal["averaged", "ridge"] = "averaged"
    protect_edits: bool = False


class MEMIT(Method[ContextState]):
    """Any number of facts in one batch, spread over several layers. Needs the subjects."""

    name = "MEMIT"
    title = "mass-editing memory in a transformer, arXiv 2210.07229"
    hyperparams_class = MEMITHyperParams
    state_class = ContextState
    needs = frozenset({Need.SUBJECT})

    hyperparams: MEMITHyperParams

    def __init__(self, hyperparams: MEMITHyperParams) -> None:
        super().__init__(hyperparams)
        self._factors = Factors()

    @property
    def batch_size(self) -> int:
        """``hyperparams.batch_size``."""
        return self.hyperparams.batch_size

    def initial_state(self, lm: LM) -> ContextState:
        """Sample the contexts, and make sure that the moments are in their cache."""
        lm = self.hyperparams.column(lm)
        settings = self.hyperparams.resolved(lm.n_layers)
        _, layers, _ = _where(lm, [int(layer) for layer in settings.layers])
        self._factors.prepare(lm, layers, settings)
        return ContextState(settings.contexts(lm))

    def edit(
        self, lm: LM, edits: Sequence[Edit], state: ContextState | None = None
    ) -> Outcome[ContextState]:
        """The patch for all ``edits``: one low-rank change per layer, of rank ``len(edits)``.

        Raises:
            SubjectRequiredError: an edit names no subject.
            ContradictingEditsError: one prompt, two targets.
            DivergedError: the search left the finite numbers.
            HyperParamsError: settings that do not fit the model.
        """
        lm = self.hyperparams.column(lm)
        check_consistent(edits)
        bare = [subject_rows(lm, edit, [""])[0] for edit in edits]
        settings = self.hyperparams.resolved(lm.n_layers)
        layers = [int(layer) for layer in settings.layers]
        site, layers, scale = _where(lm, layers)
        settings = settings.replace(layers=layers)
        watch = Stopwatch()
        with watch("contexts"):
            contexts = state.contexts if state else settings.contexts(lm)
            rows = [row for edit in edits for row in subject_rows(lm, edit, contexts)]
            opening = [i for i, edit in enumerate(edits) if read_after_subject(lm, edit)]
            contrast = contrast_rows(lm, edits) if opening else []
        with watch("moments"):
            self._factors.prepare(lm, layers, settings)
        with watch("values"):
            optimized = values_of(lm, site, edits, contexts, settings)
        entries: dict[str, list[Part]] = {}
        stored: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        z = optimized.origin + optimized.delta
        with ExitStack() as lower_layers:
            for i, layer in enumerate(layers):
                projection = lm.down_map(layer)
                with watch("solve"):
                    keys = keys_at(lm, [layer], rows)[layer].view(len(edits), len(contexts), -1)
                    earlier = []
                    if settings.protect_edits:
                        earlier = _earlier_keys(lm, layer, edits, contexts, settings.key)
                    residual = (z - values_at(lm, site, bare)) / ((len(layers) - i) * scale)
                with watch("moments"):
                    metric = self._factors.get(lm, layer, settings)
                with watch("solve"):
                    others = keys_at(lm, [layer], contrast)[layer] if contrast else None
                    u, solved, owner = _directions(keys, opening, others, earlier, metric, settings)
                    if settings.protect_edits:
                        stored[projection.path] = (solved, owner)
                    del metric  # large, and the next layer has another
                    part = _smallest(u, residual)
                    entries[projection.path] = [part]
                    if layer != layers[-1]:  # what the next one is solved from is read above it
                        step = weight_patch(
                            lm, self.name, (), settings, {projection.path: [part]}, {}
                        )
                        lower_layers.enter_context(applied(lm.model, step))
                    give_back()
        extras = keys_as_extras(edits, stored)
        return Outcome(weight_patch(lm, self.name, edits, settings, entries, watch.seconds, extras))


def _earlier_keys(
    lm: LM, layer: int, new: Sequence[Edit], contexts: Sequence[str], kind: str
) -> list[torch.Tensor]:
    """Keys of the edits that the model carries, each ``(n, d_in)``: stored ones, then read ones."""
    path = lm.down_map(layer).path
    result = []
    stored = protected_keys(lm.model, path, new)
    if stored is not None:
        result.append(stored)
    others = without_stored_keys(lm.model, path, new)
    if others:
        rows = [row for edit in others for row in subject_rows(lm, edit, contexts)]
        keys = keys_at(lm, [layer], rows)[layer].view(len(others), len(contexts), -1)
        result.append(_averaged(keys, kind).flatten(0, 1))
    return result


def _averaged(keys: torch.Tensor, kind: str) -> torch.Tensor:
    """The keys ``(edits, keys, d_in)`` that an edit is stored under, of those of its contexts."""
    if kind == "averaged" and keys.shape[1] > 1:
        return (keys[:, :1] + keys[:, 1:].mean(1, keepdim=True)) / 2
    return keys


def _where(lm: LM, layers: list[int]) -> tuple[Site, list[int], float]:
    """Where z is searched, the layers that write it, and how much of a write arrives.

    A model that normalises what its MLPs write cannot be given a vector at a block's output; there
    z is searched at the last down-projection itself, which alone carries it.
    """
    scale = write_scale(lm, layers[-1])
    if scale is not None:
        return Site(layers[-1], "block"), layers, scale
    log.info(
        "%s normalises what its MLPs write; only layer %d is edited.",
        type(lm.model).__name__,
        layers[-1],
    )
    return Site(layers[-1], "down"), layers[-1:], 1.0


def _directions(
    keys: torch.Tensor,
    opening: Sequence[int],
    contrast: torch.Tensor | None,
    earlier: Sequence[torch.Tensor],
    metric: KeyMetric,
    settings: MEMITHyperParams,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The columns of the closed form, summed over each edit's keys: ``(d_in, edits)``, float64.

    With them the keys ``(n, d_in)`` that were solved for, and the edit each belongs to ``(n,)``.

    The key after an opening subject is a common word's: it has little energy ``kᵀ C⁻¹ k``, and λ
    would hold most of its residual back. Its slack, and that of the contrast keys, is λ in
    proportion to its energy beside that of the edit's other keys.

    Args:
        keys: ``(edits, contexts, d_in)``, the bare prompt's first.
        opening: the edits whose subject is the first token of the bare prompt.
        contrast: ``(m, d_in)``, keys with a residual of zero.
        earlier: keys of earlier edits, each ``(m, d_in)``, with a residual of zero, too.
        metric: of the layer's keys, ``C⁻¹``.
        settings: ``key`` and ``mom2_update_weight``.
    """
    weight, each = settings.mom2_update_weight, _averaged(keys, settings.key)
    owner = torch.arange(len(keys), device=keys.device).repeat_interleave(each.shape[1])
    if not opening:
        solved = each.flatten(0, 1)
        system = torch.cat([solved, *(k.to(solved) for k in earlier)])
        u = closed_form(system.T, metric, weight)[:, : len(solved)]
        return u.reshape(len(u), len(keys), -1).sum(2), solved, owner
    at = torch.tensor(opening, device=keys.device)
    bare, rest = keys[at, 0], keys[at, 1:]
    solved, bare_at = each.flatten(0, 1), at * each.shape[1]
    if each is not keys:  # a mean of two places would stand for neither
        each[at] = rest.mean(1, keepdim=True)
        bare_at = torch.arange(len(at), device=keys.device) + len(owner)
        solved, owner = torch.cat([each.flatten(0, 1), bare]), torch.cat([owner, at])
    slack = torch.full((len(solved),), weight, dtype=torch.float64, device=keys.device)
    share = torch.ones(len(at), dtype=torch.float64, device=keys.device)
    if rest.shape[1]:
        elsewhere = key_energy(rest.flatten(0, 1), metric).view(len(at), -1).mean(1)
        share = (key_energy(bare, metric) / elsewhere).clamp(max=1).to(share)
    slack[bare_at] *= share
    system = torch.cat([solved, *(k.to(solved) for k in earlier)])
    slack = torch.cat([slack, slack.new_full((len(system) - len(solved),), weight)])
    if contrast is not None:
        system = torch.cat([system, contrast])
        slack = torch.cat([slack, (weight * share.mean()).expand(len(contrast))])
    u = closed_form(system.T, metric, slack)[:, : len(owner)]
    return u.new_zeros(len(u), len(keys)).index_add_(1, owner.to(u.device), u), solved, owner


def _smallest(u: torch.Tensor, v: torch.Tensor) -> Part:
    """Low-rank while that takes fewer numbers than the whole matrix."""
    low = LowRank(u.float().contiguous(), v.float().contiguous())
    rank, (d_in, d_out) = u.shape[1], low.shape
    return low if rank * (d_in + d_out) < d_in * d_out else Dense((u @ v.to(u)).float())
