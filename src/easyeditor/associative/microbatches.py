"""The search's micro-batches: as large as the memory allows, measured instead of guessed.

What a line (one context of one edit) costs hangs on the model: its cache, what a token leaves for
the backward pass, its logits. One pass of the longest line tells, and the others are cut by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from easyeditor.associative.contrast import read_after_subject
from easyeditor.associative.keys import fact_at, subject_of
from easyeditor.edits import Edit
from easyeditor.gradients.losses import FIRST, nll_and_kl
from easyeditor.lm.caches import LMCache
from easyeditor.lm.forward.activation_memory import BufferPool
from easyeditor.lm.forward.partial import DeltaForward, EditRow, Site, open_forward
from easyeditor.lm.model import LM

KL_PROMPT = "{} is a"
PREFILL_PEAK_FACTOR = 3
"""What storing the past takes for a moment, in units of what is stored; measured."""


@dataclass(frozen=True, slots=True)
class ContextRow:
    """One run with its owner; ``target`` is empty for the KL prompt."""

    edit: int
    run: EditRow
    target: tuple[int, ...]
    weight: float


def context_rows_of(
    lm: LM, i: int, edit: Edit, contexts: Sequence[str], kl_factor: float
) -> list[ContextRow]:
    """The rows of edit ``i``: one per context, and the KL prompt if it counts.

    The contexts count alike, unless the bare prompt is read after its subject
    (:func:`~easyeditor.associative.contrast.read_after_subject`): then it is half of the mean.
    """
    subject = subject_of(edit)
    lines = []
    # δ is added at two kinds of tokens then, after the bare prompt's subject and at the others'.
    halves = len(contexts) > 1 and read_after_subject(lm, edit)
    for context in contexts:
        row = lm.text.row(edit.prompt, edit.target, subject=subject, prefix=context)
        at = fact_at(lm, row)
        if lm.encoder_decoder:
            run = EditRow(row.ids, at, tuple(range(len(row.target))), row.target)
        else:
            reads = tuple(range(row.prompt_length - 1, len(row.ids) - 1))
            run = EditRow(row.ids[:-1], at, reads)
        parts = len(contexts)
        if halves:
            parts = 2 if not context else 2 * (len(contexts) - 1)
        lines.append(ContextRow(i, run, row.target, 1 / (parts * len(row.target))))
    if kl_factor:
        row = lm.text.row(KL_PROMPT.format(subject), subject=subject)
        at = fact_at(lm, row)
        bare = lm.text.row(edit.prompt, subject=subject)
        if not lm.encoder_decoder and fact_at(lm, bare) == bare.subject_last:
            assert row.subject_last is not None
            at = row.subject_last  # a token later only where the edit's prompt is read there, too
        said = (
            EditRow(row.ids, at, (0,), ())
            if lm.encoder_decoder
            else EditRow(row.ids[: at + 1], at, (at,))
        )
        lines.append(ContextRow(i, said, (), kl_factor))
    return lines


class MicroBatch:
    """Some lines, opened once and stepped many times."""

    def __init__(
        self,
        lm: LM,
        site: Site,
        lines: Sequence[ContextRow],
        resume: bool,
        pool: BufferPool | None = None,
    ) -> None:
        self.lines = list(lines)
        runs = [line.run for line in lines]
        self.runs: DeltaForward = open_forward(lm, site, runs, resume=resume, pool=pool)
        self.first: torch.Tensor | None = None  # log-probabilities of the KL prompts at δ = 0
        self.missed: set[int] = set()

    def losses(self, delta: torch.Tensor) -> torch.Tensor:
        """Weighted loss of each line given its vector ``(lines, width)``; differentiable.

        After it ``missed`` holds the edits whose target was not the argmax somewhere.
        """
        owner = [i for i, line in enumerate(self.lines) for _ in line.run.reads]
        targets = [t for line in self.lines for t in line.target or (FIRST,)]
        weight = [self.lines[i].weight for i in owner]
        logits, wanted = self.runs.logits(delta), torch.tensor(targets, device=delta.device)
        wrong = (logits.detach().argmax(-1).to(wanted.device) != wanted) & (wanted != FIRST)
        self.missed = {self.lines[owner[i]].edit for i in wrong.nonzero()[:, 0].tolist()}
        value, self.first = nll_and_kl(logits, wanted, self.first)
        weighted = value * torch.tensor(weight, device=value.device)
        index = torch.tensor(owner, device=value.device)
        return value.new_zeros(len(self.lines)).index_add(0, index, weighted)

    def keep(self, alive: set[int]) -> bool:
        """Drop the lines of finished edits; False once nothing is left."""
        rows = [i for i, line in enumerate(self.lines) if line.edit in alive]
        if len(rows) == len(self.lines):
            return True
        if self.first is not None:
            order = [i for i, line in enumerate(self.lines) if not line.target]
            self.first = self.first[[order.index(i) for i in rows if i in order]]
        if rows:
            self.runs = self.runs.keep(torch.tensor(rows))
        self.lines = [self.lines[i] for i in rows]
        return bool(rows)


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """What lines take, in bytes.

    ``stored`` per token whose state is kept, which only ``resume`` does not run again; ``left`` by
    every token that is; ``read`` per logits read.
    """

    stored: float
    left: float
    read: float
    resume: bool

    @classmethod
    def measured(cls, lm: LM, site: Site, lines: Sequence[ContextRow], resume: bool) -> MemoryModel:
        """By one forward pass of the longest line; once per model, place and order of length."""
        longest = max((line.run for line in lines), key=lambda run: len(run.ids))
        key = site, resume, len(longest.ids).bit_length()
        measured = MEASURED(lm)
        if key not in measured:
            runs = open_forward(lm, site, [longest], resume=resume)
            width = lm.down_map(site.layer).d_out
            logits = runs.logits(torch.zeros(1, width, device=lm.device, requires_grad=True))
            read = logits.shape[-1] * (logits.element_size() + 4)  # and their log-probabilities
            stored, left = runs.stored / max(longest.past, 1), runs.left / longest.tokens(resume)
            measured[key] = cls(stored, left, read, resume)
        return measured[key]

    def storing(self, lines: Sequence[ContextRow]) -> float:
        """What these lines keep between steps."""
        return len(lines) * max(line.run.past for line in lines) * self.stored

    def stepping(self, lines: Sequence[ContextRow]) -> float:
        """What one step of these lines together takes."""
        padded = len(lines) * max(line.run.tokens(self.resume) for line in lines)
        return padded * self.left + sum(len(line.run.reads) for line in lines) * self.read


MEASURED: LMCache[tuple[Site, bool, int], MemoryModel] = LMCache(
    "memory per token of a search; by site, resume, and the order of the length"
)


def groups(
    lines: Sequence[list[ContextRow]], costs: MemoryModel, memory: int
) -> Iterator[list[list[ContextRow]]]:
    """Edits of like length that fit into ``memory`` as one micro-batch; a larger one is alone."""
    group: list[list[ContextRow]] = []
    for own in sorted(lines, key=lambda own: own[0].run.tokens(costs.resume)):
        together = [line for each in [*group, own] for line in each]
        stored = costs.storing(together)
        if group and max(PREFILL_PEAK_FACTOR * stored, stored + costs.stepping(together)) > memory:
            yield group
            group = []
        group.append(own)
    if group:
        yield group


def micro_batches(
    lm: LM, site: Site, lines: Sequence[ContextRow], costs: MemoryModel, memory: int
) -> list[MicroBatch]:
    """The fewest equal micro-batches that keep to ``memory`` one at a time."""
    ordered = sorted(lines, key=lambda line: line.run.tokens(costs.resume))
    room = memory - costs.storing(ordered)
    for n in range(1, len(ordered) + 1):
        cuts = [len(ordered) * i // n for i in range(n + 1)]
        parts = [ordered[a:b] for a, b in pairwise(cuts)]
        if max(map(costs.stepping, parts)) <= room:
            break
    pool = BufferPool()
    return [MicroBatch(lm, site, part, costs.resume, pool) for part in parts]
