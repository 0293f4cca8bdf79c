"""Optimises ``v* = v₀ + δ`` for a batch of edits: the layer output that gives the target.

Adam on one vector δ per edit, added at the subject's last token in every context and expansion
(ROME, arXiv 2202.05262, section 3.1, eq. 4)::

    loss = mean over contexts of −log p(target) + kl · KL(first ‖ now on "{subject} is a")
           + weight_decay · ‖δ‖ / ‖v₀‖²
           + continuation_kl · KL(first ‖ now behind the target)

Where an expansion's target begins a reply with words of its own, those that are not the argmax are
a further term. The divergence behind the target is not in the paper and
off by default (:mod:`easyeditor.associative.continuation`). All edits are optimised together; each
has its own stopping rule and then leaves the batch. Each step is computed in micro-batches that add
up their gradients, so memory does not grow with the number of edits.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import Any

import torch
from torch.nn.functional import normalize

from easyeditor.associative.continuation import continuation_rows
from easyeditor.associative.contrast import read_after_subject
from easyeditor.associative.keys import expansion_rows, subject_rows, values_at
from easyeditor.associative.microbatches import (
    ContextRow,
    MemoryModel,
    context_rows_of,
    groups,
    micro_batches,
    rows_before_window,
)
from easyeditor.associative.windows import Window, window_rows
from easyeditor.edits import Edit
from easyeditor.errors import DivergedError
from easyeditor.lm.forward.partial import Site
from easyeditor.lm.memory import give_back, releasing_memory, room
from easyeditor.lm.model import LM
from easyeditor.progress import bar

STOP_LOSS = 5e-2


@dataclass(frozen=True, slots=True)
class ValueOptions:
    """Settings of the optimisation, under their names in the classic files.

    ``v_stop_nll`` stops an edit once its mean −log p(target) over the contexts is below it; None is
    the published rule, the whole loss below 0.05, which the KL and decay terms may never allow.
    ``v_stop_argmax`` also stops it once every target token is the argmax in every context, which
    saves about half of the steps and gives the answer a lower probability.
    ``continuation_kl_factor`` weighs the mean divergence of ``continuation_tokens`` next-token
    distributions behind the target from those of the model before the edit. Once every target
    token of an edit was the argmax at the step before, its −log p(target) is weighed by
    ``argmax_nll_factor``, and it stops when its weighted KL is at most ``argmax_stop_kl`` (None:
    it does not). ``subject_kl_factor`` weighs the mean divergence behind the beginnings of other
    statements about the subject. With ``append_eos`` the end-of-sequence token is the target's
    last.
    """

    v_num_grad_steps: int
    v_lr: float
    v_weight_decay: float
    clamp_norm_factor: float
    kl_factor: float
    v_stop_nll: float | None = None
    v_stop_argmax: bool = False
    continuation_kl_factor: float = 0.0
    continuation_tokens: int = 8
    argmax_nll_factor: float = 1.0
    argmax_stop_kl: float | None = None
    subject_kl_factor: float = 0.0
    append_eos: bool = False


@dataclass(slots=True)
class OptimizedValues:
    """The optimised vectors of a batch of edits; with windows one for each of these.

    Attributes:
        delta: δ, ``(edits, width)``, float32; of a site of two parts both, one behind the other.
        origin: v₀, ``(edits, width)``: the module's output on the bare prompt.
        losses: the loss of each edit at each of its steps.
    """

    delta: torch.Tensor
    origin: torch.Tensor
    losses: list[list[float]] = field(default_factory=list)

    def rows(self, numbers: Sequence[int]) -> OptimizedValues:
        """Those of some edits or windows."""
        losses = [self.losses[n] for n in numbers]
        return OptimizedValues(self.delta[numbers], self.origin[numbers], losses)


def optimize_values(
    lm: LM,
    site: Site,
    edits: Sequence[Edit],
    contexts: Sequence[str],
    search: ValueOptions,
    *,
    resume: bool = True,
    memory: int | None = None,
    windows: Sequence[Window] | None = None,
) -> OptimizedValues:
    """Optimise δ for every edit, or for each window of their targets.

    Args:
        lm: the model; its weights are only read.
        site: where δ is added.
        edits: each must name a subject; δ is added in an edit's expansions, too.
        contexts: prefixes, the first of them empty.
        search: the settings.
        resume: False runs the whole forward pass at every step (the same numbers, slower).
        memory: budget in bytes beside the model; by default 18 % of the model for one edit and
            14 % for several, whose groups fragment the heap (at least 32 MB).
        windows: of :func:`~easyeditor.associative.windows.windows_of`; by default each target is
            one, read at the subject. Those with the same number of windows before them are
            optimised together, after these, whose δ stay added.

    Raises:
        SubjectRequiredError: an edit that is read at its subject has none.
        DivergedError: a loss is not a number; nothing was changed.
    """
    if memory is None:
        memory = room(lm, 18 if len(edits) == 1 else 14)
    whole = [Window(i, 0, sys.maxsize, True) for i in range(len(edits))]
    every = whole if windows is None else list(windows)
    results: list[OptimizedValues] = []
    before: list[list[tuple[Window, torch.Tensor]]] = [[] for _ in edits]
    for _, some in groupby(every, key=lambda window: window.first):
        together = list(some)
        result = _optimize_windows(
            lm, site, edits, together, before, contexts, search, resume=resume, memory=memory
        )
        for window, delta in zip(together, result.delta, strict=True):
            before[window.edit].append((window, delta))
        results.append(result)
    if len(results) == 1:
        return results[0]
    return OptimizedValues(
        torch.cat([result.delta for result in results]),
        torch.cat([result.origin for result in results]),
        [losses for result in results for losses in result.losses],
    )


def _optimize_windows(
    lm: LM,
    site: Site,
    all_edits: Sequence[Edit],
    windows: Sequence[Window],
    before: Sequence[Sequence[tuple[Window, torch.Tensor]]],
    contexts: Sequence[str],
    search: ValueOptions,
    *,
    resume: bool,
    memory: int,
) -> OptimizedValues:
    """δ of one window of each of several edits, with those ``before`` added."""
    edits = [all_edits[window.edit] for window in windows]
    eos = search.append_eos
    bare = [
        window_rows(lm, edit, window, contexts[:1], append_eos=eos)[0]
        for edit, window in zip(edits, windows, strict=True)
    ]
    parts = site.parts()
    origins = [values_at(lm, part, bare) for part in parts]
    origin = origins[0] if len(origins) == 1 else torch.cat(origins, 1)
    norms = torch.cat([some.norm(dim=1, keepdim=True) for some in origins], 1)
    for i, (edit, window) in enumerate(zip(edits, windows, strict=True)):
        rows_elsewhere = window.at_subject and (len(contexts) > 1 or edit.expansions)
        if rows_elsewhere and read_after_subject(lm, edit):  # v₀ of " is" may be small
            others = subject_rows(lm, edit, contexts[1:]) + expansion_rows(lm, edit)
            for j, part in enumerate(parts):
                elsewhere = values_at(lm, part, others)
                norms[i, j] = torch.maximum(norms[i, j], elsewhere.norm(dim=1).mean())
    result = OptimizedValues(torch.zeros_like(origin), origin, [[] for _ in edits])
    rows = [
        context_rows_of(
            lm,
            i,
            edit,
            contexts,
            search.kl_factor,
            search.subject_kl_factor,
            window.end,
            append_eos=eos,
        )
        if window.at_subject
        else rows_before_window(lm, i, edit, window, contexts, before[window.edit], append_eos=eos)
        for i, (edit, window) in enumerate(zip(edits, windows, strict=True))
    ]
    if search.continuation_kl_factor:
        for following in continuation_rows(
            lm, edits, search.continuation_kl_factor, search.continuation_tokens
        ):
            rows[following.edit].append(following)
    total = len(edits) * search.v_num_grad_steps
    with lm.at_rest(), bar(total, "optimising values") as progress:
        costs = MemoryModel.measured(lm, site, list(chain.from_iterable(rows)), resume)
        for group in groups(rows, costs, memory):
            _optimize_group(lm, site, group, result, norms, search, costs, memory, progress)
    return result


@releasing_memory
def _optimize_group(
    lm: LM,
    site: Site,
    rows_of_edits: Sequence[list[ContextRow]],
    result: OptimizedValues,
    norms: torch.Tensor,
    search: ValueOptions,
    costs: MemoryModel,
    memory: int,
    progress: Any,
) -> None:
    """Optimise the edits of one group and write their δ and losses into ``result``."""
    members = [rows[0].edit for rows in rows_of_edits]
    slot = {edit: i for i, edit in enumerate(members)}
    size = norms[members]
    delta = torch.zeros_like(result.origin[members])
    adam = torch.optim.Adam([delta], lr=search.v_lr, foreach=False)
    batches = micro_batches(lm, site, list(chain.from_iterable(rows_of_edits)), costs, memory)
    alive, right = set(members), set[int]()
    for step in range(search.v_num_grad_steps):
        decay = search.v_weight_decay / size**2
        total = dict(zip(members, (decay * _norms(delta, size)).sum(1).tolist(), strict=True))
        gradient = (decay[..., None] * normalize(_by_part(delta, size), dim=2, eps=1e-30)).flatten(
            1
        )
        nll, kl = dict.fromkeys(alive, 0.0), dict.fromkeys(alive, 0.0)
        missed: set[int] = set()
        for batch in batches:
            owner = torch.tensor([slot[row.edit] for row in batch.rows], device=delta.device)
            vectors = delta[owner].requires_grad_()
            losses = batch.losses(vectors)
            weights = [
                search.argmax_nll_factor if row.target and row.edit in right else 1.0
                for row in batch.rows
            ]
            weighted = losses if not right else losses * losses.new_tensor(weights)
            weighted.sum().backward()  # type: ignore[no-untyped-call]
            assert vectors.grad is not None
            gradient.index_add_(0, owner, vectors.grad)
            missed |= batch.missed
            for row, loss in zip(batch.rows, losses.tolist(), strict=True):
                total[row.edit] += loss
                (nll if row.target else kl)[row.edit] += loss
        for edit in alive:
            result.losses[edit].append(total[edit])
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
        right = alive - missed if search.argmax_nll_factor != 1 else set()
        if search.v_stop_argmax:
            finished |= alive - missed
        if search.argmax_stop_kl is not None:
            finished |= {edit for edit in alive - missed if kl[edit] <= search.argmax_stop_kl}
        progress.update(len(alive) + len(finished) * (search.v_num_grad_steps - step - 1))
        alive -= finished
        if not alive:
            break
        if finished:
            give_back()  # before what remains of the batches is copied
            batches = [batch for batch in batches if batch.keep(alive)]
        moving = torch.tensor([slot[edit] for edit in sorted(alive)], device=delta.device)
        stopped, delta.grad = delta.clone(), gradient
        adam.step()  # of all rows: those that have stopped are put back
        changed = _by_part(delta[moving], size)
        longest = (search.clamp_norm_factor * size[moving])[..., None]
        norm = changed.norm(dim=2, keepdim=True)
        delta.copy_(stopped)
        clamped = torch.where(norm > longest, changed * (longest / norm), changed)
        delta[moving] = clamped.flatten(1)
    result.delta[members] = delta


def _by_part(delta: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """``(edits, width of all parts)`` as ``(edits, parts, width)``; ``size`` has a column each."""
    return delta.view(len(delta), size.shape[1], -1)


def _norms(delta: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """The length of each part, ``(edits, parts)``."""
    return _by_part(delta, size).norm(dim=2)
