"""Runs the tasks of a benchmark on one model: baseline replies, edits, metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

from easyeditor.bench.config import BenchmarkConfig, CaseRange
from easyeditor.bench.observations import to_json
from easyeditor.editors.apply_method import check_request
from easyeditor.editors.metric_recorder import CaseSummary, request_of
from easyeditor.editors.session import Attempt, EditSession
from easyeditor.edits import Case
from easyeditor.errors import DownstreamError
from easyeditor.evaluate.query import (
    Measures,
    Replies,
    observe,
    observe_each,
    texts_of,
)
from easyeditor.lm.fingerprint import fingerprint
from easyeditor.lm.model import LM
from easyeditor.methods import METHODS
from easyeditor.methods.base import State
from easyeditor.patches.norms import change_norms
from easyeditor.patches.patch import Patch, merge, versions
from easyeditor.patches.stack import applied

log = logging.getLogger(__name__)
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """One task of a worker.

    Attributes:
        kind: which of its tasks.
        unit: the cases.
        total: the patch of a sequence so far.
        state: the method's state after that; None stands for the initial one.
    """

    kind: Literal["before", "edit", "final", "downstream"]
    unit: CaseRange
    total: Patch | None = None
    state: State | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a task.

    Attributes:
        records: one per case.
        total: the edits of this task and, in a sequence, all before.
        state: the method's state after them.
    """

    records: list[Record]
    total: Patch | None = None
    state: State | None = None


class Worker:
    """A model and the methods of a run; between two tasks the model carries no edit."""

    def __init__(self, lm: LM, plan: BenchmarkConfig) -> None:
        self._lm, self._plan = lm, plan
        self._sessions = {
            label: EditSession(lm, METHODS.get(settings.alg_name)(settings))
            for label, settings in plan.methods.items()
        }
        self._summary = CaseSummary(plan.cases, plan.measures, None)

    def set_baseline(self, before: Replies) -> None:
        """Take the unedited model's replies; needed before anything is edited."""
        self._summary.before = before

    def run_task(self, task: Task) -> Result:
        """Run one task."""
        if task.kind == "before":
            seen = observe(self._lm, self._cases(task.unit), self._measures(task.unit.number == 0))
            return Result([{"chunk": task.unit.number, **to_json(seen)}])
        if task.kind == "edit":
            return self._edit(task)
        if task.kind == "final":
            return self._final(task)
        return self._downstream(task.total)

    def _cases(self, unit: CaseRange) -> Sequence[Case]:
        return self._plan.cases[unit.start : unit.stop]

    def _measures(self, with_perplexity: bool) -> Measures:
        measures = self._plan.measures
        return measures if with_perplexity else replace(measures, heldout="")

    def _edit(self, task: Task) -> Result:
        unit, cases = task.unit, self._cases(task.unit)
        session = self._sessions[unit.label]
        session.resume(task.state)
        groups = [[case] for case in cases] if self._plan.protocol == "single" else [cases]
        attempts = [
            session.attempt(
                [edit for case in group for edit in case.edits],
                on=task.total,
                memory=True,
                failures=True,
            )
            for group in groups
        ]
        if self._plan.protocol == "single":
            return Result(self._measured("post", unit, attempts))
        patch, state = attempts[0].patch, attempts[0].state
        both = [p for p in (task.total, patch) if p is not None]
        after = merge(both, compact=True) if both and self._plan.sequential else patch
        return Result(self._measured("post", unit, attempts, after), after, state)

    def _final(self, task: Task) -> Result:
        attempt = Attempt(task.total, task.state)
        return Result(self._measured("final", task.unit, [attempt], task.total))

    def _measured(
        self,
        stage: str,
        unit: CaseRange,
        attempts: Sequence[Attempt],
        carried: Patch | None = None,
    ) -> list[Record]:
        """Records of a unit, with one attempt per case or one for all.

        Args:
            stage: ``"post"`` or ``"final"``.
            unit: the cases.
            attempts: of the unit.
            carried: the patch that the model carries while it is measured, if one for all.
        """
        lm, plan, cases = self._lm, self._plan, self._cases(unit)
        session = self._sessions[unit.label]
        # A sequence asks for free text once, at its end: a hundred times would take hours.
        measures = Measures() if plan.sequential and stage == "post" else plan.measures
        began = time.perf_counter()
        if plan.protocol == "single":
            replies = observe_each(lm, cases, [attempt.patch for attempt in attempts], measures)
        else:
            with session.carrying(carried):
                replies = [observe(lm, cases, measures)] * len(cases)
            attempts = [*attempts] * len(cases)
        evaluation_seconds = (time.perf_counter() - began) / len(cases)
        shared: dict[int, Record] = {}
        for attempt in attempts:
            if id(attempt) not in shared:
                shared[id(attempt)] = self._shared(
                    stage, unit, attempt, evaluation_seconds, len(cases)
                )
        return [
            {
                "stage": stage,
                "unit": unit.number,
                "of": len(cases),
                "position": unit.start + i,
                "case_id": case.id,
                "requested_rewrite": request_of(case),
                **shared[id(attempt)],
                "pre": self._summary.of(case),
                "post": self._summary.of(case, after),
                "texts": texts_of(case, after, measures),
            }
            for i, (case, attempt, after) in enumerate(zip(cases, attempts, replies, strict=True))
        ]

    def _shared(
        self, stage: str, unit: CaseRange, attempt: Attempt, evaluation_seconds: float, n: int
    ) -> Record:
        """The common fields of the records of one patch, of ``n`` cases."""
        lm, plan, patch = self._lm, self._plan, attempt.patch
        per_patch = 1 if plan.protocol == "single" else n
        seconds = {"edit": attempt.seconds / per_patch, "evaluate": evaluation_seconds}
        if patch is not None and stage == "post":
            seconds |= {phase: s / per_patch for phase, s in patch.info.seconds.items()}
        settings = plan.methods[unit.label].resolved(lm.n_layers).model_dump(mode="json")
        record: Record = {
            "method": unit.label,
            "hparams": dict(patch.info.hyperparams) if patch is not None else settings,
            "fingerprint": fingerprint(lm.model).digest,
            "versions": versions(),
            "seed": plan.seed,
            "seconds": seconds,
            "peak_memory_mb": attempt.peak.total_mb if attempt.peak else None,
            "extra_memory_mb": attempt.peak.extra_mb if attempt.peak else None,
            "change": change_norms(lm, patch) if patch is not None else {},
        }
        return {**record, "error": f"failed: {attempt.error}"} if attempt.error else record

    def _downstream(self, total: Patch | None) -> Result:
        from easyeditor.evaluate.downstream import downstream

        scores: Record = {}
        with nullcontext() if total is None else applied(self._lm.model, total):
            try:
                scores = downstream(
                    self._lm,
                    self._plan.downstream,
                    limit=self._plan.downstream_limit,
                    include_path=self._plan.downstream_path,
                    seed=self._plan.seed,
                    items=True,
                )
            except DownstreamError as error:  # of one method, e.g. edits that act on the text
                if total is None:
                    raise
                log.warning("%s has no downstream scores: %s", total.info.method, error)
        return Result([scores])


def check(lm: LM, plan: BenchmarkConfig) -> None:
    """Check cases and settings before any work starts.

    Raises:
        EditError: a case that a method cannot carry out.
        HyperParamsError: settings that do not fit this model.
        MissingExtraError: a measure needs a package that is not installed.
        DownstreamError: a downstream task nobody knows.
    """
    if plan.downstream:
        from easyeditor.evaluate.downstream import check_tasks

        check_tasks(plan.downstream, limit=plan.downstream_limit, include_path=plan.downstream_path)
    for label, settings in plan.methods.items():
        method = METHODS.get(settings.alg_name)(settings)
        lm.check_claims(settings.family_claims)
        for unit in plan.units(label):
            chosen = plan.cases[unit.start : unit.stop]
            for cases in [[case] for case in chosen] if plan.protocol == "single" else [chosen]:
                check_request(method, cases)
    CaseSummary(plan.cases, plan.measures, None)
