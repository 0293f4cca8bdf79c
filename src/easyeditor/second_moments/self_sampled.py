"""Text sampled from the model itself: second moments that need no download.

The text is sampled first and read afterwards: its keys occur while it is sampled, but token by
token and through the whole model, and reading it again up to the highest wanted layer costs little
beside that. So one text serves every layer that is asked for later, in this process or another. It
lies beside the moments (4 bytes a token) and is written every few seconds while it is sampled, so
that a process that was killed goes on at the step where it was, with the same bits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from easyeditor.associative.contexts import SEEDS
from easyeditor.lm.caches import LMCache
from easyeditor.lm.fingerprint import fingerprint
from easyeditor.lm.model import LM
from easyeditor.lm.sampling import sample
from easyeditor.progress import bar
from easyeditor.second_moments.cache_file import ignored, read_cache_file, write_cache_file
from easyeditor.second_moments.cost import CostEstimate

log = logging.getLogger(__name__)

LENGTH = 48
"""Tokens sampled after each start."""
ROWS = 128
"""Sequences sampled together."""
SAVE_SECONDS = 5.0
"""Between two writes of the text while a group of sequences is sampled."""
CONTENT = "sampled texts"
TEXTS: LMCache[tuple[int, int], list[tuple[int, ...]]] = LMCache(
    "text sampled from the unedited model; by number of tokens and seed",
    lambda model: fingerprint(model).digest,
)


def sampled_text(lm: LM, n_tokens: int, seed: int, file: Path) -> Sequence[tuple[int, ...]]:
    """Sequences of at least ``n_tokens`` tokens in all, read from ``file`` or sampled.

    They are cached on ``lm``, too, for where the file cannot be written.

    Raises:
        DivergedError: the model's predictions are not numbers.
    """
    texts = TEXTS(lm)
    if (n_tokens, seed) not in texts:
        texts[n_tokens, seed] = _sampled(lm, n_tokens, seed, file)
    return texts[n_tokens, seed]


@dataclass(slots=True)
class _Text:
    """A text that is being sampled: what is in the file, and what is not.

    Attributes:
        file: where it is written.
        generator: the state of the sampling.
        sequences: those that are complete.
        steps: tokens of the sequences that are being sampled, one list per step.
    """

    file: Path
    generator: torch.Generator
    sequences: list[tuple[int, ...]] = field(default_factory=list)
    steps: list[list[int]] = field(default_factory=list)
    written: float = field(default_factory=time.monotonic)

    @property
    def tokens(self) -> int:
        """Of the complete sequences."""
        return sum(map(len, self.sequences))

    def add_step(self, tokens: list[int]) -> None:
        """One more token of each sequence; on disk after a few seconds."""
        self.steps.append(tokens)
        if time.monotonic() - self.written >= SAVE_SECONDS:
            self.write()

    def add_sequences(self, sequences: Sequence[tuple[int, ...]]) -> None:
        """The sequences of all steps are complete."""
        self.sequences += sequences
        self.steps = []
        self.write()

    def write(self) -> None:
        """Write everything with the generator's state."""
        tensors = {
            "ids": torch.tensor([i for ids in self.sequences for i in ids], dtype=torch.int32),
            "lengths": torch.tensor([len(ids) for ids in self.sequences], dtype=torch.int32),
            "generator": self.generator.get_state(),
        }
        if self.steps:
            tensors["steps"] = torch.tensor(self.steps, dtype=torch.int32)
        write_cache_file(self.file, tensors, {}, CONTENT)
        self.written = time.monotonic()

    def read(self, n_tokens: int) -> None:
        """Take over what the file holds of a text of ``n_tokens``, if it is readable."""
        stored = read_cache_file(self.file, CONTENT)
        if stored is None:
            return
        tensors, _ = stored
        try:
            parts = torch.split(tensors["ids"], tensors["lengths"].tolist())
            sequences = [tuple(part.tolist()) for part in parts]
            steps = tensors["steps"].tolist() if "steps" in tensors else []
            rows = _rows(n_tokens - sum(map(len, sequences)))
            if len(steps) > LENGTH or any(len(step) != rows for step in steps):
                raise ValueError(f"its last sequences are not {rows} of at most {LENGTH} tokens")
            self.generator.set_state(tensors["generator"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            ignored(self.file, CONTENT, error)
            return
        self.sequences, self.steps = sequences, steps


def _rows(n_tokens: int) -> int:
    """How many sequences are sampled next, where so many tokens are missing."""
    return min(ROWS, -(-n_tokens // LENGTH))


def _sampled(lm: LM, n_tokens: int, seed: int, file: Path) -> list[tuple[int, ...]]:
    text = _Text(file, torch.Generator().manual_seed(seed))
    text.read(n_tokens)
    done = text.tokens + sum(map(len, text.steps))
    if 0 < done < n_tokens:
        log.info("going on after %d sampled tokens (%s)", done, file)
    vocabulary = lm.model.config.get_text_config().vocab_size
    cost = CostEstimate(
        f"Sampling {n_tokens} tokens from {lm.name} (vocabulary: {vocabulary}) for second moments",
        n_tokens - done,
        lm.device,
        "Reading a text is cheaper, as nothing is sampled: mom2_dataset='shipped' or "
        "mom2_dataset='FILE.txt' (easyedit moments --dataset FILE.txt); so are fewer "
        "tokens: mom2_n_tokens.",
        resumed=bool(text.steps),
    )
    with bar(n_tokens, "sampling text for second moments", "token", done=done) as progress:

        def after_step(tokens: list[int]) -> None:
            text.add_step(tokens)
            progress.update(len(tokens))
            cost.update(len(tokens))

        while (left := n_tokens - text.tokens) > 0:
            starts = [SEEDS[i % len(SEEDS)] for i in range(_rows(left))]
            sequences = sample(
                lm,
                starts,
                LENGTH,
                generator=text.generator,
                drawn=tuple(text.steps),
                after_step=after_step,
            )
            text.add_sequences(sequences)
    return text.sequences
