"""The classic metric dicts, filled while a request is carried out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from easyeditor.editors.advice import (
    already_answered,
    notes_before,
    other_form,
    overwritten,
    repeated_subjects,
)
from easyeditor.edits import Case
from easyeditor.evaluate.degeneration import (
    answer_holds,
    answer_in_all_forms,
    answered,
    examine,
)
from easyeditor.evaluate.metrics import summarise
from easyeditor.evaluate.query import Measures, Replies, answers_of, observe
from easyeditor.evaluate.scorers import scorers
from easyeditor.lm.model import LM

log = logging.getLogger(__name__)
UNCHANGED = "The model gives this answer already; nothing was changed. force=True edits it anyway."


class MetricDict(dict[str, Any]):
    """A metric dict; the old spelling ``portablility`` reads ``portability``."""

    def __missing__(self, key: str) -> Any:
        if key == "portablility":
            return self["portability"]
        raise KeyError(key)


class CaseSummary:
    """The metrics of cases, from the replies before an edit and after.

    Args:
        cases: all that will be summarised; consistency weighs words by their texts.
        measures: what was asked.
        before: the unedited model's replies.

    Raises:
        MissingExtraError: a measure needs a package that is not installed.
    """

    def __init__(self, cases: Sequence[Case], measures: Measures, before: Replies | None) -> None:
        self.scorers = scorers(measures, cases)
        self.before = before

    def of(self, case: Case, after: Replies | None = None) -> dict[str, Any]:
        """The metrics of one case; of the unedited model without ``after``."""
        assert self.before is not None, "the unedited model was not asked yet"
        after = self.before if after is None else after
        return summarise(case, self.before, after, self.scorers)


class MetricRecorder:
    """One :class:`MetricDict` per case; the unedited model is asked once, on construction.

    Beside the scores, ``free_answer`` says what the model writes
    (:mod:`easyeditor.evaluate.degeneration`), of a model with a chat template also in both
    ``forms`` of the prompt, and ``notes``, where there are any, what to know of
    the request (:mod:`easyeditor.editors.advice`).

    Attributes:
        cases: what was asked.
        metrics: in the order of the cases.

    Args:
        together: the cases are edited in one batch, so that none comes after another.
        free_answers: whether ``free_answer`` is asked; else the unedited model is asked only
            where the target may be its answer already.
    """

    def __init__(
        self,
        lm: LM,
        cases: Sequence[Case],
        measures: Measures,
        *,
        together: bool = False,
        free_answers: bool = True,
    ) -> None:
        self.cases, self._measures = cases, measures
        self._summary = CaseSummary(cases, measures, None)  # fails before any model is asked
        self._summary.before = observe(lm, cases, measures, self._summary.scorers)
        self._number = {id(case): i for i, case in enumerate(cases)}
        self.metrics = [
            MetricDict(
                case_id=case.id,
                requested_rewrite=request_of(case),
                time=0.0,
                pre=MetricDict(self._summary.of(case)),
            )
            for case in cases
        ]
        for case in cases:
            self._write_answers("pre", case, self._summary.before)
        answers = answer_in_all_forms(lm, cases, behind_target=True) if free_answers else []
        self._free = dict(zip(map(id, cases), answers, strict=free_answers))
        for case, free in zip(cases, answers, strict=free_answers):
            self[case]["pre"]["free_answer"] = {
                "text": free.answer.text,
                "holds": float(answer_holds(free.answer.text, case.edit.target)),
                **({"forms": free.forms} if free.forms else {}),
            }
        pre = [metric["pre"] for metric in self.metrics]
        known = [case for case in cases if answered(self[case]["pre"])]
        if not free_answers:  # the tokens alone do not show where an answer ends
            known = already_answered(lm, known)
            says = {id(case) for case in known}
            pre = [
                {**half, "free_answer": {"holds": float(id(case) in says)}}
                for case, half in zip(cases, pre, strict=True)
            ]
        self._known = [case for case in known if not case.also]
        self._notes = notes_before(lm, cases, pre)
        self._later = {} if together else repeated_subjects(cases)
        self._write_notes(cases)

    def _write_answers(self, key: str, case: Case, replies: Replies) -> None:
        """The free answers to probes of behaviour, where there are some."""
        answers = answers_of(case, replies, self._measures)
        if answers:
            self[case][key]["answers"] = answers

    def _write_notes(self, cases: Sequence[Case]) -> None:
        for case in cases:
            i, later = self._number[id(case)], self._later
            metric, notes = self.metrics[i], list(self._notes[i])
            if i in later:
                half = metric.get("final") or metric.get("post") or metric["pre"]
                taken = "post" not in metric or answered(half)
                notes.append(overwritten(later[i], taken))
            if "post" in metric:
                half = metric.get("final") or metric["post"]
                target = case.edit.target
                notes += filter(None, [other_form(metric["pre"], half, target)])
            if notes:
                metric["notes"] = notes

    def fill(self, key: str, lm: LM, cases: Sequence[Case]) -> None:
        """Ask ``lm`` about ``cases`` and write the metrics of its replies under ``key``."""
        after = observe(lm, cases, self._measures, self._summary.scorers)
        for case in cases:
            self[case][key] = MetricDict(self._summary.of(case, after))
            self._write_answers(key, case, after)
        answers = answer_in_all_forms(lm, cases) if self._free else []
        for case, free in zip(cases, answers, strict=bool(self._free)):
            before = self._free[id(case)]
            result = examine(lm, case.edit, before.answer, free.answer, before.behind)
            forms = {"forms": free.forms} if free.forms else {}
            self[case][key]["free_answer"] = {**result, **forms}
        self._write_notes(cases)

    def leave_unchanged(self) -> list[Case]:
        """The cases with one edit whose target the unedited model gives already.

        ``unchanged`` of their metrics says why no edit is made.
        """
        for case in self._known:
            self[case]["unchanged"] = UNCHANGED
        return list(self._known)

    def __getitem__(self, case: Case) -> MetricDict:
        return self.metrics[self._number[id(case)]]


def request_of(case: Case) -> dict[str, Any]:
    """What was asked, as plain data."""
    edit = case.edit
    request: dict[str, Any] = {
        "prompt": edit.prompt.to_json(),
        "target_new": edit.target,
        "ground_truth": edit.ground_truth,
        "subject": edit.subject,
        "probes": [
            {"kind": p.kind, "prompt": p.prompt.to_json(), "answers": list(p.answers)}
            for p in case.probes
        ],
    }
    if edit.expansions:
        request["expansions"] = [
            {"prompt": other.prompt.to_json(), "target_new": other.target}
            for other in edit.expansions
        ]
    if case.also:
        request["also"] = [
            {"prompt": other.prompt.to_json(), "target_new": other.target} for other in case.also
        ]
    return request
