"""What the editors of behaviour share: their measures, and arguments they do not take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from easyeditor.errors import EditError
from easyeditor.evaluate.behaviour import BehaviourJudge
from easyeditor.evaluate.query import Measures


def measures_with(
    given: Measures | None, judge: BehaviourJudge | None, answer_tokens: int
) -> Measures:
    """The measures of a call, with its judge; by default with free answers of ``answer_tokens``.

    A judge that has a ``load`` is loaded here, before any work.

    Raises:
        EditError: two judges.
        JudgeError: the judge is not there.
    """
    if given is not None and judge is not None and given.judge not in (None, judge):
        raise EditError(
            "judge= and measures.judge are two judges; give one of them, e.g. "
            "measures=Measures(answer_tokens=…, judge=judge)."
        )
    measures = Measures(answer_tokens=answer_tokens) if given is None else given
    judge = measures.judge if judge is None else judge
    load = getattr(judge, "load", None)
    if load is not None:
        load()
    return replace(measures, judge=judge)


def refuse_requests(options: Mapping[str, Any], use: str) -> None:
    """Refuse ``requests``, whose records have no place for what these editors measure.

    Raises:
        EditError: they were given; names what to use.
    """
    if options.get("requests") is not None:
        raise EditError(f"requests is not read here; give the lists, or use {use}.")
