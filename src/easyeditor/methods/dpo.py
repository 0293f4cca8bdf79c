"""DPO: a preference of the new answer over the old one, trained into low-rank changes.

The loss of an edit is ``α · CE(new) + (1 − α) · (−log σ(β · ((log π − log π₀)(new) − (log π −
log π₀)(old))))``: cross-entropy as a mean over target tokens, log-probabilities as sums, π₀ the
model before training (arXiv 2305.18290; EasyEdit's mixture with α = 0.99). The old answer is
:attr:`Edit.rejected` (``target_neg``), else what the model itself says greedily. An edit whose old
answer is the new one has the first term alone. The trap: at the published 7 steps of 5e-5 it is a
hundredth of LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from easyeditor.edits import Edit, Generate
from easyeditor.gradients.losses import target_nll
from easyeditor.gradients.minimize import Objective
from easyeditor.lm.forward.lower_block_cache import logits_above
from easyeditor.lm.inference import continue_all
from easyeditor.lm.model import LM
from easyeditor.lm.projection import NamedWeight
from easyeditor.lm.tokens import Row
from easyeditor.methods.tuning import PRESETS, LowRankHyperParams, LowRankMethod, target_rows

EXTRA_TOKENS = 4
"""Tokens that the model's own answer may be longer than the new one."""


class DPOHyperParams(LowRankHyperParams):
    """Settings of DPO, as EasyEdit publishes them."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        name: PRESETS[name] for name in ("llama-2-7b", "llama-3-8b", "smollm2-135m")
    }

    alg_name: str = "DPO"
    num_steps: int = Field(7, ge=1)
    lr: float = Field(5e-5, gt=0)
    alpha: float = Field(0.99, ge=0, le=1)
    """Share of the cross-entropy; the rest is the preference's."""
    beta: float = Field(0.1, gt=0)


class DPO(LowRankMethod):
    """Low-rank fine-tuning on pairs of a new and an old answer."""

    name = "DPO"
    title = "direct preference optimization of the new over the old answer, arXiv 2305.18290"
    hyperparams_class = DPOHyperParams

    hyperparams: DPOHyperParams

    def objective(self, lm: LM, edits: Sequence[Edit], weights: Sequence[NamedWeight]) -> Objective:
        """The loss of each edit; see the module."""
        settings = self.hyperparams
        new = target_rows(lm, edits, append_eos=settings.append_eos)
        old = rejected_rows(lm, edits, new)
        paths = [weight.path for weight in weights]
        logits = logits_above(lm, paths, [*new, *(row for row in old if row is not None)])

        def scored(batch: Sequence[int]) -> tuple[torch.Tensor, list[int], torch.Tensor]:
            """Mean NLL of the new answers, who has an old one, log-probabilities (2, with old)."""
            paired = [i for i in batch if old[i] is not None]
            rows = [new[i] for i in batch] + [row for i in paired if (row := old[i]) is not None]
            nll = target_nll(logits(rows), rows)
            lengths = torch.tensor([len(row.target) for row in rows], device=nll.device)
            sums = -nll * lengths
            chosen = [batch.index(i) for i in paired]
            return nll[: len(batch)], paired, torch.stack([sums[chosen], sums[len(batch) :]])

        with torch.no_grad():
            everything = [scored([i]) for i in range(len(edits))]
        before = {i: sums[:, 0] for _, paired, sums in everything for i in paired}

        def losses(batch: Sequence[int]) -> torch.Tensor:
            nll, paired, sums = scored(batch)
            if not paired:
                return nll
            reference = torch.stack([before[i] for i in paired], 1)
            gains = sums - reference
            preference = -nn.functional.logsigmoid(settings.beta * (gains[0] - gains[1]))
            index = torch.tensor([batch.index(i) for i in paired], device=nll.device)
            alone = torch.ones_like(nll).index_fill(0, index, settings.alpha)
            return (nll * alone).index_add(0, index, (1 - settings.alpha) * preference)

        return losses


def rejected_rows(lm: LM, edits: Sequence[Edit], new: Sequence[Row]) -> list[Row | None]:
    """Each edit's old answer as a row; None where it is the new one, or the model says nothing.

    Without :attr:`Edit.rejected` it is what the model writes greedily, up to the end of the line.
    """
    unsaid = [i for i, edit in enumerate(edits) if edit.rejected is None]
    queries = [Generate(edits[i].prompt, len(new[i].target) + EXTRA_TOKENS) for i in unsaid]
    texts = dict(zip(unsaid, (c.text for c in continue_all(lm, queries)), strict=True))
    rows: list[Row | None] = []
    for i, edit in enumerate(edits):
        answer = edit.rejected if edit.rejected is not None else texts[i].strip()
        answer = answer.partition("\n")[0].strip()
        same = answer.casefold().startswith(edit.target.strip().casefold())
        rows.append(None if same or not answer else lm.text.row(edit.prompt, answer))
    return rows
