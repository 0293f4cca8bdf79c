"""Plans the forward passes that score many (prompt, answer) rows: each token sequence is run once.

Rows of one prompt share its tokens, and a sequence that is a prefix of a longer one is read from
that one: with causal attention later tokens do not change a prediction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from easyeditor.lm.tokens import Row


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Scores of one target under teacher forcing: tokens, log-probabilities, argmaxes."""

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
        ids: its tokens.
        positions: the positions whose logits are read, ascending.
        rows: for every row that is read from this sequence its number and, per target token, an
            index into ``positions``.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    rows: tuple[tuple[int, tuple[int, ...]], ...]


def scored_sequences(
    rows: Sequence[Row],
    patch_of_row: Sequence[int] | None = None,
    *,
    by_prompt: bool = False,
) -> list[ScoredSequence]:
    """The smallest set of sequences that scores all rows of a causal model.

    The last target token is not run.

    Args:
        rows: prompts with targets.
        patch_of_row: the patch of each row; rows of different patches share nothing.
        by_prompt: share sequences only between rows whose prompts end at the same token, because
            adapters decide by where a prompt ends.
    """
    patches = patch_of_row or [0] * len(rows)
    keys = [
        (patches[i], row.prompt_length if by_prompt else 0, row.ids[:-1])
        for i, row in enumerate(rows)
    ]
    members: dict[int, list[int]] = {}
    host = -1
    # In this order every sequence follows directly after those it is a prefix of.
    for i in sorted(range(len(rows)), key=keys.__getitem__, reverse=True):
        *group, ids = keys[i]
        if host < 0 or list(keys[host][:2]) != group or keys[host][2][: len(ids)] != ids:
            host = i
        members.setdefault(host, []).append(i)
    return [
        _sequence(keys[host][2], {i: _target_positions(rows[i]) for i in group})
        for host, group in members.items()
    ]


def _target_positions(row: Row) -> range:
    return range(row.prompt_length - 1, len(row.ids) - 1)


def _sequence(ids: tuple[int, ...], wanted: dict[int, range]) -> ScoredSequence:
    positions = tuple(sorted({position for span in wanted.values() for position in span}))
    place = {position: k for k, position in enumerate(positions)}
    rows = tuple((i, tuple(place[position] for position in span)) for i, span in wanted.items())
    return ScoredSequence(ids, positions, rows)


def batches_by_length(
    lengths: Sequence[int], positions: Sequence[int], most_tokens: int, most_reads: int
) -> Iterator[list[int]]:
    """Batches of indices, sorted by length, within a budget of padded tokens and one of reads."""
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


def split_by_length(lengths: Sequence[int], batch_cost: int) -> list[list[int]]:
    """Groups of indices, sorted by length, with the fewest padded tokens and costs of a batch.

    A group costs its rows times its greatest length, and ``batch_cost`` tokens.
    """
    distinct = sorted(set(lengths))
    of_length: dict[int, list[int]] = {length: [] for length in distinct}
    for i, length in enumerate(lengths):
        of_length[length].append(i)
    rows = [0]  # how many are shorter than each
    for length in distinct:
        rows.append(rows[-1] + len(of_length[length]))
    cheapest, begins = [0], [0]  # of all shorter than each length: the cost, the last group's start
    for end, length in enumerate(distinct, 1):
        cost, begin = min(
            (cheapest[begin] + (rows[end] - rows[begin]) * length + batch_cost, begin)
            for begin in range(end)
        )
        cheapest.append(cost)
        begins.append(begin)
    groups: list[list[int]] = []
    end = len(distinct)
    while end:
        begin = begins[end]
        groups.append([i for length in distinct[begin:end] for i in of_length[length]])
        end = begin
    return groups[::-1]


def row_batches(rows: Sequence[Row], most_tokens: int, most_reads: int) -> Iterator[list[int]]:
    """:func:`batches_by_length` for rows, each read at its target's tokens."""
    lengths, reads = [len(row.ids) for row in rows], [len(row.target) for row in rows]
    return batches_by_length(lengths, reads, most_tokens, most_reads)
