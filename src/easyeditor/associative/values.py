"""Find what a layer should say: a vector δ that makes the model answer with the target.

Adam on one vector per edit, added at the subject's last token in every context (arXiv 2202.05262,
section 3.1, eq. 4)::

    loss = mean over contexts of −log p(target) + kl · KL(first ‖ now on "{subject} is a")
           + weight_decay · ‖δ‖ / ‖v₀‖²

All edits are searched together; each stops by itself and leaves the batch. Nothing but the vectors
is learnt, so each step is cut into micro-batches and the memory does not grow with the edits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from easyeditor.associative.keys import subject_of, subject_rows, values_at
from easyeditor.edits import Edit
from easyeditor.errors import DivergedError
from easyeditor.lm.model import LM
from easyeditor.lm.resume import Run, Runs, Site, open_runs
from easyeditor.progress import bar

KL_PROMPT = "{} is a"
STOP_LOSS = 5e-2


@dataclass(frozen=True, slots=True)
class Search:
    """Settings of the search; the names are the classic files'.

    ``v_stop_nll`` stops an edit once its mean −log p(target) over the contexts is below it; None is
    the published rule, the whole loss below 0.05, which the KL and decay terms may never allow.
    """

    v_num_grad_steps: int
    v_lr: float
    v_weight_decay: float
    clamp_norm_factor: float
    kl_factor: float
    v_stop_nll: float | None = None


@dataclass(slots=True)
class Found:
    """What the search found.

    Attributes:
        delta: ``(edits, width)``, float32.
        origin: ``(edits, width)``: the module's own output on the bare prompt, v₀.
        losses: the loss of each edit at each step it took.
    """

    delta: torch.Tensor
    origin: torch.Tensor
    losses: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Line:
    """One run with its owner; ``target`` is empty for the KL prompt."""

    edit: int
    run: Run
    target: tuple[int, ...]
    weight: float


def find_values(
    lm: LM,
    site: Site,
    edits: Sequence[Edit],
    contexts: Sequence[str],
    search: Search,
    *,
    resume: bool = True,
    memory: int | None = None,
) -> Found:
    """Search δ for every edit.

    Args:
        lm: the model; its weights are only read.
        site: where δ is added.
        edits: each must name a subject.
        contexts: prefixes, the first of them empty.
        search: the settings.
        resume: False repeats the whole forward pass at every step (the same numbers, slower).
        memory: bytes the search may use beside the model; 19 % of the model by default (at least
            64 MB).

    Raises:
        SubjectRequiredError: an edit has no subject.
        DivergedError: a loss is not a number; nothing was changed.
    """
    if memory is None:
        memory = max(_model_bytes(lm) * 19 // 100, 64 * 2**20)
    bare = [subject_rows(lm, edit, contexts[:1])[0] for edit in edits]
    origin = values_at(lm, site, bare)
    found = Found(torch.zeros_like(origin), origin, [[] for _ in edits])
    lines = [_lines(lm, i, edit, contexts, search) for i, edit in enumerate(edits)]
    total = len(edits) * search.v_num_grad_steps
    with lm.at_rest(), bar(total, "searching values") as progress:
        for group in _groups(lm, lines, memory // 4):
            own = [lines[i] for i in group]
            _search_group(lm, site, own, found, search, resume, memory * 3 // 4, progress)
    return found


def _model_bytes(lm: LM) -> int:
    return sum(p.numel() * p.element_size() for p in lm.model.parameters())


def _lines(lm: LM, i: int, edit: Edit, contexts: Sequence[str], search: Search) -> list[_Line]:
    subject = subject_of(edit)
    lines = []
    for context in contexts:
        row = lm.text.row(edit.prompt, edit.target, subject=subject, prefix=context)
        assert row.subject_last is not None
        reads = tuple(range(row.prompt_length - 1, len(row.ids) - 1))
        run = Run(row.ids[:-1], row.subject_last, reads)
        lines.append(_Line(i, run, row.target, 1 / (len(contexts) * len(row.target))))
    if search.kl_factor:
        row = lm.text.row(KL_PROMPT.format(subject), subject=subject)
        assert row.subject_last is not None
        run = Run(row.ids[: row.subject_last + 1], row.subject_last, (row.subject_last,))
        lines.append(_Line(i, run, (), search.kl_factor))
    return lines


def _bytes_per_token(lm: LM) -> tuple[int, int]:
    """Roughly what one token leaves in the key/value cache, and in a graph for backward."""
    config = lm.model.config.get_text_config()
    projection = lm.projection(0)
    size = projection.parameter.element_size()
    heads = getattr(config, "num_attention_heads", 1)
    share = (getattr(config, "num_key_value_heads", None) or heads) / heads
    cache = int(2 * projection.d_out * share * size)
    graph = size * (16 * projection.d_out + 4 * projection.d_in)
    return cache * lm.n_layers, graph * lm.n_layers


def _groups(lm: LM, lines: Sequence[list[_Line]], memory: int) -> Iterator[list[int]]:
    """Edits whose stored prefixes fit into ``memory`` together."""
    per_token, _ = _bytes_per_token(lm)
    group: list[int] = []
    tokens = 0
    for i, own in enumerate(lines):
        more = sum(len(line.run.ids) for line in own)
        if group and (tokens + more) * per_token > memory:
            yield group
            group, tokens = [], 0
        group.append(i)
        tokens += more
    if group:
        yield group


class _MicroBatch:
    """Some lines of one length class, opened once and stepped many times."""

    def __init__(self, lm: LM, site: Site, lines: Sequence[_Line], resume: bool) -> None:
        self.lines = list(lines)
        self.runs: Runs = open_runs(lm, site, [line.run for line in lines], resume=resume)
        self.first: torch.Tensor | None = None  # log-probabilities of the KL prompts at δ = 0

    def losses(self, delta: torch.Tensor) -> torch.Tensor:
        """Weighted loss of each line given its vector; differentiable."""
        logits = self.runs.logits(delta).float()
        owner = torch.tensor(
            [i for i, line in enumerate(self.lines) for _ in line.run.reads], device=logits.device
        )
        is_kl = torch.tensor([not line.target for line in self.lines], device=logits.device)[owner]
        weight = torch.tensor([line.weight for line in self.lines], device=logits.device)[owner]
        value = logits.new_zeros(len(owner))
        if not is_kl.all():
            targets = torch.tensor([t for line in self.lines for t in line.target])
            value = value.masked_scatter(
                ~is_kl,
                torch.nn.functional.cross_entropy(
                    logits[~is_kl], targets.to(logits.device), reduction="none"
                ),
            )
        if is_kl.any():
            now = logits[is_kl].log_softmax(-1)
            if self.first is None:
                self.first = now.detach()
            value = value.masked_scatter(is_kl, (self.first.exp() * (self.first - now)).sum(-1))
        return logits.new_zeros(len(self.lines)).index_add(0, owner, value * weight)

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


def _micro_batches(
    lm: LM, site: Site, lines: Sequence[_Line], resume: bool, memory: int
) -> list[_MicroBatch]:
    _, per_token = _bytes_per_token(lm)
    vocabulary = lm.model.config.get_text_config().vocab_size
    per_read = 12 * vocabulary  # logits, their log-softmax and its gradient, float32

    def tokens(line: _Line) -> int:
        return len(line.run.ids) - (line.run.at if resume else 0)

    batches: list[list[_Line]] = []
    used = memory
    for line in sorted(lines, key=tokens):
        cost = tokens(line) * per_token + len(line.run.reads) * per_read
        if used + cost > memory:
            batches.append([])
            used = 0
        batches[-1].append(line)
        used += cost
    return [_MicroBatch(lm, site, batch, resume) for batch in batches]


def _search_group(
    lm: LM,
    site: Site,
    lines: Sequence[list[_Line]],
    found: Found,
    search: Search,
    resume: bool,
    memory: int,
    progress: Any,
) -> None:
    members = [own[0].edit for own in lines]
    slot = {edit: i for i, edit in enumerate(members)}
    origin = found.origin[members]
    size = origin.norm(dim=1)
    deltas = [torch.zeros_like(row, requires_grad=True) for row in origin]
    adam = torch.optim.Adam(deltas, lr=search.v_lr)
    batches = _micro_batches(lm, site, [line for own in lines for line in own], resume, memory)
    alive = set(members)
    for step in range(search.v_num_grad_steps):
        adam.zero_grad(set_to_none=True)
        total = dict.fromkeys(alive, 0.0)
        nll = dict.fromkeys(alive, 0.0)
        for batch in batches:
            delta = torch.stack([deltas[slot[line.edit]] for line in batch.lines])
            each = batch.losses(delta)
            each.sum().backward()  # type: ignore[no-untyped-call]
            for line, loss in zip(batch.lines, each.tolist(), strict=True):
                total[line.edit] += loss
                nll[line.edit] += loss if line.target else 0.0
        for edit in alive:
            at = slot[edit]
            decay = search.v_weight_decay * deltas[at].norm() / size[at] ** 2
            decay.backward()
            total[edit] += decay.item()
            found.losses[edit].append(total[edit])
        wrong = [edit for edit in alive if total[edit] != total[edit] or abs(total[edit]) > 1e30]
        if wrong:
            raise DivergedError(
                f"The loss of edit {wrong[0]} became {total[wrong[0]]} at step {step}; the model "
                "is unchanged. Lower v_lr, or load the model in float32 or bfloat16."
            )
        last = step == search.v_num_grad_steps - 1
        enough = total if search.v_stop_nll is None else nll
        limit = STOP_LOSS if search.v_stop_nll is None else search.v_stop_nll
        finished = {edit for edit in alive if last or enough[edit] < limit}
        progress.update(len(alive) + len(finished) * (search.v_num_grad_steps - step - 1))
        for edit in finished:
            deltas[slot[edit]].grad = None
        adam.step()
        alive -= finished
        if not alive:
            break
        if finished:
            batches = [batch for batch in batches if batch.keep(alive)]
        with torch.no_grad():
            for edit in alive:
                longest = search.clamp_norm_factor * size[slot[edit]]
                norm = deltas[slot[edit]].norm()
                if norm > longest:
                    deltas[slot[edit]].mul_(longest / norm)
    for edit in members:
        found.delta[edit] = deltas[slot[edit]].detach()
