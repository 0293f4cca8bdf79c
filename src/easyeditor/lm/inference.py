"""Answers queries: free text, in few batches; scores are :mod:`easyeditor.lm.scoring`'s.

:func:`score` and :func:`generate` ask through the routers that the model carries
(:mod:`easyeditor.lm.routing`); everything below them runs one model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from easyeditor.edits import Generate, Prompt, as_prompt
from easyeditor.lm.forward.context import generation_context
from easyeditor.lm.model import LM
from easyeditor.lm.routing import answer_via_routers
from easyeditor.lm.sampling import Continuation as Continuation
from easyeditor.lm.sampling import continuations, entropies_of, generation_batches, rows_by_room
from easyeditor.lm.scoring import check_length, pick
from easyeditor.lm.scoring import score as score
from easyeditor.progress import bar


def generate(
    lm: LM,
    queries: Sequence[Generate | Prompt | str],
    max_new_tokens: int = 20,
    patch_of_query: Sequence[int] | None = None,
    **options: Any,
) -> list[str]:
    """What the model writes after each prompt (without the prompt).

    Greedy queries go to the model's own ``generate``, a prompt once for all lengths that are asked
    of it, in left-padded batches.
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
    requests: list[tuple[Generate, int, tuple[int, ...]]]
    if options.get("do_sample"):
        requests = [(query, patch, (query.max_new_tokens,)) for query, patch in pairs]
    else:
        requests = _by_prompt(pairs, apart=bool(options) or _ends_by_length(lm))
    kinds: dict[tuple[int, int | None], list[int]] = defaultdict(list)
    for i, (query, _, lengths) in enumerate(requests):
        kinds[max(lengths), query.seed].append(i)
    replies: dict[int, dict[int, Continuation]] = {}
    for (tokens, seed), members in kinds.items():
        prompts = [requests[i][0].prompt for i in members]
        patches = None if patch_of_query is None else [requests[i][1] for i in members]
        settings = _Generation(tokens, seed, entropies, options, [requests[i][2] for i in members])
        replies.update(zip(members, _via_routers(lm, prompts, patches, settings), strict=True))
    if options.get("do_sample"):
        return [replies[i][query.max_new_tokens] for i, (query, _) in enumerate(pairs)]
    by_question = {
        (query.prompt, query.seed, patch, length): replies[i][length]
        for i, (query, patch, lengths) in enumerate(requests)
        for length in lengths
    }
    return [by_question[q.prompt, q.seed, patch, q.max_new_tokens] for q, patch in pairs]


def _by_prompt(
    pairs: Sequence[tuple[Generate, int]], *, apart: bool
) -> list[tuple[Generate, int, tuple[int, ...]]]:
    """Different prompts with their patch and the lengths of text that are wanted of them.

    A shorter text is the beginning of a longer one, unless they are written ``apart``.
    """
    lengths: dict[tuple[Prompt, int | None, int, int], list[tuple[Generate, int]]] = {}
    for query, patch in dict.fromkeys(pairs):
        together = query.max_new_tokens if apart else 0
        lengths.setdefault((query.prompt, query.seed, patch, together), []).append((query, patch))
    return [
        (*members[0], tuple(query.max_new_tokens for query, _ in members))
        for members in lengths.values()
    ]


def _ends_by_length(lm: LM) -> bool:
    """Whether a text of the model may differ from the beginning of a longer one."""
    settings = lm.model.generation_config
    forced = getattr(settings, "forced_eos_token_id", None) is not None
    return lm.encoder_decoder or forced or (getattr(settings, "num_beams", None) or 1) > 1


@dataclass(frozen=True, slots=True)
class _Written:
    """What a model wrote after a prompt, before anything is cut off.

    Attributes:
        tokens: with those that end the text, and what stands behind them.
        entropies: of the model's distribution at each of them, or none.
        ended: whether the text ends behind the last of the tokens.
    """

    tokens: tuple[int, ...]
    entropies: tuple[float, ...] = ()
    ended: bool = False

    def beginning(self, lm: LM, n_tokens: int | None) -> Continuation:
        """What would have been written of at most ``n_tokens``; None: all."""
        tokens, ends = self.tokens[:n_tokens], lm.end_tokens
        stop = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        behind_last = self.ended and (n_tokens is None or len(self.tokens) < n_tokens)
        ended = stop < len(tokens) or behind_last
        text = lm.tokenizer.decode(tokens, skip_special_tokens=True)
        return Continuation(text, tokens[:stop], self.entropies[:stop], ended)


@dataclass(frozen=True, slots=True)
class _Generation:
    """How prompts are continued.

    Attributes:
        max_new_tokens: of the longest text.
        seed: of the sampling.
        entropies: whether they are returned.
        options: of ``generate``.
        lengths: of every prompt, the numbers of tokens after which its text is wanted.
    """

    max_new_tokens: int
    seed: int | None
    entropies: bool
    options: Mapping[str, Any]
    lengths: Sequence[tuple[int, ...]]


def _via_routers(
    lm: LM, prompts: Sequence[Prompt], patches: Sequence[int] | None, settings: _Generation
) -> list[dict[int, Continuation]]:
    """For every prompt its texts, by their length."""

    def ask(
        who: LM, rows: Sequence[int], texts: Sequence[Prompt], of: Sequence[int] | None
    ) -> list[dict[int, Continuation]]:
        check_length(who, [who.text.row(text) for text in texts])
        lengths, most = [settings.lengths[i] for i in rows], settings.max_new_tokens
        if settings.seed is None or who.encoder_decoder:
            written = _generate(who, texts, of, settings)
        else:
            sampled = continuations(
                who, texts, most, of, seed=settings.seed, entropies=settings.entropies
            )
            written = [_Written(one.ids, one.entropies, one.ended) for one in sampled]
        return [
            {n: whole.beginning(who, n if n < most else None) for n in wanted}
            for whole, wanted in zip(written, lengths, strict=True)
        ]

    return answer_via_routers(
        lm,
        prompts,
        lambda rows: ask(lm, rows, [prompts[i] for i in rows], pick(patches, rows)),
        lambda who, rows, texts: ask(who, rows, texts, pick(patches, rows) if who is lm else None),
    )


def _generate(
    lm: LM,
    prompts: Sequence[Prompt],
    patches: Sequence[int] | None,
    how: _Generation,
) -> list[_Written]:
    """What the model's own ``generate`` writes, without routers."""
    ids = [lm.text.row(prompt).ids for prompt in prompts]
    replies: dict[int, _Written] = {}
    # Rows of one length together, so that a row near the end of the context shortens no other.
    for n_tokens, members in rows_by_room(lm, ids, how.max_new_tokens):
        written = _generate_rows(
            lm, [ids[i] for i in members], pick(patches, members), how, n_tokens
        )
        replies.update(zip(members, written, strict=True))
    return [replies[i] for i in range(len(prompts))]


def _generate_rows(
    lm: LM,
    ids: Sequence[Sequence[int]],
    patches: Sequence[int] | None,
    how: _Generation,
    n_tokens: int,
) -> list[_Written]:
    settings = {"do_sample": False, "max_new_tokens": n_tokens, **how.options}
    if lm.encoder_decoder and lm.model.config.num_hidden_layers < lm.n_layers:
        # transformers sizes the decoder's cache by the encoder's number of layers.
        settings["use_cache"] = False
    replies: dict[int, _Written] = {}
    shown = bar(len(ids), "generating", "text")
    with lm.at_rest(), torch.inference_mode(), shown as progress:
        for chunk in generation_batches(lm, [len(row) for row in ids], settings["max_new_tokens"]):
            batch = lm.pad([ids[i] for i in chunk], left=True)
            of_row = pick(patches, chunk)
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
            start = 1 if lm.encoder_decoder else batch.ids.shape[1]
            spread = entropies_of(torch.stack(out.logits, 1)).tolist() if how.entropies else None
            for k, (i, row) in enumerate(zip(chunk, out.sequences, strict=True)):
                entropies = () if spread is None else tuple(spread[k])
                replies[i] = _Written(tuple(row[start:].tolist()), entropies)
            progress.update(len(chunk))
    return [replies[i] for i in range(len(ids))]
