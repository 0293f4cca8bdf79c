"""Sampling from a model with generators of our own: no global random state is read or changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch

from easyeditor.errors import DivergedError
from easyeditor.lm.forward.batching import batches_by_length
from easyeditor.lm.forward.prefix_cache import takes_cache
from easyeditor.lm.hooks import gathering
from easyeditor.lm.model import LM
from easyeditor.lm.routing import answer_via_routers, routers_of

BUDGET = 8192
"""Tokens, prompts and continuations together, in one batch."""


def sample(
    lm: LM,
    starts: Sequence[str],
    n_tokens: int,
    *,
    generator: torch.Generator,
    top_k: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[tuple[int, ...]]:
    """Sample ``n_tokens`` after each start; the start's tokens are part of the result.

    ``progress`` is told how many tokens each step has made.
    """
    return _sample(
        lm,
        [lm.text.plain(start) for start in starts],
        n_tokens,
        lambda logits: _among_all(logits, top_k, generator),
        progress,
    )


def continuations(
    lm: LM,
    prompts: Sequence[str],
    n_tokens: int,
    owners: Sequence[int] | None = None,
    *,
    top_k: int = 5,
    seed: int = 0,
) -> list[str]:
    """``n_tokens`` sampled after each prompt, up to an end-of-sequence token (no prompt).

    Every prompt has a random stream of its own, so what it gets does not depend on what else is in
    the batch. An encoder-decoder continues greedily. ``owners`` as for ``LM.score``.
    """
    if lm.encoder_decoder:
        return lm.generate(prompts, n_tokens, owners)
    whose = owners or [0] * len(prompts)

    def told_by(who: LM, asked: Sequence[str], owners: Sequence[int]) -> list[str]:
        return _continued(who, asked, n_tokens, owners, top_k, seed)

    if not routers_of(lm.model):
        return told_by(lm, prompts, whose)
    return answer_via_routers(
        lm,
        prompts,
        lambda own: told_by(lm, [prompts[i] for i in own], [whose[i] for i in own]),
        lambda who, own, asked: told_by(who, asked, [0] * len(own)),
    )


def _continued(
    lm: LM, prompts: Sequence[str], n_tokens: int, whose: Sequence[int], top_k: int, seed: int
) -> list[str]:
    rows = [lm.text.row(prompt).ids for prompt in prompts]
    told = [""] * len(rows)
    end = lm.tokenizer.eos_token_id
    for chunk in batches_by_length(
        [len(row) + n_tokens for row in rows], [0] * len(rows), BUDGET, 1
    ):
        streams = [_stream(prompts[i], seed) for i in chunk]
        lm.owners = [whose[i] for i in chunk]

        def draw(logits: torch.Tensor, streams: Sequence[torch.Generator] = streams) -> list[int]:
            best = logits.topk(top_k)
            chances = best.values.softmax(-1)
            # A wrecked model says something, too: whatever comes first.
            chances[chances.isnan().any(-1)] = torch.eye(1, top_k)
            places = [
                torch.multinomial(p, 1, generator=own)
                for p, own in zip(chances, streams, strict=True)
            ]
            return best.indices.gather(1, torch.stack(places))[:, 0].tolist()

        made_ids = _sample(lm, [rows[i] for i in chunk], n_tokens, draw)
        for i, ids in zip(chunk, made_ids, strict=True):
            made = list(ids[len(rows[i]) :])
            if end in made:
                made = made[: made.index(end)]
            told[i] = lm.tokenizer.decode(made, skip_special_tokens=True)
    return told


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


def _stream(prompt: str, seed: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{prompt}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _sample(
    lm: LM,
    rows: Sequence[tuple[int, ...]],
    n_tokens: int,
    draw: Callable[[torch.Tensor], list[int]],
    progress: Callable[[int], object] | None = None,
) -> list[tuple[int, ...]]:
    batch = lm.pad(rows, left=True)
    ids, mask, positions = batch.ids, batch.mask, batch.positions
    made = [list(row) for row in rows]
    every, last = torch.arange(len(rows)), torch.full((len(rows),), -1)
    cached = takes_cache(lm.model)
    more: dict[str, object] = {"use_cache": cached}
    with lm.at_rest(), torch.inference_mode():
        for _ in range(n_tokens):
            with gathering(lm.head, every, last):
                out = lm.call(type(batch)(ids, mask, positions), **more)
            chosen = draw(out.logits[0].float().cpu())
            for row, token in zip(made, chosen, strict=True):
                row.append(token)
            if progress is not None:
                progress(len(made))
            drawn = torch.tensor(chosen, device=ids.device)[:, None]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            cached = cached and getattr(out, "past_key_values", None) is not None
            if cached:
                ids, positions = drawn, positions[:, -1:] + 1
                more = {"use_cache": True, "past_key_values": out.past_key_values}
            else:  # a state of its own kind: the whole sequence again
                ids = torch.cat([ids, drawn], 1)
                positions = torch.cat([positions, positions[:, -1:] + 1], 1)
                more = {"use_cache": False}
    return [tuple(row) for row in made]
