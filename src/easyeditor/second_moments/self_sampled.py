"""Text sampled from the model itself: second moments that need no download.

The text is sampled before it is read: its keys pass by while it is sampled, but token by token and
through the whole model, and reading it again up to the highest wanted layer costs little beside
that. So one text serves whatever layers are asked for later, in this process or another: it lies
beside the moments (4 bytes a token), and grows there while it is sampled, so that a process that
was killed goes on with the group of sequences it was at.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from easyeditor.associative.contexts import SEEDS
from easyeditor.lm.model import LM
from easyeditor.lm.sampling import sample
from easyeditor.progress import bar
from easyeditor.second_moments.cache_file import ignored, read_cache_file, write_cache_file

LENGTH = 48
"""Tokens sampled after each start."""
ROWS = 128
"""Sequences sampled together."""
WHAT = "sampled texts"


def sampled_text(lm: LM, n_tokens: int, seed: int, file: Path) -> Sequence[tuple[int, ...]]:
    """Sequences of at least ``n_tokens`` tokens in all: remembered, read from ``file``, or sampled.

    Raises:
        DivergedError: the model's predictions are not numbers.
    """
    key = ("self-sampled", n_tokens, seed)
    if key not in lm.memo:
        generator = torch.Generator().manual_seed(seed)
        created = _read(file, generator)
        left = n_tokens - sum(map(len, created))
        with bar(n_tokens, "sampling text for second moments", "token") as progress:
            progress.update(n_tokens - left)
            while left > 0:
                rows = min(ROWS, -(-left // LENGTH))
                starts = [SEEDS[i % len(SEEDS)] for i in range(rows)]
                created += sample(lm, starts, LENGTH, generator=generator, progress=progress.update)
                left = n_tokens - sum(map(len, created))
                _write(file, created, generator)
        lm.memo[key] = created
    result: list[tuple[int, ...]] = lm.memo[key]
    return result


def _write(file: Path, made: Sequence[tuple[int, ...]], generator: torch.Generator) -> None:
    tensors = {
        "ids": torch.tensor([i for ids in made for i in ids], dtype=torch.int32),
        "lengths": torch.tensor([len(ids) for ids in made], dtype=torch.int32),
        "generator": generator.get_state(),
    }
    write_cache_file(file, tensors, {}, WHAT)


def _read(file: Path, generator: torch.Generator) -> list[tuple[int, ...]]:
    """What is there; the generator is then where it was when that was written."""
    stored = read_cache_file(file, WHAT)
    if stored is None:
        return []
    tensors, _ = stored
    try:
        parts = torch.split(tensors["ids"], tensors["lengths"].tolist())
        generator.set_state(tensors["generator"])
        return [tuple(part.tolist()) for part in parts]
    except (KeyError, RuntimeError, TypeError) as error:
        ignored(file, WHAT, error)
        return []
