"""Which layer of a model to edit, and with which search: successive halving over few facts.

Facts that the model knows are edited at a few layers spread over its lower half, then at the best
three and their neighbours with more facts, then at the best two with all. Where edits do not take
with the method's first search settings, those with more reach are tried. The choice is made by
graded scores: with few facts, counts are coarse.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from easyeditor.bench.sweep import Candidate, LayerSweep, SweepRow
from easyeditor.editors.layer_choice import LayerChoice, plan_of, write_choice
from easyeditor.edits import Case
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.progress import bar
from easyeditor.second_moments.corpus import SHIPPED

ROUNDS = ((6, 4), (5, 8), (2, 16))
"""Layers and facts of each round; a round's facts are the first ones of the next."""
KEPT = 3
"""Layers of the first round that are in the second, beside their neighbours."""
FACTS = ROUNDS[-1][1]
TAKES, FOLLOWS = 0.9, 0.7
"""Efficacy and paraphrase scores below which edits do not take: searches with more reach follow."""
BETTER = 0.01
"""Another search must be better than the first by so much of S."""
IN_ONE_PASS = 0.5
"""Moments of all candidates are collected in one pass if they take this share of the model."""


def choose_layers(
    lm: LM,
    method: str,
    facts: Sequence[Case],
    *,
    text: str = SHIPPED,
    folder: Path | None = None,
    keep: bool = True,
) -> LayerChoice:
    """Sweep over the layers of ``lm`` for ``method`` on ``facts``; the choice is cached.

    Args:
        lm: the model, without patches; it is bit-identical afterwards.
        method: whose layers; the sweep is made with the probe of its plan, so methods that share
            a probe share the result.
        facts: that the model knows; the first 16 are used.
        text: for the second moments; by default what ships with the package.
        folder: of unfinished sweeps; by default in the user's cache.
        keep: whether the choice is written to the user's cache.

    Raises:
        BenchError: see :class:`LayerSweep`.
    """
    start = time.monotonic()
    plan = plan_of(METHODS.get(method).hyperparams_class)
    probe = method if plan is None else plan.probe
    sweep = LayerSweep(lm, probe, facts[:FACTS], text=text, folder=folder)
    windows = sweep.windows()
    rows: dict[Candidate, SweepRow] = {}
    measured: dict[Candidate, SweepRow] = {}
    planned = _planned(len(windows), len(sweep.facts), sweep.plan.together)
    with bar(planned, f"sweep over the layers of {lm.name}", "edit", at_once=True) as progress:
        tried = [Candidate(window) for window in _spread(windows, ROUNDS[0][0])]
        if _fit_in_one_pass(sweep, windows):
            sweep.collect_moments(windows)
        else:
            sweep.collect_moments([candidate.layers for candidate in tried])
        for number, (n_layers, n_facts) in enumerate(ROUNDS):
            if number:
                best = sorted(rows, key=lambda c: rows[c].graded, reverse=True)
                tried = _next_candidates(best, windows, n_layers, refine=number == 1)
            rows = {c: sweep.row(c, n_facts, progress) for c in tried}
            if number == 0:
                rows |= _with_more_reach(sweep, rows, n_facts, progress)
            measured |= rows
        best = sorted(rows, key=lambda c: rows[c].graded)
        winner = _checked(sweep, best[-1], progress)
        if winner not in measured:
            measured[winner] = sweep.row(winner, ROUNDS[1][1], progress)
    ordered = sorted(measured, key=lambda c: (c == winner, c.layers, c.search))
    sweep.keep_moments(winner.layers)
    chosen = sweep.settings(winner, context_template_length_params=sweep.plan.contexts)
    settings = {
        name: value
        for name, value in chosen.model_dump(mode="json", exclude_unset=True).items()
        if name != "alg_name"
    }
    choice = LayerChoice(
        lm.name,
        sweep.plan.probe,
        settings,
        [asdict(measured[candidate]) for candidate in ordered],
        [case.id for case in sweep.facts],
        round(time.monotonic() - start, 1),
        time.strftime("%Y-%m-%d"),
    )
    if keep:
        write_choice(lm, choice)
    sweep.finish()
    return choice


def _planned(windows: int, facts: int, together: bool) -> int:
    """Edits of all rounds; facts that a layer was measured on are not edited there again."""
    total = before = 0
    for number, (n, k) in enumerate(ROUNDS):
        n, k = min(n, windows), min(k, facts)
        again = 0 if number == 0 or together else min(n, KEPT)
        total += again * max(0, k - before) + (n - again) * k
        before = k
    return total


def _spread(windows: Sequence[tuple[int, ...]], n: int) -> list[tuple[int, ...]]:
    """``n`` of the windows, the first and the last among them, evenly."""
    if len(windows) <= n:
        return list(windows)
    return [windows[round(i * (len(windows) - 1) / (n - 1))] for i in range(n)]


def _next_candidates(
    best: Sequence[Candidate], windows: Sequence[tuple[int, ...]], n: int, *, refine: bool
) -> list[Candidate]:
    """The best ones; with ``refine`` also what lies next to the best two and was not tried."""
    if not refine:
        return list(best[:n])
    result = list(best[:KEPT])
    tried = {candidate.layers for candidate in best}
    for candidate in best[:2]:
        i = windows.index(candidate.layers)
        for near in windows[max(0, i - 1) : i + 2]:
            if near not in tried and len(result) < n:
                tried.add(near)
                result.append(Candidate(near, candidate.search))
    return result


def _with_more_reach(
    sweep: LayerSweep, rows: dict[Candidate, SweepRow], n: int, progress: Any
) -> dict[Candidate, SweepRow]:
    """Where no layer's edits take with the first search, every layer with the others."""
    if any(_takes(row) for row in rows.values()):
        return {}
    result: dict[Candidate, SweepRow] = {}
    for search in range(1, len(sweep.plan.searches)):
        more = [Candidate(candidate.layers, search) for candidate in rows]
        progress.total += n * len(more)
        result |= {candidate: sweep.row(candidate, n, progress) for candidate in more}
    return result


def _checked(sweep: LayerSweep, winner: Candidate, progress: Any) -> Candidate:
    """The winner as it will be used; with another search if it does not take and that is better.

    While layers are compared, edits have fewer prefixes and no divergence term.
    """
    used, n = sweep.as_used(), ROUNDS[1][1]

    def row(candidate: Candidate) -> SweepRow:
        progress.total += min(n, len(sweep.facts))
        return used.row(candidate, n, progress)

    best = row(winner)
    if not _takes(best):
        for search in range(len(sweep.plan.searches)):
            other = Candidate(winner.layers, search)
            if other != winner and (scores := row(other)).graded > best.graded + BETTER:
                winner, best = other, scores
    used.finish()
    return winner


def _takes(row: SweepRow) -> bool:
    return row.ES >= TAKES and (row.PS is None or row.PS >= FOLLOWS)


def _fit_in_one_pass(sweep: LayerSweep, windows: Sequence[tuple[int, ...]]) -> bool:
    layers = {layer for window in windows for layer in window}
    numbers = sum(sweep.column.projection(layer).d_in ** 2 for layer in layers)
    return numbers <= IN_ONE_PASS * sum(p.numel() for p in sweep.lm.model.parameters())
