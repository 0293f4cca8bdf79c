"""One piece of a run, done on one model: ask the unedited model, edit and measure, measure all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

from easyeditor.bench.config import BenchmarkConfig, CaseRange
from easyeditor.bench.observations import to_json
from easyeditor.editors.apply_method import check_request, make_patch
from easyeditor.editors.metric_recorder import request_of
from easyeditor.edits import Case
from easyeditor.errors import DivergedError
from easyeditor.evaluate.change import Peak, peak_memory, sizes
from easyeditor.evaluate.metrics import summarise
from easyeditor.evaluate.query import (
    Measures,
    Replies,
    observe,
    observe_each,
    texts_of,
)
from easyeditor.evaluate.scorers import scorers
from easyeditor.lm.fingerprint import fingerprint
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.methods.base import Method
from easyeditor.patches.patch import Patch, merge, versions
from easyeditor.patches.stack import applied

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is asked to do; ``total`` is what a sequence has changed so far."""

    kind: Literal["before", "edit", "final", "downstream"]
    unit: CaseRange
    total: Patch | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it; ``total`` holds the edits of this task and, in a sequence, all before."""

    records: list[Record]
    total: Patch | None = None


@dataclass(frozen=True, slots=True)
class _Made:
    """What one call of a method gave, and took: seconds per case, memory; or why it failed."""

    patch: Patch | None
    spent: float
    peak: Peak | None
    error: str


class Worker:
    """A model and the methods of a run. Between two tasks the model is unedited, bit for bit."""

    def __init__(self, lm: LM, plan: BenchmarkConfig) -> None:
        self._lm, self._plan = lm, plan
        self._methods = {
            label: METHODS.get(settings.alg_name)(settings)
            for label, settings in plan.methods.items()
        }
        self._scorers = scorers(plan.measures, plan.cases)
        self._ready: set[str] = set()
        self._before: Replies | None = None

    def set_baseline(self, before: Replies) -> None:
        """What the unedited model said; needed before anything is edited."""
        self._before = before

    def run_task(self, task: Task) -> Result:
        """Carry out one task."""
        if task.kind == "before":
            seen = observe(self._lm, self._cases(task.unit), self._measures(task.unit.number == 0))
            return Result([{"chunk": task.unit.number, **to_json(seen)}])
        if task.kind == "edit":
            return self._edit(task.unit, task.total)
        if task.kind == "final":
            return self._final(task)
        return self._downstream(task.total)

    def _cases(self, unit: CaseRange) -> Sequence[Case]:
        return self._plan.cases[unit.start : unit.stop]

    def _measures(self, with_perplexity: bool) -> Measures:
        own = self._plan.measures
        if with_perplexity:
            return own
        return Measures(own.answer_tokens, own.continuation_tokens, own.continuations, "", own.seed)

    def _edit(self, unit: CaseRange, total: Patch | None) -> Result:
        lm, label, cases = self._lm, unit.label, self._cases(unit)
        method = self._methods[label]
        if label not in self._ready:  # from the unedited model, also when a sequence goes on
            method.prepare(lm)
            self._ready.add(label)
        if self._plan.protocol == "single":
            alone = [self._make(method, [case]) for case in cases]
            return Result(self._measured("post", unit, alone))
        made = self._make(method, cases, total)
        both = [p for p in (total, made.patch) if p is not None]
        after = merge(both, compact=True) if both and self._plan.sequential else made.patch
        return Result(self._measured("post", unit, [made], after), after)

    def _make(self, method: Method, cases: Sequence[Case], on: Patch | None = None) -> _Made:
        """One patch for these cases, on a model that carries ``on``."""
        edits = [edit for case in cases for edit in case.edits]
        error, patch = "", None
        with ExitStack() as carried:
            if on is not None:
                carried.enter_context(applied(self._lm.model, on))
            began = time.perf_counter()
            with peak_memory(self._lm.device) as peak:
                try:
                    patch = make_patch(method, self._lm, edits)
                except DivergedError as diverged:  # an edit that fails is a result, too
                    error = str(diverged)
            spent = time.perf_counter() - began
        return _Made(patch, spent / len(cases), peak, error)

    def _final(self, task: Task) -> Result:
        made = _Made(task.total, 0.0, None, "")
        return Result(self._measured("final", task.unit, [made], task.total))

    def _measured(
        self, stage: str, unit: CaseRange, made: Sequence[_Made], carried: Patch | None = None
    ) -> list[Record]:
        """Records of a unit: with one patch per case, or one for all and what is then carried."""
        lm, plan, cases = self._lm, self._plan, self._cases(unit)
        # A sequence asks for free text once, at its end: a hundred times would take hours.
        measures = Measures() if plan.sequential and stage == "post" else plan.measures
        began = time.perf_counter()
        if plan.protocol == "single":
            seen = observe_each(lm, cases, [own.patch for own in made], measures)
        else:
            with ExitStack() as stack:
                if carried is not None:
                    stack.enter_context(applied(lm.model, carried))
                seen = [observe(lm, cases, measures)] * len(cases)
            made = [*made] * len(cases)
        asked = (time.perf_counter() - began) / len(cases)
        described: dict[int, Record] = {}
        for own in made:
            if id(own) not in described:
                described[id(own)] = self._described(stage, unit, own, asked, len(cases))
        return [
            {
                "stage": stage,
                "unit": unit.number,
                "of": len(cases),
                "position": unit.start + i,
                "case_id": case.id,
                "requested_rewrite": request_of(case),
                **described[id(own)],
                **self._halves(case, now),
                "texts": texts_of(case, now, measures),
            }
            for i, (case, own, now) in enumerate(zip(cases, made, seen, strict=True))
        ]

    def _halves(self, case: Case, now: Replies) -> Record:
        before = self._before
        assert before is not None
        return {
            "pre": summarise(case, before, before, self._scorers),
            "post": summarise(case, before, now, self._scorers),
        }

    def _described(self, stage: str, unit: CaseRange, own: _Made, asked: float, n: int) -> Record:
        """What the records of one patch share."""
        lm, plan, patch = self._lm, self._plan, own.patch
        seconds = {"edit": own.spent, "evaluate": asked}
        if patch is not None and stage == "post":
            together = 1 if plan.protocol == "single" else n
            seconds |= {phase: s / together for phase, s in patch.info.seconds.items()}
        settings = plan.methods[unit.label].resolved(lm.n_layers).model_dump(mode="json")
        described: Record = {
            "method": unit.label,
            "hparams": dict(patch.info.hyperparams) if patch is not None else settings,
            "fingerprint": fingerprint(lm.model).digest,
            "versions": versions(),
            "seed": plan.seed,
            "seconds": seconds,
            "peak_memory_mb": own.peak.total_mb if own.peak else None,
            "extra_memory_mb": own.peak.extra_mb if own.peak else None,
            "change": sizes(lm, patch) if patch is not None else {},
        }
        return {**described, "error": own.error} if own.error else described

    def _downstream(self, total: Patch | None) -> Result:
        from easyeditor.evaluate.downstream import downstream

        with ExitStack() as stack:
            if total is not None:
                stack.enter_context(applied(self._lm.model, total))
            scores = downstream(
                self._lm,
                self._plan.downstream,
                limit=self._plan.downstream_limit,
                include_path=self._plan.downstream_path,
                seed=self._plan.seed,
            )
        return Result([scores])


def check(lm: LM, plan: BenchmarkConfig) -> None:
    """Whatever can be known to be wrong before any work starts.

    Raises:
        EditError: a case that a method cannot carry out.
        HyperParamsError: settings that do not fit this model.
        MissingExtraError: a measure needs a package that is not installed.
    """
    for label, settings in plan.methods.items():
        method = METHODS.get(settings.alg_name)(settings)
        lm.check_claims(settings.family_claims)
        for unit in plan.units(label):
            own = plan.cases[unit.start : unit.stop]
            for cases in [[case] for case in own] if plan.protocol == "single" else [own]:
                check_request(method, cases)
    scorers(plan.measures, plan.cases)
