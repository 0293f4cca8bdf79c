"""The loss of a training on prompts whose answers must stay: KL to the model before it.

What a model would answer itself is written behind each prompt (:func:`kept_rows`), and the
divergence is read at every token of that answer, so that a name of several tokens stays whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from easyeditor.edits import Edit, Generate, kept_prompts
from easyeditor.gradients.losses import kl_per_token, mean_per_row
from easyeditor.gradients.minimize import Objective
from easyeditor.lm.forward.lower_block_cache import logits_above
from easyeditor.lm.inference import generate
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Row

ANSWER_TOKENS = 4
"""So many tokens of an answer are kept; what follows continues from them."""


def kept_rows(lm: LM, edits: Sequence[Edit]) -> list[list[Row]]:
    """For each edit its kept prompts as token rows, the model's present answers behind them."""
    prompts = kept_prompts(edits)
    every = list(dict.fromkeys(prompt for some in prompts for prompt in some))
    answers = generate(lm, [Generate(prompt, ANSWER_TOKENS) for prompt in every])
    rows = {
        prompt: lm.text.row(prompt, answer)
        for prompt, answer in zip(every, answers, strict=True)
        if answer.strip()
    }
    return [[rows[prompt] for prompt in some if prompt in rows] for some in prompts]


def keeping(
    lm: LM, objective: Objective, edits: Sequence[Edit], paths: Sequence[str], weight: float
) -> Objective:
    """An objective with ``weight`` × KL(before ‖ now) at each edit's kept prompts, their mean.

    Call it inside ``lm.at_rest()``, before the training: what is there now is kept.

    Args:
        lm: the model.
        objective: one loss of each edit ``(edits,)``, or one of all ``(1,)``.
        edits: the edits.
        paths: the parameters that are trained.
        weight: beside an edit's own loss.
    """
    if not weight or not any(edit.keep for edit in edits):
        return objective
    rows = kept_rows(lm, edits)
    logits = logits_above(lm, paths, [row for some in rows for row in some])
    with torch.no_grad():
        before = [logits(some).float().log_softmax(-1) if some else None for some in rows]

    def drift(i: int) -> torch.Tensor:
        first = before[i]
        if first is None:
            return torch.zeros((), device=lm.device)
        now = logits(rows[i]).float().log_softmax(-1)
        return mean_per_row(kl_per_token(first, now), rows[i]).mean()

    def losses(batch: Sequence[int]) -> torch.Tensor:
        values = objective(batch)
        drifts = weight * torch.stack([drift(i) for i in batch]).to(values.device)
        return values + (drifts if len(values) == len(drifts) else drifts.mean()[None])

    return losses
