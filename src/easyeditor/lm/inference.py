"""Answers queries: scores under teacher forcing, and free text, in few batched forward passes.

:func:`score` and :func:`generate` ask through the routers that the model carries
(:mod:`easyeditor.lm.routing`); everything below them runs one model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from easyeditor.edits import Generate, Prompt, Score, as_prompt
from easyeditor.errors import PromptTooLongError
from easyeditor.lm.forward.batching import (
    ScoredSequence,
    TokenScores,
    batches_by_length,
    scored_sequences,
)
from easyeditor.lm.forward.context import generation_context, has_adapters
from easyeditor.lm.forward.prefix_cache import Prefix, batches_after_prefix, shared_prefix_groups
from easyeditor.lm.hooks import gathering
from easyeditor.lm.image_tokens import ImageToken
from easyeditor.lm.model import LM
from easyeditor.lm.routing import answer_via_routers
from easyeditor.lm.sampling import GENERATION_BUDGET, continuations, entropies_of, rows_by_room
from easyeditor.lm.sampling import Continuation as Continuation
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
        lambda rows: _score(lm, [unique[i][0] for i in rows], _pick(patches, rows)),
        lambda who, rows, prompts: _score(
            who,
            [Score(p, unique[i][0].answer) for i, p in zip(rows, prompts, strict=True)],
            _pick(patches, rows) if who is lm else None,
        ),
    )
    by_query = dict(zip(unique, replies, strict=True))
    return [by_query[query] for query in pairs]


def generate(
    lm: LM,
    queries: Sequence[Generate | Prompt | str],
    max_new_tokens: int = 20,
    patch_of_query: Sequence[int] | None = None,
    **options: Any,
) -> list[str]:
    """What the model writes after each prompt (without the prompt).

    Greedy queries go to the model's own ``generate``, equal ones once, in left-padded batches.
    Those with a seed are sampled from the five most probable tokens, each from a stream of its
    own, so that a continuation does not depend on the batch.

    Args:
        lm: the model.
        queries: what is asked; a prompt stands for a greedy query of ``max_new_tokens``.
        max_new_tokens: for those; fewer where the context ends.
        patch_of_query: as in :func:`score`.
        **options: of the model's ``generate``, for greedy queries.

    Raises:
        PromptTooLongError: a prompt does not fit into the model's context.
    """
    return [c.text for c in continue_all(lm, queries, max_new_tokens, patch_of_query, **options)]


def continue_all(
    lm: LM,
    queries: Sequence[Generate | Prompt | str],
    max_new_tokens: int = 20,
    patch_of_query: Sequence[int] | None = None,
    *,
    entropies: bool = False,
    **options: Any,
) -> list[Continuation]:
    """:func:`generate` with the tokens, and if asked with their entropies."""
    pairs = [
        (q if isinstance(q, Generate) else Generate(as_prompt(q), max_new_tokens), patch)
        for q, patch in zip(queries, patch_of_query or [0] * len(queries), strict=True)
    ]
    # What the caller samples with options of its own differs from call to call, also where it is
    # asked twice.
    unique = pairs if options.get("do_sample") else list(dict.fromkeys(pairs))
    kinds: dict[tuple[int, int | None], list[int]] = defaultdict(list)
    for i, (query, _) in enumerate(unique):
        kinds[query.max_new_tokens, query.seed].append(i)
    replies: dict[int, Continuation] = {}
    for (tokens, seed), members in kinds.items():
        prompts = [unique[i][0].prompt for i in members]
        patches = None if patch_of_query is None else [unique[i][1] for i in members]

        settings = _Generation(tokens, seed, entropies, options)
        replies.update(zip(members, _via_routers(lm, prompts, patches, settings), strict=True))
    if unique is pairs:
        return [replies[i] for i in range(len(pairs))]
    place = {question: i for i, question in enumerate(unique)}
    return [replies[place[question]] for question in pairs]


@dataclass(frozen=True, slots=True)
class _Generation:
    """How prompts are continued: length, seed of the sampling, what is returned, options."""

    max_new_tokens: int
    seed: int | None
    entropies: bool
    options: Mapping[str, Any]


def _via_routers(
    lm: LM, prompts: Sequence[Prompt], patches: Sequence[int] | None, settings: _Generation
) -> list[Continuation]:
    def ask(who: LM, texts: Sequence[Prompt], of: Sequence[int] | None) -> list[Continuation]:
        check_length(who, [who.text.row(text) for text in texts])
        if settings.seed is None or who.encoder_decoder:
            return _generate(who, texts, of, settings)
        with_entropies = settings.entropies
        return continuations(
            who, texts, settings.max_new_tokens, of, seed=settings.seed, entropies=with_entropies
        )

    return answer_via_routers(
        lm,
        prompts,
        lambda rows: ask(lm, [prompts[i] for i in rows], _pick(patches, rows)),
        lambda who, rows, texts: ask(who, texts, _pick(patches, rows) if who is lm else None),
    )


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


def _pick(patches: Sequence[int] | None, rows: Sequence[int]) -> list[int] | None:
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
                first = _pick(patch_of, members[:1])
                prefix = Prefix(lm, plan[members[0]].ids[:length], patch_of_row=first)
            if prefix is None or not prefix.usable:
                alone += members
                continue
            for chunk in batches_after_prefix(plan, members, length):
                with gathering(lm.head, *_read_at([plan[k] for k in chunk], length)):
                    logits = prefix.call(
                        [plan[k].ids[length:] for k in chunk], patch_of_row=_pick(patch_of, chunk)
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
        patch_of_row = _pick(patch_of, chunk)
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


def _generate(
    lm: LM,
    prompts: Sequence[Prompt],
    patches: Sequence[int] | None,
    how: _Generation,
) -> list[Continuation]:
    """Greedy continuations by the model's own ``generate``, without routers."""
    ids = [lm.text.row(prompt).ids for prompt in prompts]
    replies: dict[int, Continuation] = {}
    # Rows of one length together, so that a row near the end of the context shortens no other.
    for n_tokens, members in rows_by_room(lm, ids, how.max_new_tokens):
        written = _generate_rows(
            lm, [ids[i] for i in members], _pick(patches, members), how, n_tokens
        )
        replies.update(zip(members, written, strict=True))
    return [replies[i] for i in range(len(prompts))]


def _generate_rows(
    lm: LM,
    ids: Sequence[Sequence[int]],
    patches: Sequence[int] | None,
    how: _Generation,
    n_tokens: int,
) -> list[Continuation]:
    settings = {"do_sample": False, "max_new_tokens": n_tokens, **how.options}
    if lm.encoder_decoder and lm.model.config.num_hidden_layers < lm.n_layers:
        # transformers sizes the decoder's cache by the encoder's number of layers.
        settings["use_cache"] = False
    replies: dict[int, Continuation] = {}
    lengths = [len(row) + settings["max_new_tokens"] for row in ids]
    ends = lm.end_tokens
    shown = bar(len(ids), "generating", "text")
    with lm.at_rest(), torch.inference_mode(), shown as progress:
        for chunk in batches_by_length(lengths, [0] * len(ids), GENERATION_BUDGET, 1):
            batch = lm.pad([ids[i] for i in chunk], left=True)
            of_row = _pick(patches, chunk)
            index = None if of_row is None else torch.tensor(of_row)
            with generation_context(lm.model, batch.mask, index):
                seen = lm.image_inputs(batch)
                reader = lm.reader_of({"input_ids", *seen})
                if reader is lm.model:
                    lm.check_inputs({"input_ids", "attention_mask", *seen})
                # The class's method: the instance's may be one that asks routers.
                out = type(reader).generate(
                    reader,
                    input_ids=batch.ids,
                    attention_mask=batch.mask,
                    **seen,
                    pad_token_id=lm.text.pad_id,
                    output_logits=how.entropies,
                    return_dict_in_generate=True,
                    **settings,
                )
            start = 0 if lm.encoder_decoder else batch.ids.shape[1]
            spread = entropies_of(torch.stack(out.logits, 1)).tolist() if how.entropies else None
            for k, (i, row) in enumerate(zip(chunk, out.sequences, strict=True)):
                new = row[start:].tolist()
                written = new[1:] if lm.encoder_decoder else new
                stop = next((j for j, token in enumerate(written) if token in ends), len(written))
                replies[i] = Continuation(
                    lm.tokenizer.decode(new, skip_special_tokens=True),
                    tuple(written[:stop]),
                    tuple(spread[k][:stop]) if spread is not None else (),
                    stop < len(written),
                )
            progress.update(len(chunk))
    return [replies[i] for i in range(len(ids))]


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
