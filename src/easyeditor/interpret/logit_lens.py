"""The logit lens: what the output head would say of each block's output.

The model's own final norm, head, soft-caps and scales are used, by a pass whose blocks are stubs
that hand on the states looked at; so the last layer gives the model's own logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from easyeditor.display import data_frame, heat_map_html
from easyeditor.edits import Prompt
from easyeditor.errors import TraceError
from easyeditor.lm.forward.stubs import stubbed
from easyeditor.lm.hooks import gathering, hidden_of, reading_outputs, with_hidden
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Batch

LOGIT_BUDGET = 8 * 2**20
"""Logits (numbers, not bytes) held at once."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LogitLens:
    """Probabilities and ranks of some answers after every block and token.

    Attributes:
        prompt: the text.
        tokens: decoded one by one; of an encoder-decoder the decoder's.
        answers: what was looked for; each stands for its first token.
        probabilities: ``(answers, tokens, layers)``.
        ranks: the same shape, from 1.
        top: ``[token][layer]``, the likeliest token, decoded.
    """

    prompt: str
    tokens: tuple[str, ...]
    answers: tuple[str, ...]
    probabilities: torch.Tensor
    ranks: torch.Tensor
    top: tuple[tuple[str, ...], ...]

    def __repr__(self) -> str:
        last = ", ".join(
            f"{answer.strip()!r} {float(p[-1, -1]):.3f}"
            for answer, p in zip(self.answers, self.probabilities, strict=True)
        )
        return f"<LogitLens of {self.prompt!r}: {last} after the last block>"

    def _repr_html_(self) -> str:
        maps = (
            heat_map_html(
                f"p({answer.strip()}) by token and layer",
                [token.strip() for token in self.tokens],
                numbers.tolist(),
                low=0.0,
                high=1.0,
                texts=self.top,
            )
            for answer, numbers in zip(self.answers, self.probabilities, strict=True)
        )
        return "".join(maps)

    def to_frame(self) -> Any:
        """One row per answer, token and layer as a pandas ``DataFrame``.

        Columns: answer, position, token, layer, probability, rank, and the likeliest token.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return data_frame(
            [
                {
                    "answer": answer,
                    "position": i,
                    "token": token,
                    "layer": layer,
                    "probability": float(numbers[i, layer]),
                    "rank": int(ranks[i, layer]),
                    "top": self.top[i][layer],
                }
                for answer, numbers, ranks in zip(
                    self.answers, self.probabilities, self.ranks, strict=True
                )
                for i, token in enumerate(self.tokens)
                for layer in range(numbers.shape[1])
            ]
        )

    def as_dict(self) -> dict[str, object]:
        """Everything as JSON values."""
        return {
            "prompt": self.prompt,
            "tokens": list(self.tokens),
            "answers": list(self.answers),
            "probabilities": self.probabilities.tolist(),
            "ranks": self.ranks.tolist(),
            "top": [list(row) for row in self.top],
        }


@torch.no_grad()
def logit_lens(lm: LM, prompt: Prompt | str, answers: Sequence[str]) -> LogitLens:
    """Look at one prompt; of an encoder-decoder at its decoder's first position.

    Args:
        lm: the model; its weights are only read.
        prompt: ends where the answer begins.
        answers: such as the old and the new one; joined to the prompt as a writer would.

    Raises:
        TraceError: no answer is given.
    """
    if not answers:
        raise TraceError("A logit lens needs an answer to look for, such as the new target.")
    targets = [lm.text.row(prompt, answer).target[0] for answer in answers]
    ids = lm.text.row(prompt).ids
    n_tokens = 1 if lm.encoder_decoder else len(ids)
    batch = lm.pad([ids])
    shown = (
        (lm.tokenizer.decode(lm.decoder_inputs([()])[0]),)
        if lm.encoder_decoder
        else tuple(lm.tokenizer.decode([i]) for i in ids)
    )
    columns: list[torch.Tensor] = []  # of (answers, 2, tokens) per layer
    top: list[list[str]] = [[] for _ in shown]
    with lm.at_rest():
        with reading_outputs(list(lm.blocks)) as outputs:
            lm.call(batch)
        hidden = [hidden_of(output) for output in outputs]
        width = lm.model.config.get_text_config().vocab_size
        size = max(1, LOGIT_BUDGET // (width * n_tokens))
        for start in range(0, lm.n_layers, size):
            layers = range(start, min(start + size, lm.n_layers))
            states = torch.stack([hidden[i].reshape(n_tokens, -1) for i in layers])
            stored = with_hidden(outputs[-1], states)
            for logits in _logits(lm, batch, stored, len(layers), n_tokens).float():
                columns.append(_scores(logits, targets))
                for row, token in zip(top, logits.argmax(-1).tolist(), strict=True):
                    row.append(lm.tokenizer.decode([token]))
    stacked = torch.stack(columns, -1)
    return LogitLens(
        str(prompt),
        shown,
        tuple(answers),
        stacked[:, 0],
        stacked[:, 1].long(),
        tuple(map(tuple, top)),
    )


def _logits(lm: LM, batch: Batch, stored: object, n: int, n_tokens: int) -> torch.Tensor:
    """``(n, tokens, vocabulary)`` of n copies of the prompt whose blocks all hand on ``stored``."""
    copies = batch.rows(torch.zeros(n, dtype=torch.long))
    rows = torch.arange(n).repeat_interleave(n_tokens)
    positions = torch.arange(n_tokens).repeat(n)
    with stubbed(lm.blocks, lm.n_layers, stored), gathering(lm.head, rows, positions):
        logits: torch.Tensor = lm.call(copies).logits[0]
    return logits.view(n, n_tokens, -1)


def _scores(logits: torch.Tensor, targets: Sequence[int]) -> torch.Tensor:
    """``(answers, 2, tokens)``: probability and rank of each target."""
    probabilities = logits.softmax(-1)
    rows = []
    for target in targets:
        rank = (logits > logits[:, target, None]).sum(-1) + 1
        rows.append(torch.stack([probabilities[:, target], rank.float()]))
    return torch.stack(rows).cpu()
