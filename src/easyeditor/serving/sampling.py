"""How one request is continued: limits, the choice of a token, text and stop strings."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from easyeditor.errors import DivergedError

GREEDY_BELOW = 1e-5
"""Temperatures below take the most probable token: divided by them, logits leave float32."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
NO_NUMBERS = (
    "The model's predictions are not numbers, so nothing can be written. Load it in float32 or "
    "bfloat16, or take the edit back that does this."
)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a request is continued.

    Attributes:
        max_tokens: where it ends at the latest.
        temperature: of the softmax; below 1e-5 the most probable token is taken.
        top_p: probability mass that is sampled from.
        top_k: number of tokens that are sampled from; 0: all.
        repetition_penalty: of tokens that are in the text already; 1: none.
        seed: of the request's own random stream; None: another one at every call.
        stop: texts that end it; they are no part of the answer.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        defaults: GenerationConfig,
        max_tokens: int,
        *,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Sampling:
        """What a request says, and where it says nothing the model's generation config."""
        sampled = bool(defaults.do_sample)
        if temperature is None:
            temperature = (1.0 if defaults.temperature is None else defaults.temperature) * sampled
        if top_p is None:
            top_p = defaults.top_p if sampled and defaults.top_p is not None else 1.0
        return cls(
            max_tokens,
            float(temperature),
            float(top_p),
            int(defaults.top_k or 0) if sampled else 0,
            float(defaults.repetition_penalty or 1.0),
            seed,
            tuple(stop),
        )


class TokenChooser:
    """Chooses the next token of one request from its logits, from a random stream of its own."""

    def __init__(self, sampling: Sampling) -> None:
        self._greedy = sampling.temperature < GREEDY_BELOW
        self._generator = torch.Generator()
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._generator.manual_seed(seed % 2**63)
        processors: list[Any] = []
        if sampling.repetition_penalty != 1:
            processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if not self._greedy:
            processors.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                processors.append(TopPLogitsWarper(sampling.top_p))
        self._processors = LogitsProcessorList(processors)

    def choose(self, ids: Sequence[int], logits: torch.Tensor) -> int:
        """The next token after ``ids``, from logits ``(vocabulary,)`` in float32 on the CPU.

        Raises:
            DivergedError: they are not numbers, or so large that no probabilities follow.
        """
        if logits.isnan().any():
            raise DivergedError(NO_NUMBERS)
        scores = logits[None]
        if self._processors:
            scores = self._processors(torch.tensor([list(ids)]), scores)
        if self._greedy:
            return int(scores.argmax(-1))
        probabilities = scores.softmax(-1)
        if not probabilities.isfinite().all():  # one logit is infinite, or all are -inf
            raise DivergedError(NO_NUMBERS)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


class TextStream:
    """Turns tokens into text as they come, and ends it at a stop string.

    Text is given out once it cannot change any more: not in the middle of a character of several
    tokens, nor while it may be the beginning of a stop string.

    Attributes:
        stopped: whether a stop string was met.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        self._context = self._read = 0
        self._waiting = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is certain after one more token; maybe none."""
        self._ids.append(token)
        before = self._decoded(self._context, self._read)
        now = self._decoded(self._context, len(self._ids))
        if len(now) <= len(before) or now.endswith(REPLACEMENT):
            return ""
        self._context, self._read = self._read, len(self._ids)
        return self._passed(now[len(before) :])

    def end(self) -> str:
        """What was held back, where the text ends now."""
        if self.stopped:
            return ""
        before = self._decoded(self._context, self._read)
        rest = self._decoded(self._context, len(self._ids))[len(before) :]
        text = self._passed(rest) + self._waiting
        self._waiting = ""
        return text

    def _decoded(self, start: int, end: int) -> str:
        text: str = self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True)
        return text

    def _passed(self, text: str) -> str:
        self._waiting += text
        places = [self._waiting.find(stop) for stop in self._stop]
        first = min((place for place in places if place >= 0), default=None)
        if first is not None:
            self.stopped = True
            result, self._waiting = self._waiting[:first], ""
            return result
        keep = max((_overlap(self._waiting, stop) for stop in self._stop), default=0)
        end = len(self._waiting) - keep
        result, self._waiting = self._waiting[:end], self._waiting[end:]
        return result


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` are the beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
