"""Sampling from a model with generators of our own: no global random state is read or changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from easyeditor.edits import Prompt
from easyeditor.errors import DivergedError
from easyeditor.lm.forward.batching import batches_by_length, split_by_length
from easyeditor.lm.forward.context import generation_context
from easyeditor.lm.forward.prefix_cache import takes_cache, unread
from easyeditor.lm.hooks import gathering
from easyeditor.lm.model import LM

GENERATION_BUDGET = 8192
"""Tokens of prompts and continuations in one batch of generation."""
STEP_TOKENS = 12
"""Tokens whose reading takes a CPU as long as the weights' alone, for every step of a batch."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a model wrote after a prompt.

    Attributes:
        text: the tokens decoded, special ones left out.
        ids: the tokens up to and without the first that ends the text.
        entropies: of the model's distribution at each of them, over the whole vocabulary (also
            where only the most probable tokens are sampled from), in nats; empty unless asked.
        ended: whether the model ended the text by itself; else it was cut off at its limit.
    """

    text: str
    ids: tuple[int, ...]
    entropies: tuple[float, ...] = ()
    ended: bool = False


def entropies_of(logits: torch.Tensor) -> torch.Tensor:
    """Of the distributions along the last axis, in nats."""
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).nansum(-1)


def sample(
    lm: LM,
    starts: Sequence[str],
    n_tokens: int,
    *,
    generator: torch.Generator,
    top_k: int | None = None,
    drawn: Sequence[Sequence[int]] = (),
    after_step: Callable[[list[int]], object] | None = None,
) -> list[tuple[int, ...]]:
    """Sample ``n_tokens`` after each start; the start's tokens are part of the result.

    Args:
        lm: the model.
        starts: texts that are continued, together.
        n_tokens: sampled after each.
        generator: of the random numbers.
        top_k: sample among so many of the most probable tokens; None: among all.
        drawn: the first steps' tokens, one per start, of a call that was interrupted. The model
            reads them step by step, so what follows has the bits of an uninterrupted call if the
            generator is in the state after the last of them; no logits are computed for them.
        after_step: called with the tokens of each further step, one per start.

    Raises:
        DivergedError: the model's predictions are not numbers.
    """
    return _sample(
        lm,
        [lm.text.plain(start) for start in starts],
        n_tokens,
        lambda logits: _among_all(logits, top_k, generator),
        drawn=drawn,
        after_step=after_step,
    )


def continuations(
    lm: LM,
    prompts: Sequence[Prompt | str],
    n_tokens: int,
    patch_of_row: Sequence[int] | None = None,
    *,
    top_k: int = 5,
    seed: int = 0,
    entropies: bool = False,
) -> list[Continuation]:
    """``n_tokens`` sampled after each prompt, up to an end-of-sequence token; the prompt left out.

    Every prompt has a random stream of its own, so its continuation does not depend on what else
    is in the batch. Of a causal model, without routers: :func:`easyeditor.lm.inference.generate`.
    """
    rows = [lm.text.row(prompt).ids for prompt in prompts]
    replies: dict[int, Continuation] = {}
    ends = lm.end_tokens
    for count, chunk in _chunks(lm, rows, n_tokens):
        streams = [_stream(prompts[i], seed) for i in chunk]
        of_row = None if patch_of_row is None else torch.tensor([patch_of_row[i] for i in chunk])
        spread: list[torch.Tensor] = []

        def draw(
            logits: torch.Tensor,
            streams: Sequence[torch.Generator] = streams,
            spread: list[torch.Tensor] = spread,
        ) -> list[int]:
            if entropies:
                spread.append(entropies_of(logits))
            best = logits.topk(top_k)
            probabilities = best.values.softmax(-1)
            # A wrecked model writes, too: its first token.
            probabilities[probabilities.isnan().any(-1)] = torch.eye(1, top_k)
            places = [
                torch.multinomial(p, 1, generator=stream)
                for p, stream in zip(probabilities, streams, strict=True)
            ]
            return best.indices.gather(1, torch.stack(places))[:, 0].tolist()

        sampled = _sample(lm, [rows[i] for i in chunk], count, draw, patch_of_row=of_row)
        for k, (i, ids) in enumerate(zip(chunk, sampled, strict=True)):
            written = ids[len(rows[i]) :]
            end = next((j for j, token in enumerate(written) if token in ends), len(written))
            replies[i] = Continuation(
                lm.tokenizer.decode(written[:end], skip_special_tokens=True),
                written[:end],
                tuple(float(step[k]) for step in spread[:end]),
                end < len(written),
            )
    return [replies[i] for i in range(len(rows))]


def greedy_tokens(lm: LM, rows: Sequence[tuple[int, ...]], n_tokens: int) -> list[tuple[int, ...]]:
    """The most probable ``n_tokens`` after each row of a causal model, up to an end token.

    Fewer where the context ends. Of the model alone, without routers.
    """
    result: list[tuple[int, ...]] = [()] * len(rows)
    ends, limit = lm.end_tokens, lm.context_length
    for count, chunk in _chunks(lm, rows, n_tokens) if n_tokens else ():
        chosen = _sample(lm, [rows[i] for i in chunk], count, lambda p: p.argmax(-1).tolist())
        for i, ids in zip(chunk, chosen, strict=True):
            written = ids[len(rows[i]) : limit]
            end = next((k for k, token in enumerate(written) if token in ends), len(written))
            result[i] = written[:end]
    return result


def rows_by_room(
    lm: LM, rows: Sequence[Sequence[int]], n_tokens: int
) -> list[tuple[int, list[int]]]:
    """How many of ``n_tokens`` fit into the context, at least one, with the numbers of those rows.

    Rows with images and rows without are apart.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for kind, members in enumerate(lm.alike(rows)):
        for i in members:
            count = n_tokens
            if lm.context_length is not None and not lm.encoder_decoder:
                count = max(1, min(n_tokens, lm.context_length - len(rows[i])))
            groups.setdefault((count, kind), []).append(i)
    return [(count, members) for (count, _), members in groups.items()]


def _chunks(
    lm: LM, rows: Sequence[Sequence[int]], n_tokens: int
) -> Iterator[tuple[int, list[int]]]:
    """Batches within the budget, each with the number of tokens to sample."""
    for count, members in rows_by_room(lm, rows, n_tokens):
        for part in generation_batches(lm, [len(rows[i]) for i in members], count):
            yield count, [members[i] for i in part]


def generation_batches(lm: LM, lengths: Sequence[int], n_tokens: int) -> Iterator[list[int]]:
    """Batches of prompts of these lengths, within the budget, that get ``n_tokens`` more.

    On a CPU, where a padded token costs as much as any, short prompts are apart from long ones.
    """
    groups = [list(range(len(lengths)))]
    if lm.device.type == "cpu":
        groups = split_by_length(lengths, STEP_TOKENS * n_tokens)
    for group in groups:
        tokens = [lengths[i] + n_tokens for i in group]
        for part in batches_by_length(tokens, [0] * len(group), GENERATION_BUDGET, 1):
            yield [group[i] for i in part]


def _among_all(logits: torch.Tensor, top_k: int | None, generator: torch.Generator) -> list[int]:
    if logits.isnan().any():
        raise DivergedError(
            "The model's own predictions are not numbers, so nothing can be sampled from it; it is "
            "unchanged. Load it in float32 or bfloat16, and check its weights."
        )
    if top_k is not None:
        floor = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < floor, float("-inf"))
    chosen = torch.multinomial(logits.softmax(-1), 1, generator=generator)
    return chosen[:, 0].tolist()


def _stream(prompt: Prompt | str, seed: int) -> torch.Generator:
    images = "".join(image.sha256 for image in prompt.images) if isinstance(prompt, Prompt) else ""
    digest = hashlib.sha256(f"{seed}:{prompt}{images}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _sample(
    lm: LM,
    rows: Sequence[tuple[int, ...]],
    n_tokens: int,
    draw: Callable[[torch.Tensor], list[int]],
    *,
    drawn: Sequence[Sequence[int]] = (),
    after_step: Callable[[list[int]], object] | None = None,
    patch_of_row: torch.Tensor | None = None,
) -> list[tuple[int, ...]]:
    batch = lm.pad(rows, left=True)
    result = [list(row) for row in rows]
    every, last = torch.arange(len(rows)), torch.full((len(rows),), -1)
    cached = takes_cache(lm.model)
    more: dict[str, Any] = {"use_cache": cached}
    context = generation_context(lm.model, batch.mask, patch_of_row)
    with lm.at_rest(), torch.inference_mode(), context:
        for step in range(n_tokens):
            repeated = step < len(drawn)
            with unread(lm) if repeated else gathering(lm.head, every, last):
                out = lm.call(batch, **more)
            chosen = list(drawn[step]) if repeated else draw(out.logits[0].float().cpu())
            for row, token in zip(result, chosen, strict=True):
                row.append(token)
            if after_step is not None and not repeated:
                after_step(chosen)
            new = torch.tensor(chosen, device=batch.ids.device)[:, None]
            cached = cached and getattr(out, "past_key_values", None) is not None
            batch = batch.after(new, cached=cached)
            if cached:
                more = {"use_cache": True, "past_key_values": out.past_key_values}
            else:  # a state of its own kind: the whole sequence again
                more = {"use_cache": False}
    return [tuple(row) for row in result]
