"""The classic metric dicts, filled while a request is carried out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from easyeditor.edits import Case
from easyeditor.evaluate.metrics import summarise
from easyeditor.evaluate.query import Measures, observe
from easyeditor.evaluate.scorers import scorers
from easyeditor.lm.model import LM

log = logging.getLogger(__name__)


class MetricDict(dict[str, Any]):
    """A metric dict; the old spelling ``portablility`` reads ``portability``."""

    def __missing__(self, key: str) -> Any:
        if key == "portablility":
            return self["portability"]
        raise KeyError(key)


class MetricRecorder:
    """One :class:`MetricDict` per case; the unedited model is asked once, on construction.

    Attributes:
        metrics: in the order of the cases.
    """

    def __init__(self, lm: LM, cases: Sequence[Case], measures: Measures) -> None:
        self._measures = measures
        self._scorers = scorers(measures, cases)
        self._before = observe(lm, cases, measures, self._scorers)
        self._number = {id(case): i for i, case in enumerate(cases)}
        self.metrics = [
            MetricDict(
                case_id=case.id, requested_rewrite=request_of(case), time=0.0, pre=self._half(case)
            )
            for case in cases
        ]

    def _half(self, case: Case, now: Any = None) -> MetricDict:
        seen = self._before if now is None else now
        return MetricDict(summarise(case, self._before, seen, self._scorers))

    def fill(self, key: str, lm: LM, cases: Sequence[Case]) -> None:
        """Ask ``lm`` about ``cases`` and write what it says under ``key``."""
        now = observe(lm, cases, self._measures, self._scorers)
        for case in cases:
            self[case][key] = self._half(case, now)

    def __getitem__(self, case: Case) -> MetricDict:
        return self.metrics[self._number[id(case)]]


def request_of(case: Case) -> dict[str, Any]:
    """What was asked, as plain data."""
    edit = case.edit
    asked: dict[str, Any] = {
        "prompt": edit.prompt.to_json(),
        "target_new": edit.target,
        "ground_truth": edit.ground_truth,
        "subject": edit.subject,
        "probes": [
            {"kind": p.kind, "prompt": p.prompt.to_json(), "answers": list(p.answers)}
            for p in case.probes
        ],
    }
    if case.also:
        asked["also"] = [
            {"prompt": own.prompt.to_json(), "target_new": own.target} for own in case.also
        ]
    return asked
