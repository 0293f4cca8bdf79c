"""Searches of the locate-and-edit methods: what a sweep over layers tries, and a shared preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from pydantic import Field

ContextLengths = tuple[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=0)]], ...]
"""``(tokens, count)`` of the prefixes that are sampled."""


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """What a sweep over the layers of a model tries for a method (``easyedit layers``).

    Attributes:
        probe: the method that is swept; methods with one probe share its result.
        settings: what all its edits have beside layers and search.
        searches: settings of the value search, the first for models of usual size. The others have
            more reach: they are tried where edits do not take.
        contexts: the sampled prefixes of the settings that are the result.
        per_width: settings in units of ``d_in``: E[kᵀ C⁻¹ k] is ``d_in``, so that a regularization
            of as much means the same in every model (published: 15,000 for 16,384).
        width: layers that are edited together, as a share of the depth; 0 is one layer.
        together: whether the facts are edited in one batch.
    """

    probe: str
    settings: Mapping[str, Any]
    searches: tuple[Mapping[str, Any], ...]
    contexts: ContextLengths
    per_width: Mapping[str, float] = field(default_factory=dict)
    width: float = 0.0
    together: bool = False


ONE_LAYER: Final = SweepPlan(
    probe="ROME",
    settings={"v_weight_decay": 1e-3, "v_stop_nll": 0.1},
    searches=(
        {"v_lr": 0.5, "clamp_norm_factor": 4.0, "v_num_grad_steps": 25},
        {"v_lr": 0.2, "clamp_norm_factor": 10.0, "v_num_grad_steps": 100},
        {"v_lr": 2.0, "clamp_norm_factor": 1.5, "v_num_grad_steps": 100},
    ),
    contexts=((5, 3), (10, 3)),
)
"""One layer, each fact edited alone."""
LAYER_RANGE: Final = SweepPlan(
    probe="MEMIT",
    settings={"key": "ridge", "v_weight_decay": 1e-3, "v_stop_nll": 0.2},
    searches=(
        {"v_lr": 1.0, "clamp_norm_factor": 4.0, "v_num_grad_steps": 25},
        {"v_lr": 1.0, "clamp_norm_factor": 1.5, "v_num_grad_steps": 100},
        {"v_lr": 2.0, "clamp_norm_factor": 1.5, "v_num_grad_steps": 100},
    ),
    contexts=((10, 3),),
    per_width={"mom2_update_weight": 1.0},
    width=1 / 6,
    together=True,
)
"""A range of layers, all facts edited in one batch."""
SMOLLM2_SEARCH: Final[dict[str, Any]] = {
    "layers": [1, 2, 3, 4, 5],
    "key": "ridge",
    "v_lr": 1.0,
    "v_weight_decay": 1e-3,
    "v_stop_nll": 0.2,
    "clamp_norm_factor": 4,
    "context_template_length_params": [[10, 3]],
    "mom2_dataset": "self",
    "mom2_n_tokens": 6144,  # 4 × d_in: `easyedit demo` has to collect them in seconds
}
"""By what 100 CounterFact edits in one batch of MEMIT showed (docs/counterfact.md)."""
