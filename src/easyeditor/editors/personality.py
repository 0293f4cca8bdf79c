"""``PerEditor``: edit opinions in a trait of personality, and measure them."""

from __future__ import annotations

from typing import Any, cast

from easyeditor.editors.base import BaseEditor
from easyeditor.editors.options import RequestOptions, classic_options, how_to_edit
from easyeditor.editors.requests import list_of_cases
from easyeditor.editors.result import EditResult
from easyeditor.errors import EditError
from easyeditor.evaluate.behaviour import BehaviourJudge
from easyeditor.evaluate.generation_metrics import natural_answer, ngram_entropy
from easyeditor.evaluate.query import Measures

TOKENS = 60
"""Of a free answer, as published; its first line is read."""
SHOWN = "opinion/trait"


class PerEditor(BaseEditor):
    """A model with any method, edited on PersonalityEdit (arXiv 2310.02168).

    Every metric dict has, beside the usual keys, ``es``, ``dd``, ``pre_text``, ``edit_text``,
    ``ngram_pre_text``, ``ngram_edit_text``, ``coherent`` and ``target_per``; with a judge also
    ``acc`` and ``tpei``. What they are: :mod:`easyeditor.evaluate.scorers.opinions`.
    """

    def edit_dataset(
        self,
        ds: Any,
        keep_original_weight: bool = True,
        verbose: bool = True,
        *,
        judge: BehaviourJudge | None = None,
        **options: Any,
    ) -> EditResult:
        """Edit and measure each record alone (``keep_original_weight=False``: in sequence).

        Args:
            ds: a ``PersonalityDataset``, or ConvSent's records.
            keep_original_weight: True, and the default: the caller's model stays as it is.
            verbose: log each edit's scores.
            judge: says whether an answer shows the trait (:mod:`easyeditor.evaluate.behaviour`).
            options: as of :meth:`BaseEditor.edit_dataset`.

        Raises:
            EditError: cases without opinions; nothing was changed.
            JudgeError: the judge is not there or gives no verdicts.
        """
        named, keep = classic_options(cast(RequestOptions, options), keep_original_weight)
        cases = list_of_cases(ds)
        for case in cases:
            if not any(probe.kind == SHOWN for probe in case.probes):
                raise EditError(
                    f"The case {case.id!r} has no opinions to score. Give a PersonalityDataset, or "
                    "edit other cases with BaseEditor."
                )
        load = getattr(judge, "load", None)
        if load is not None:  # before any work: a classifier that is not there
            load()
        if named.get("measures") is None:
            named["measures"] = Measures(answer_tokens=TOKENS, judge=judge)
        result = self.edit_cases(cases, **how_to_edit(keep, verbose, named))
        for case, metric in zip(cases, result.metrics, strict=True):
            after = metric.get("post") or metric["final"]
            shown = next(probe for probe in case.probes if probe.kind == SHOWN)
            chat = self.lm.text.chat_template
            before_text, after_text = (
                natural_answer(half.get("answers", {}).get(SHOWN, ""), chat)
                for half in (metric["pre"], after)
            )
            opinion = after["opinion"]
            metric |= {
                "es": opinion["ES"],
                "dd": opinion.get("DD"),
                "pre_text": before_text,
                "edit_text": after_text,
                "ngram_pre_text": ngram_entropy(before_text),
                "ngram_edit_text": ngram_entropy(after_text),
                "coherent": bool(opinion.get("coherent")),
                "target_per": shown.answers[0],
            }
            for classic, name in (("acc", "trait_acc"), ("tpei", "tpei")):
                if name in opinion:
                    metric[classic] = opinion[name]
        return result
