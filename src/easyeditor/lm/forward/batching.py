"""Which forward passes answer a set of questions: every token sequence is run once.

Pairs of one prompt share its tokens, and a sequence that is the beginning of a longer one is read
from that one: with causal attention nothing after a token changes what is predicted there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from easyeditor.lm.tokens import Row


@dataclass(frozen=True, slots=True)
class TokenScores:
    """One target under teacher forcing: its tokens, their log-probabilities, the argmaxes."""

    target: tuple[int, ...]
    logprobs: tuple[float, ...]
    argmax: tuple[int, ...]

    @property
    def accuracy(self) -> float:
        """Share of target tokens that are the argmax."""
        return sum(a == t for a, t in zip(self.argmax, self.target, strict=True)) / len(self.target)

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability per target token, in nats."""
        return sum(self.logprobs) / len(self.logprobs)


@dataclass(frozen=True, slots=True)
class ScoredSequence:
    """One token sequence to run.

    Attributes:
        ids: what is fed.
        reads: the positions whose prediction is wanted, ascending.
        asks: for every row read from here its number and, per target token, an index into
            ``positions``.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    asks: tuple[tuple[int, tuple[int, ...]], ...]


def scored_sequences(
    rows: Sequence[Row], owners: Sequence[int] | None = None
) -> list[ScoredSequence]:
    """The fewest sequences that answer all rows of a causal model; the last target is not fed.

    Rows of different ``owners`` (changes of the model that they ask about) share nothing.
    """
    whose = owners or [0] * len(rows)
    inputs = [(whose[i], row.ids[:-1]) for i, row in enumerate(rows)]
    guests: dict[int, list[int]] = {}
    host = -1
    # In this order everything a sequence begins stands right behind it, so its host is the next.
    for i in sorted(range(len(rows)), key=inputs.__getitem__, reverse=True):
        owner, ids = inputs[i]
        if host < 0 or inputs[host][0] != owner or inputs[host][1][: len(ids)] != ids:
            host = i
        guests.setdefault(host, []).append(i)
    return [
        _passage(inputs[host][1], {i: _reads(rows[i]) for i in own}) for host, own in guests.items()
    ]


def _reads(row: Row) -> range:
    return range(row.prompt_length - 1, len(row.ids) - 1)


def _passage(ids: tuple[int, ...], wanted: dict[int, range]) -> ScoredSequence:
    positions = tuple(sorted({read for own in wanted.values() for read in own}))
    place = {read: k for k, read in enumerate(positions)}
    asks = tuple((i, tuple(place[read] for read in own)) for i, own in wanted.items())
    return ScoredSequence(ids, positions, asks)


def batches_by_length(
    lengths: Sequence[int], positions: Sequence[int], most_tokens: int, most_reads: int
) -> Iterator[list[int]]:
    """Indices sorted by length, cut so that a padded chunk keeps to both budgets."""
    chunk: list[int] = []
    read = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        full = (len(chunk) + 1) * lengths[i] > most_tokens or read + positions[i] > most_reads
        if chunk and full:
            yield chunk
            chunk, read = [], 0
        chunk.append(i)
        read += positions[i]
    if chunk:
        yield chunk
