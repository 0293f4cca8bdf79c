"""What taking a refusal direction out of a model does, beside a random direction and the hooks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from easyeditor.data.heldout import heldout_text
from easyeditor.edits import Prompt
from easyeditor.errors import DataError
from easyeditor.evaluate.generation_metrics import perplexity
from easyeditor.lm.inference import generate
from easyeditor.lm.model import LM
from easyeditor.patches.patch import Patch
from easyeditor.steering.ablating import Ablation, ablation_hooks, ablation_weights
from easyeditor.steering.refusal import (
    REFUSALS,
    RefusalDirection,
    all_applied,
    first_answers,
    refusal_markers,
    refusal_score,
)


@dataclass(frozen=True, slots=True)
class RefusalRow:
    """The model in one state.

    Attributes:
        name: of the state.
        harmful: the mean refusal score of harmful prompts.
        harmless: that of harmless ones.
        kl: KL(unedited ‖ this) of the first answer token of harmless prompts, nats.
        perplexity: on a page of prose about other things.
        text: what is written after the first harmful prompt.
    """

    name: str
    harmful: float
    harmless: float
    kl: float
    perplexity: float
    text: str = ""


@dataclass(frozen=True, slots=True)
class RefusalReport:
    """The rows, and how far the weights and the hooks are apart.

    Attributes:
        rows: unedited, ablated in the weights, a random direction ablated, the direction added.
        difference: the largest difference of log-probabilities between weights and hooks.
    """

    rows: tuple[RefusalRow, ...]
    difference: float

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        rows = [
            {
                k: None if isinstance(v, float) and math.isnan(v) else v
                for k, v in asdict(row).items()
            }
            for row in self.rows
        ]
        return {"rows": rows, "weights_and_hooks_differ_by": self.difference}


def refusal_report(
    lm: LM,
    direction: RefusalDirection,
    harmful: Sequence[str | Prompt],
    harmless: Sequence[str | Prompt],
    *,
    ablation: Ablation | None = None,
    refusals: Sequence[str] = REFUSALS,
    text: str | None = None,
    max_new_tokens: int = 16,
) -> RefusalReport:
    """Measure on prompts that the direction was neither made nor chosen with.

    Args:
        lm: the model; as before afterwards.
        direction: that is ablated, and added.
        harmful: prompts that it refuses.
        harmless: prompts that it answers.
        ablation: of the direction; by default it is computed.
        refusals: texts that refusals begin with.
        text: for the perplexity; by default the page of prose of the package.
        max_new_tokens: of the continuation.

    Raises:
        DataError: no prompts of a kind, no refusals, or a blank one.
    """
    if not harmful or not harmless:
        raise DataError(
            f"A report needs prompts of both kinds; given were {len(harmful)} harmful and "
            f"{len(harmless)} harmless ones."
        )
    prose = heldout_text() if text is None else text
    rows = [lm.text.row(prompt) for prompt in (*harmful, *harmless)]
    n = len(harmful)
    markers = refusal_markers(lm, harmful[0], refusals)
    base = first_answers(lm, rows)

    def measured(name: str, patches: Sequence[Patch]) -> RefusalRow:
        with all_applied(lm, patches):
            now = first_answers(lm, rows)
            kl = (base[n:].exp() * (base[n:] - now[n:])).sum(-1).mean()
            return RefusalRow(
                name,
                refusal_score(now[:n], markers),
                refusal_score(now[n:], markers),
                float(kl),
                perplexity(lm, prose),
                generate(lm, [harmful[0]], max_new_tokens)[0],
            )

    ablation = ablation or ablation_weights(lm, direction.vector, direction.settings)
    random = ablation_weights(lm, direction.random())
    with all_applied(lm, ablation.patches):
        in_weights = first_answers(lm, rows)
    with all_applied(lm, [ablation_hooks(lm, direction.vector)]):
        by_hooks = first_answers(lm, rows)
    return RefusalReport(
        (
            measured("unedited", ()),
            measured("direction ablated", ablation.patches),
            measured("random direction ablated", random.patches),
            measured("direction added", [direction.inducing(lm)]),
        ),
        float((in_weights - by_hooks).abs().max()),
    )
