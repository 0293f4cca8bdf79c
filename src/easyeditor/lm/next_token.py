"""How probable every token is after a prompt, and how far two such distributions differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from easyeditor.edits import Prompt
from easyeditor.lm.forward.batching import batches_by_length
from easyeditor.lm.model import LM
from easyeditor.lm.routing import answer_via_routers
from easyeditor.lm.scoring import LOGIT_BUDGET, TOKEN_BUDGET, check_length
from easyeditor.lm.tokens import Row

TOP = 512
"""Tokens that are compared one by one; the others count as one."""


@dataclass(frozen=True, eq=False, slots=True)
class Distribution:
    """Log-probabilities of tokens, of all or of the most probable ones.

    Attributes:
        ids: the tokens, ``(n,)``; None: all, in the order of the vocabulary.
        logprobs: float32 on the CPU, ``(n,)``, in nats.
    """

    ids: torch.Tensor | None
    logprobs: torch.Tensor

    def top(self) -> Distribution:
        """The :data:`TOP` most probable tokens."""
        if self.ids is not None:
            return self
        best = self.logprobs.topk(min(TOP, len(self.logprobs)))
        return Distribution(best.indices, best.values)

    def to_json(self) -> tuple[list[int], list[float]]:
        """Tokens and log-probabilities; :meth:`from_json` gives the same bits back."""
        ids = torch.arange(len(self.logprobs)) if self.ids is None else self.ids
        return ids.tolist(), self.logprobs.tolist()

    @classmethod
    def from_json(cls, ids: Sequence[int], logprobs: Sequence[float]) -> Distribution:
        """See :meth:`to_json`."""
        return cls(torch.tensor(ids, dtype=torch.long), torch.tensor(logprobs))


def kl_divergence(before: Distribution, after: Distribution) -> float:
    """KL(before ‖ after) in nats, over the top tokens of ``before`` and all others as one.

    Putting tokens together never makes the divergence larger, so this is a lower bound of the one
    over the whole vocabulary. NaN for a wrecked model.

    Args:
        before: of the unedited model.
        after: of all tokens.
    """
    assert after.ids is None, "the edited model's distribution must hold every token"
    top = before.top()
    log_p, log_q = top.logprobs.double(), after.logprobs[top.ids].double()
    total = (log_p.exp() * (log_p - log_q)).sum()
    tiny = torch.finfo(torch.float32).tiny
    p, q = (1 - logs.exp().sum() for logs in (log_p, log_q))
    if p > 0 and len(log_p) < len(after.logprobs):
        total = total + p * (p.log() - q.clamp_min(tiny).log())
    divergence = float(total)
    return divergence if math.isnan(divergence) else max(0.0, divergence)


def next_token(
    lm: LM,
    prompts: Sequence[Prompt],
    patch_of_query: Sequence[int] | None = None,
    written: Sequence[str] | None = None,
) -> list[Distribution]:
    """The distribution of the first token after each prompt, over the whole vocabulary.

    Args:
        lm: the model.
        prompts: what is asked.
        patch_of_query: as in :func:`~easyeditor.lm.scoring.score`.
        written: for each prompt the beginning of the answer, behind which the token comes; None:
            directly behind the prompts.

    Raises:
        PromptTooLongError: a prompt does not fit into the model's context.
    """

    def of(who: LM, texts: Sequence[Prompt], rows: Sequence[int]) -> list[Distribution]:
        patches = None
        if patch_of_query is not None and who is lm:
            patches = [patch_of_query[i] for i in rows]
        begun = [written[i] for i in rows] if written is not None else [""] * len(texts)
        return _of_one_model(who, texts, begun, patches)

    return answer_via_routers(
        lm,
        prompts,
        lambda rows: of(lm, [prompts[i] for i in rows], rows),
        lambda who, rows, texts: of(who, texts, rows),
    )


def _of_one_model(
    lm: LM, prompts: Sequence[Prompt], written: Sequence[str], patches: Sequence[int] | None
) -> list[Distribution]:
    """:func:`next_token` of one model, without routers."""
    begun = [lm.text.row(prompt, text) for prompt, text in zip(prompts, written, strict=True)]
    check_length(lm, begun)
    starts = [row.ids for row in begun]
    # The last token of a row is not run; which one it is does not matter.
    nothing = (lm.text.pad_id,)
    rows = [
        Row(row.ids if lm.encoder_decoder else row.ids + nothing, row.target + nothing)
        for row in begun
    ]
    replies: dict[int, Distribution] = {}
    reads = LOGIT_BUDGET // lm.model.config.get_text_config().vocab_size
    chunks = [
        [group[i] for i in part]
        for group in lm.alike(starts)  # with and without images
        for part in batches_by_length(
            [len(starts[i]) for i in group],
            [len(rows[i].target) for i in group],
            TOKEN_BUDGET,
            max(1, reads),
        )
    ]
    with lm.at_rest(), torch.inference_mode():
        for chunk in chunks:
            of_row = None if patches is None else [patches[i] for i in chunk]
            logits = lm.target_logits([rows[i] for i in chunk], patch_of_row=of_row)
            ends = torch.tensor([len(rows[i].target) for i in chunk]).cumsum(0) - 1
            logits = logits[ends.to(logits.device)]
            logprobs = logits.float().log_softmax(-1).cpu()
            replies.update(
                {i: Distribution(None, row.clone()) for i, row in zip(chunk, logprobs, strict=True)}
            )
    return [replies[i] for i in range(len(prompts))]
