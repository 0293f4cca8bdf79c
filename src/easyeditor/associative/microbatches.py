"""Micro-batches of the value optimisation, as large as a memory budget allows.

The memory of a context row (one context of one edit) depends on the model: its cache, the
activations saved for the backward pass, its logits. It is measured by one pass of the longest row
and used to size the micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise, takewhile
from operator import eq

import torch

from easyeditor.associative.contrast import read_after_subject
from easyeditor.associative.keys import fact_at, subject_of
from easyeditor.associative.windows import Window, read_at, target_row
from easyeditor.edits import Edit, Prompt
from easyeditor.errors import SubjectNotFoundError
from easyeditor.gradients.losses import FIRST, nll_and_kl
from easyeditor.lm.caches import LMCache
from easyeditor.lm.forward.activation_memory import BufferPool
from easyeditor.lm.forward.partial import DeltaForward, EditRow, Site, open_forward
from easyeditor.lm.image_tokens import through_unit
from easyeditor.lm.memory import releasing_memory
from easyeditor.lm.model import LM
from easyeditor.lm.tokens import Row
from easyeditor.subjects import locate_subject

KL_PROMPT = "{} is a"
SUBJECT_PROMPTS = (
    "{} is known for",
    "The name {} comes from",
    "{} belongs to the group of",
    "The first thing people say about {} is",
    "{} was first",
    "In the time of {}, people",
)
"""Beginnings of other statements about a subject: what follows them shall stay as it was."""
OPENING_FACTOR = 1.0
"""What a token of a reply's opening that is not the argmax counts beside the answer behind it."""
PREFILL_PEAK_FACTOR = 3
"""Peak memory of computing the stored states, as a multiple of their size; measured."""


@dataclass(frozen=True, slots=True)
class ContextRow:
    """One context of one edit.

    Attributes:
        edit: number of the edit.
        run: the token sequence.
        target: the target's tokens; without any the reads are compared with those at δ = 0.
        weight: of each read's loss in that of the edit.
        opening: how many of the first reads only begin the reply; those whose token is not the
            argmax have ``opening_weight``, the others none.
    """

    edit: int
    run: EditRow
    target: tuple[int, ...]
    weight: float
    opening: int = 0
    opening_weight: float = 0.0

    @property
    def weights(self) -> list[float]:
        """The weight of each read."""
        answer = len(self.run.reads) - self.opening
        return [self.opening_weight] * self.opening + [self.weight] * answer

    @property
    def wanted(self) -> tuple[int, ...]:
        """What is wanted of the reads: tokens, or ``FIRST`` for the first distributions."""
        return self.target or (FIRST,) * len(self.run.reads)


def context_rows_of(
    lm: LM,
    i: int,
    edit: Edit,
    contexts: Sequence[str],
    kl_factor: float,
    subject_kl_factor: float = 0.0,
    end: int | None = None,
    *,
    append_eos: bool = False,
) -> list[ContextRow]:
    """The rows of edit ``i``: one per context and expansion, and the KL prompts.

    Of the target the tokens before ``end`` are read; None: all.

    All have equal weights, unless the bare prompt is read after its subject
    (:func:`~easyeditor.associative.contrast.read_after_subject`): then it is half of the mean. The
    KL prompt has ``kl_factor``; the prompts of :data:`SUBJECT_PROMPTS`, read at every token from
    the subject on, share ``subject_kl_factor``. Where a factor is 0 they are left out.
    """
    subject = subject_of(edit)
    rows = []
    others = len(contexts) - 1 + len(edit.expansions)
    # δ is added at two kinds of tokens then, after the bare prompt's subject and at the others'.
    halves = others > 0 and read_after_subject(lm, edit)
    for context in contexts:
        parts = others + 1
        if halves:
            parts = 2 if not context else 2 * others
        rows.append(_target_row(lm, i, edit, context, parts, "", end, append_eos=append_eos))
    parts = 2 * others if halves else others + 1
    rows += [
        _target_row(lm, i, other, "", parts, edit.target, append_eos=append_eos)
        for other in edit.expansions
    ]
    if kl_factor:
        row = lm.text.row(_about(edit, KL_PROMPT), subject=subject)
        at = fact_at(lm, row)
        bare = lm.text.row(edit.prompt, subject=subject)
        if not lm.encoder_decoder and fact_at(lm, bare) == bare.subject_last:
            assert row.subject_last is not None
            at = row.subject_last  # a token later only where the edit's prompt is read there, too
        run = (
            EditRow(row.ids, at, (0,), ())
            if lm.encoder_decoder
            else EditRow(row.ids[: through_unit(row.ids, at + 1)], at, (at,))
        )
        rows.append(ContextRow(i, run, (), kl_factor))
    if subject_kl_factor:
        share = subject_kl_factor / len(SUBJECT_PROMPTS)
        rows += [
            _subject_row(lm, i, _about(edit, text), subject, share) for text in SUBJECT_PROMPTS
        ]
    return rows


def _about(edit: Edit, text: str) -> Prompt:
    """The text with the edit's subject; with the last of its images where that is the subject."""
    images = () if edit.subject_words else edit.prompt.images[-1:]
    return Prompt(text.format(subject_of(edit)), images)


def _subject_row(lm: LM, i: int, prompt: Prompt, subject: str, factor: float) -> ContextRow:
    """A text about the subject; its reads share ``factor``."""
    row = lm.text.row(prompt, subject=subject)
    at = fact_at(lm, row)
    if lm.encoder_decoder:
        return ContextRow(i, EditRow(row.ids, at, (0,), ()), (), factor)
    reads = tuple(range(at, len(row.ids)))
    return ContextRow(i, EditRow(row.ids, at, reads), (), factor / len(reads))


def rows_before_window(
    lm: LM,
    i: int,
    edit: Edit,
    window: Window,
    contexts: Sequence[str],
    earlier: Sequence[tuple[Window, torch.Tensor]],
    *,
    append_eos: bool = False,
) -> list[ContextRow]:
    """The rows of a window that is read at the token before it: one per context.

    Args:
        lm: the model.
        i: number of the edit in the rows.
        edit: whose window it is.
        window: not one that is read at the subject.
        contexts: prefixes, the empty one first.
        earlier: the windows before it with their δ, which stays added.
        append_eos: whether the target ends with the end-of-sequence token.
    """
    rows = []
    for context in contexts:
        row = target_row(lm, edit, context, append_eos=append_eos)
        at, end = read_at(lm, row, window), row.prompt_length + window.end
        target = row.ids[at + 1 : end]
        fixed = tuple((read_at(lm, row, other), delta) for other, delta in earlier)
        run = EditRow(row.ids[: end - 1], at, tuple(range(at, end - 1)), fixed=fixed)
        rows.append(ContextRow(i, run, target, 1 / (len(contexts) * len(target))))
    return rows


def _target_row(
    lm: LM,
    i: int,
    edit: Edit,
    context: str,
    parts: int,
    answer: str = "",
    end: int | None = None,
    *,
    append_eos: bool = False,
) -> ContextRow:
    """One context of edit ``i``, which is one of ``parts`` of its loss.

    Where the target ends in ``answer``, what stands before it is how the reply begins: greedy
    generation shall come along there, so each of its tokens counts :data:`OPENING_FACTOR` times
    while it is not the argmax. δ is added at the subject there, too, as the changed weights act at
    both.
    """
    row = target_row(lm, edit, context, append_eos=append_eos)
    if end is not None and end < len(row.target):
        row = replace(row, ids=row.ids[: row.prompt_length + end], target=row.target[:end])
    at = fact_at(lm, row)
    opening, also = _opening_of(lm, edit, row, answer)
    if lm.encoder_decoder:
        run = EditRow(row.ids, at, tuple(range(len(row.target))), row.target)
    else:
        reads = tuple(range(row.prompt_length - 1, len(row.ids) - 1))
        run = EditRow(row.ids[:-1], at, reads, also=also)
    weight = 1 / (parts * (len(row.target) - opening))
    return ContextRow(i, run, row.target, weight, opening, OPENING_FACTOR / parts)


def _opening_of(lm: LM, edit: Edit, row: Row, answer: str) -> tuple[int, tuple[int, ...]]:
    """How many target tokens stand before the answer, and where the subject ends among them."""
    target, answer, subject = edit.target.rstrip(), answer.strip(), subject_of(edit)
    if not answer or not target.endswith(answer) or target.strip() == answer:
        return 0, ()
    opening = target[: -len(answer)].rstrip()
    begun = _common(lm.text.row(edit.prompt, opening, subject=subject).target, row.target[:-1])
    try:
        end = locate_subject(opening, subject).end
    except SubjectNotFoundError:
        return begun, ()
    ids = lm.text.row(edit.prompt, opening[:end], subject=subject).ids
    whole = _common(ids, row.ids) == len(ids)
    return begun, (len(ids) - 1,) if whole and not lm.encoder_decoder else ()


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens two texts share."""
    return sum(1 for _ in takewhile(bool, map(eq, a, b)))


class MicroBatch:
    """Context rows that are run together at every step.

    Attributes:
        rows: those of unfinished edits.
        first: log-probabilities of the KL prompts at δ = 0.
        missed: edits whose target was not the argmax at some position of the last step.
    """

    def __init__(
        self,
        lm: LM,
        site: Site,
        rows: Sequence[ContextRow],
        resume: bool,
        pool: BufferPool | None = None,
    ) -> None:
        self.rows = list(rows)
        runs = [row.run for row in rows]
        self.runs: DeltaForward = open_forward(lm, site, runs, resume=resume, pool=pool)
        self.first: torch.Tensor | None = None
        self.missed: set[int] = set()

    def losses(self, delta: torch.Tensor) -> torch.Tensor:
        """Weighted loss of each row given its vector ``(rows, width)``; differentiable."""
        owner = [i for i, row in enumerate(self.rows) for _ in row.run.reads]
        targets = [t for row in self.rows for t in row.wanted]
        weights = torch.tensor([w for row in self.rows for w in row.weights])
        opens = torch.tensor([k < r.opening for r in self.rows for k in range(len(r.run.reads))])
        logits, wanted = self.runs.logits(delta), torch.tensor(targets, device=delta.device)
        wrong = (logits.detach().argmax(-1).to(wanted.device) != wanted) & (wanted != FIRST)
        self.missed = {self.rows[owner[i]].edit for i in wrong.nonzero()[:, 0].tolist()}
        value, self.first = nll_and_kl(logits, wanted, self.first)
        weights = torch.where(opens & ~wrong.cpu(), 0.0, weights)
        weighted = value * weights.to(value.device)
        index = torch.tensor(owner, device=value.device)
        return value.new_zeros(len(self.rows)).index_add(0, index, weighted)

    def keep(self, alive: set[int]) -> bool:
        """Drop the rows of finished edits; False if none is left."""
        remaining = [i for i, row in enumerate(self.rows) if row.edit in alive]
        if len(remaining) == len(self.rows):
            return True
        if self.first is not None:
            owner = [i for i, row in enumerate(self.rows) for t in row.wanted if t == FIRST]
            self.first = self.first[[k for k, i in enumerate(owner) if i in set(remaining)]]
        if remaining:
            self.runs = self.runs.keep(torch.tensor(remaining))
        self.rows = [self.rows[i] for i in remaining]
        return bool(remaining)


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """Memory of context rows, in bytes.

    Attributes:
        stored: per token whose hidden state, keys and values are kept between steps.
        left: per token that a step runs, for its backward pass.
        read: per position whose logits are read.
        resume: whether steps start from stored states.
    """

    stored: float
    left: float
    read: float
    resume: bool

    @classmethod
    def measured(cls, lm: LM, site: Site, rows: Sequence[ContextRow], resume: bool) -> MemoryModel:
        """Measured by one pass of the longest row; once per model, site and order of length."""
        longest = max((row.run for row in rows), key=lambda run: len(run.ids))
        key = site, resume, len(longest.ids).bit_length()
        measured = MEASURED(lm)
        if key not in measured:
            runs = open_forward(lm, site, [longest], resume=resume)
            width = lm.down_map(site.layer).d_out * len(site.parts())
            logits = runs.logits(torch.zeros(1, width, device=lm.device, requires_grad=True))
            read = logits.shape[-1] * (logits.element_size() + 4)  # and their log-probabilities
            stored, left = runs.stored / max(longest.past, 1), runs.left / longest.tokens(resume)
            measured[key] = cls(stored, left, read, resume)
        return measured[key]

    def storing(self, rows: Sequence[ContextRow]) -> float:
        """Bytes kept between the steps of these rows."""
        return len(rows) * max(row.run.past for row in rows) * self.stored

    def stepping(self, rows: Sequence[ContextRow]) -> float:
        """Bytes that one step of these rows together takes."""
        padded = len(rows) * max(row.run.tokens(self.resume) for row in rows)
        return padded * self.left + sum(len(row.run.reads) for row in rows) * self.read


MEASURED: LMCache[tuple[Site, bool, int], MemoryModel] = LMCache(
    "memory per token of a search; by site, resume, and the order of the length"
)


def groups(
    rows_of_edits: Sequence[list[ContextRow]], costs: MemoryModel, memory: int
) -> Iterator[list[list[ContextRow]]]:
    """Groups of edits of similar length that fit into ``memory`` as one micro-batch.

    An edit that does not fit is a group by itself.
    """
    group: list[list[ContextRow]] = []
    for rows in sorted(rows_of_edits, key=lambda rows: rows[0].run.tokens(costs.resume)):
        together = list(chain.from_iterable([*group, rows]))
        stored = costs.storing(together)
        if group and max(PREFILL_PEAK_FACTOR * stored, stored + costs.stepping(together)) > memory:
            yield group
            group = []
        group.append(rows)
    if group:
        yield group


@releasing_memory
def micro_batches(
    lm: LM, site: Site, rows: Sequence[ContextRow], costs: MemoryModel, memory: int
) -> list[MicroBatch]:
    """The smallest number of equal micro-batches that keep to ``memory``, one at a time."""
    ordered = sorted(rows, key=lambda row: row.run.tokens(costs.resume))
    room = memory - costs.storing(ordered)
    for n in range(1, len(ordered) + 1):
        cuts = [len(ordered) * i // n for i in range(n + 1)]
        parts = [ordered[a:b] for a, b in pairwise(cuts)]
        if max(map(costs.stepping, parts)) <= room:
            break
    pool = BufferPool()
    return [MicroBatch(lm, site, part, costs.resume, pool) for part in parts]
