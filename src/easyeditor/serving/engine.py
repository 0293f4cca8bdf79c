"""``Engine``: one thread that continues all requests, a token of each in turn.

Requests of one model that wait at the same time may share their passes (``max_batch``); those of
different models, and by default all of them, have passes and key/value caches of their own. The
groups take turns, so a long answer holds nobody up, and with ``max_batch=1`` a request gets the
bits that it gets alone.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from easyeditor.errors import DivergedError, ServerBusyError
from easyeditor.lm.forward.context import ForwardContext, Phase, forward_context, last_token
from easyeditor.lm.forward.prefix_cache import takes_cache
from easyeditor.lm.hooks import gathering
from easyeditor.lm.model import LM
from easyeditor.serving.sampling import Sampling, TextStream, TokenChooser

MAX_ACTIVE, MAX_WAITING = 32, 512
"""Requests that are continued, and that wait, at once."""
LOG = logging.getLogger(__name__)
GOING = "The server is shutting down."


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more text of an answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of an answer: ``"stop"`` or ``"length"``, and the number of its tokens."""

    reason: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Failure:
    """The request cannot be answered."""

    message: str


Event = Piece | Finish | Failure


def failure(error: Exception) -> Failure:
    """What a client reads of an error; of one that is not ours the log alone has the words."""
    if isinstance(error, DivergedError):
        return Failure(str(error))
    LOG.error("An answer could not be written.", exc_info=error)
    return Failure(
        f"The answer could not be written ({type(error).__name__}); the server's log says why."
    )


@dataclass(slots=True, eq=False)
class Job:
    """One answer that is to be written.

    Attributes:
        lm: the model that writes it.
        ids: the prompt's tokens.
        sampling: how.
        emit: called by the engine's thread with every event; the last one is no ``Piece``.
        cancelled: set by anybody who does not want the rest.
    """

    lm: LM
    ids: tuple[int, ...]
    sampling: Sampling
    emit: Callable[[Event], object]
    cancelled: bool = False
    written: list[int] = field(default_factory=list)


class Group:
    """Jobs of one model whose passes are shared, one token of each per step."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self.lm = jobs[0].lm
        self._live = list(range(len(jobs)))
        self._choosers = [TokenChooser(job.sampling) for job in jobs]
        self._texts = [TextStream(self.lm.tokenizer, job.sampling.stop) for job in jobs]
        self._ends = self.lm.end_tokens
        self._cached = takes_cache(self.lm.model)
        self._cache: Any = None
        self._decisions: dict[Any, Any] = {}
        self._batch = self.lm.pad([job.ids for job in jobs], left=True)
        self._mask = self._batch.mask
        self._prompt_end = last_token(self._mask)

    @property
    def live(self) -> int:
        """How many jobs go on."""
        return len(self._live)

    def step(self) -> None:
        """Write one more token of every job that goes on."""
        self._live = [row for row in self._live if not self.jobs[row].cancelled]
        if not self._live:
            return
        logits = self._logits()
        chosen = [self.lm.text.pad_id] * len(self.jobs)
        for row in list(self._live):
            job = self.jobs[row]
            try:
                chosen[row] = self._choosers[row].choose((*job.ids, *job.written), logits[row])
                self._write(row, chosen[row])
            except Exception as error:  # of any type: the other rows go on
                if row in self._live:
                    self._finish(row, failure(error))
        self._extend(chosen)

    def fail(self, event: Failure) -> None:
        """End every job that goes on."""
        for row in list(self._live):
            self._finish(row, event)

    def _write(self, row: int, token: int) -> None:
        job, text = self.jobs[row], self._texts[row]
        job.written.append(token)
        ended = token in self._ends
        piece = "" if ended else text.add(token)
        last = ended or text.stopped or len(job.written) >= job.sampling.max_tokens
        if last:
            piece += text.end()
        if piece:
            job.emit(Piece(piece))
        if last:
            reason = "stop" if ended or text.stopped else "length"
            self._finish(row, Finish(reason, len(job.written)))

    def _finish(self, row: int, event: Event) -> None:
        self._live.remove(row)
        self.jobs[row].emit(event)

    def _logits(self) -> torch.Tensor:
        """Of the next token of every row, ``(rows, vocabulary)``, float32 on the CPU."""
        more: dict[str, Any] = {"use_cache": self._cached}
        start, phase = 0, "prefill"
        if self._cache is not None:
            start, phase = self._mask.shape[1] - 1, "decode"
            more["past_key_values"] = self._cache
        context = ForwardContext(
            self._mask, self._prompt_end, None, _phase(phase), start, self._decisions
        )
        every = torch.arange(len(self.jobs))
        last = torch.full_like(every, -1)
        with (
            torch.inference_mode(),
            forward_context(self.lm.model, context),
            gathering(self.lm.head, every, last),
        ):
            out = self.lm.call(self._batch, **more)
        self._cache = getattr(out, "past_key_values", None) if self._cached else None
        self._cached = self._cache is not None
        return out.logits[0].float().cpu()

    def _extend(self, tokens: list[int]) -> None:
        """Let the next pass read these tokens, or the whole text where there is no cache."""
        new = torch.tensor(tokens, device=self._batch.ids.device)[:, None]
        self._batch = self._batch.after(new, cached=self._cache is not None)
        self._mask = self._batch.mask


def _phase(name: str) -> Phase:
    return "prefill" if name == "prefill" else "decode"


class Engine:
    """Continues jobs in a thread of its own until it is closed.

    Args:
        max_batch: jobs of one model that share their passes. More than one is faster and makes
            the bits of an answer depend, by rounding, on who asks at the same time.
        max_active: jobs that are continued at once; the others wait.
        max_waiting: jobs that may wait.
    """

    def __init__(
        self, max_batch: int = 1, max_active: int = MAX_ACTIVE, max_waiting: int = MAX_WAITING
    ) -> None:
        self._max_batch, self._max_active, self._max_waiting = max_batch, max_active, max_waiting
        self._incoming: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._groups: deque[Group] = deque()
        self._active = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="easyedit-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it takes jobs."""
        return self._thread.is_alive() and not self._closed

    @property
    def load(self) -> tuple[int, int]:
        """How many jobs are continued, and how many wait."""
        return self._active, len(self._waiting) + self._incoming.qsize()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take the jobs of one request, all of them or none.

        Raises:
            ServerBusyError: too many wait, or the server ends.
        """
        if not self.alive:
            raise ServerBusyError("The server is shutting down; ask again when it is back.")
        waiting = self.load[1]
        if waiting and waiting + len(jobs) > self._max_waiting:
            raise ServerBusyError(
                f"{waiting} answers are to be written before; up to {self._max_waiting} may wait. "
                "Ask again later."
            )
        for job in jobs:
            self._incoming.put(job)

    def close(self, seconds: float = 10.0) -> None:
        """End all jobs with a failure and wait for the thread."""
        self._closed = True
        self._incoming.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            self._take()
            if self._closed:
                break
            self._start_groups()
            self._active = sum(group.live for group in self._groups)
            if self._groups:
                group = self._groups.popleft()
                try:
                    group.step()
                except Exception as error:  # of any type: one request ends, the server does not
                    group.fail(failure(error))
                if group.live:
                    self._groups.append(group)
            self._active = sum(group.live for group in self._groups)
        for group in self._groups:
            group.fail(Failure(GOING))
        for job in self._waiting:
            job.emit(Failure(GOING))

    def _take(self) -> None:
        """Move what has come in to the queue; wait for it where there is nothing to do."""
        idle = not self._groups and not self._waiting
        while idle or not self._incoming.empty():
            job = self._incoming.get()
            idle = False
            if job is not None:
                self._waiting.append(job)

    def _start_groups(self) -> None:
        """Start as many waiting jobs as there is room for, those of one model together."""
        room = self._max_active - sum(group.live for group in self._groups)
        while self._waiting and room > 0:
            first = self._waiting[0]
            alike = (job for job in self._waiting if job.lm is first.lm)
            jobs = list(itertools.islice(alike, min(self._max_batch, room)))
            for job in jobs:
                self._waiting.remove(job)
            jobs = [job for job in jobs if not job.cancelled]
            room -= len(jobs)
            if not jobs:
                continue
            self._groups.extend(_groups(jobs))


def _groups(jobs: list[Job]) -> list[Group]:
    """One group of all jobs; where a job cannot be started it fails, and the others are alone."""
    try:
        return [Group(jobs)]
    except Exception as error:
        if len(jobs) == 1:
            jobs[0].emit(failure(error))
            return []
    return [group for job in jobs for group in _groups([job])]
