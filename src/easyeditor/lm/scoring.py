"""Scores of answers under teacher forcing, in few batched forward passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from easyeditor.edits import Prompt, Score
from easyeditor.errors import PromptTooLongError
from easyeditor.lm.forward.batching import (
    ScoredSequence,
    TokenScores,
    batches_by_length,
    scored_sequences,
)
from easyeditor.lm.forward.context import has_adapters
from easyeditor.lm.forward.prefix_cache import Prefix, batches_after_prefix, shared_prefix_groups
from easyeditor.lm.hooks import gathering
from easyeditor.lm.image_tokens import ImageToken
from easyeditor.lm.model import LM
from easyeditor.lm.routing import answer_via_routers
from easyeditor.lm.tokens import Row
from easyeditor.progress import bar

TOKEN_BUDGET = 2048
"""Padded tokens per forward pass in scoring."""
LOGIT_BUDGET = 8 * 2**20
"""Logits (numbers, not bytes) held at once."""


def score(
    lm: LM,
    queries: Sequence[Score | tuple[Prompt | str, str]],
    patch_of_query: Sequence[int] | None = None,
) -> list[TokenScores]:
    """Score each answer after its prompt under teacher forcing; few, length-sorted forwards.

    Equal queries are computed once, a causal model runs a prompt once for all its answers, and a
    long beginning of several prompts once for all of them. The model may be in training mode; it
    is read in evaluation mode. A pair ``(prompt, answer)`` is accepted for a :class:`Score`.

    Args:
        lm: the model.
        queries: what is asked.
        patch_of_query: for each query which of several changes it asks about, where the model
            carries several at once (:mod:`easyeditor.patches.batched`).

    Raises:
        PromptTooLongError: prompt and answer do not fit into the model's context.
    """
    scores = [query if isinstance(query, Score) else Score(*query) for query in queries]
    pairs = list(zip(scores, patch_of_query or [0] * len(scores), strict=True))
    unique = list(dict.fromkeys(pairs))
    patches = [patch for _, patch in unique] if patch_of_query is not None else None
    replies = answer_via_routers(
        lm,
        [query.prompt for query, _ in unique],
        lambda rows: _score(lm, [unique[i][0] for i in rows], pick(patches, rows)),
        lambda who, rows, prompts: _score(
            who,
            [Score(p, unique[i][0].answer) for i, p in zip(rows, prompts, strict=True)],
            pick(patches, rows) if who is lm else None,
        ),
    )
    by_query = dict(zip(unique, replies, strict=True))
    return [by_query[query] for query in pairs]


def check_length(lm: LM, rows: Sequence[Row]) -> None:
    """Refuse token sequences that the model's context cannot hold, before anything is run.

    Raises:
        PromptTooLongError: says which, how long it is and how long it may be.
    """
    limit = lm.context_length
    for row in rows:
        if limit is not None and len(row.ids) > limit:
            start = lm.tokenizer.decode(row.ids[:12], skip_special_tokens=True)
            images = sum(isinstance(token, ImageToken) for token in row.ids)
            seen = f", {images} of them of its images" if images else ""
            raise PromptTooLongError(
                f"The text that begins {start!r} has {len(row.ids)} tokens{seen}; {lm.name} reads "
                f"{limit} at most. Shorten it, or use a model with a longer context."
            )


def pick(patches: Sequence[int] | None, rows: Sequence[int]) -> list[int] | None:
    """The patches of some rows, where there are several."""
    return None if patches is None else [patches[i] for i in rows]


def _score(lm: LM, queries: Sequence[Score], patches: Sequence[int] | None) -> list[TokenScores]:
    """:func:`score` of one model, without routers, for queries that all differ."""
    rows = [lm.text.row(query.prompt, query.answer) for query in queries]
    check_length(lm, rows)
    if lm.encoder_decoder:  # the decoder's input differs from answer to answer
        plan = [
            ScoredSequence(row.ids, whole := tuple(range(len(row.target))), ((i, whole),))
            for i, row in enumerate(rows)
        ]
    else:
        plan = scored_sequences(rows, patches, by_prompt=has_adapters(lm.model))
    scores: dict[int, TokenScores] = {}
    shown = bar(len(plan), "scoring", "sequence")
    with lm.at_rest(), torch.inference_mode(), shown as progress:
        for logits, chunk in _logits(lm, plan, rows, patches):
            progress.update(len(chunk))
            scores.update(_scores(logits, [plan[k] for k in chunk], rows))
    return [scores[i] for i in range(len(rows))]


def _logits(
    lm: LM, plan: Sequence[ScoredSequence], rows: Sequence[Row], patches: Sequence[int] | None
) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """Logits at the positions of every sequence, with the numbers of the sequences, by batches."""
    patch_of = None if patches is None else [patches[s.rows[0][0]] for s in plan]
    ends = [rows[s.rows[0][0]].prompt_length - 1 for s in plan]
    alone = list(range(len(plan)))
    # An adapter decides once, by the whole prompt: its beginning alone cannot be run.
    if not lm.encoder_decoder and not has_adapters(lm.model):
        alone = []
        for length, members in shared_prefix_groups(plan, patch_of):
            prefix = None
            if length:
                first = pick(patch_of, members[:1])
                prefix = Prefix(lm, plan[members[0]].ids[:length], patch_of_row=first)
            if prefix is None or not prefix.usable:
                alone += members
                continue
            for chunk in batches_after_prefix(plan, members, length):
                with gathering(lm.head, *_read_at([plan[k] for k in chunk], length)):
                    logits = prefix.call(
                        [plan[k].ids[length:] for k in chunk], patch_of_row=pick(patch_of, chunk)
                    ).logits[0]
                yield logits.float(), chunk
    vocabulary = lm.model.config.get_text_config().vocab_size
    chunks = [
        [alone[group[i]] for i in part]
        for group in lm.alike([plan[k].ids for k in alone])
        for part in batches_by_length(
            [len(plan[alone[i]].ids) for i in group],
            [len(plan[alone[i]].positions) for i in group],
            TOKEN_BUDGET,
            LOGIT_BUDGET // vocabulary,
        )
    ]
    for chunk in chunks:
        patch_of_row = pick(patch_of, chunk)
        if lm.encoder_decoder:
            logits = lm.target_logits(
                [rows[plan[k].rows[0][0]] for k in chunk], patch_of_row=patch_of_row
            )
        else:
            with gathering(lm.head, *_read_at([plan[k] for k in chunk])):
                logits = lm.call(
                    lm.pad([plan[k].ids for k in chunk]),
                    prompt_end=[ends[k] for k in chunk],
                    patch_of_row=patch_of_row,
                ).logits[0]
        yield logits.float(), chunk


def _read_at(plan: Sequence[ScoredSequence], shared: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and position of every logit that is read, where ``shared`` tokens come before."""
    rows = [k for k, sequence in enumerate(plan) for _ in sequence.positions]
    positions = [position - shared for sequence in plan for position in sequence.positions]
    return torch.tensor(rows), torch.tensor(positions)


def _scores(
    logits: torch.Tensor, plan: Sequence[ScoredSequence], rows: Sequence[Row]
) -> Iterator[tuple[int, TokenScores]]:
    """The scores that a batch's logits hold, with the number of their row."""
    norm, best = logits.logsumexp(1), logits.argmax(1).tolist()
    at: list[int] = []
    start = 0
    for sequence in plan:
        at += [start + k for _, places in sequence.rows for k in places]
        start += len(sequence.positions)
    row_numbers = [i for sequence in plan for i, _ in sequence.rows]
    targets = [token for i in row_numbers for token in rows[i].target]
    place = torch.tensor(at, device=logits.device)
    picked = logits[place, torch.tensor(targets, device=logits.device)] - norm[place]
    values, done = picked.tolist(), 0
    for i in row_numbers:
        end = done + len(rows[i].target)
        argmax = tuple(best[k] for k in at[done:end])
        yield i, TokenScores(rows[i].target, tuple(values[done:end]), argmax)
        done = end
