"""``PerEditor``: edit opinions in a trait of personality, and measure them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from easyeditor.data.personality import SHOWN, WANTED
from easyeditor.editors.base import BaseEditor
from easyeditor.editors.behaviour import measures_with
from easyeditor.editors.options import RequestOptions, classic_options, how_to_edit
from easyeditor.editors.requests import list_of_cases
from easyeditor.editors.result import EditResult
from easyeditor.errors import EditError
from easyeditor.evaluate.behaviour import BehaviourJudge
from easyeditor.evaluate.generation_metrics import natural_answer, ngram_entropy

TOKENS = 60
"""Of a free answer, as published; its first line is read."""


class PerEditor(BaseEditor):
    """A model with any method, edited on PersonalityEdit (arXiv 2310.02168).

    Every metric dict has, beside the usual keys, ``es``, ``dd``, ``pre_text``, ``edit_text``,
    ``ngram_pre_text``, ``ngram_edit_text``, ``coherent`` and ``target_per``; with a judge also
    ``acc`` and ``tpei``. What they are: :mod:`easyeditor.evaluate.scorers.opinions`. What cannot be
    measured is None: ``es`` of a record with answers of one kind only, ``dd`` of a file with one
    record, the texts, ``ngram_…`` and ``coherent`` with ``measures`` that ask for no free answers.
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
            if not {SHOWN, WANTED} <= {probe.kind for probe in case.probes}:
                raise EditError(
                    f"The case {case.id!r} has no opinions to score. Give a PersonalityDataset, or "
                    "edit other cases with BaseEditor."
                )
        named["measures"] = measures_with(named.get("measures"), judge, TOKENS)
        result = self.edit_cases(cases, **how_to_edit(keep, verbose, named))
        for case, metric in zip(cases, result.metrics, strict=True):
            after = metric.get("post") or metric["final"]
            shown = next(probe for probe in case.probes if probe.kind == SHOWN)
            before_text, after_text = (self._free_answer(half) for half in (metric["pre"], after))
            opinion = after.get("opinion", {})
            coherent = opinion.get("coherent")
            metric |= {
                "es": opinion.get("ES"),
                "dd": opinion.get("DD"),
                "pre_text": before_text,
                "edit_text": after_text,
                "ngram_pre_text": None if before_text is None else ngram_entropy(before_text),
                "ngram_edit_text": None if after_text is None else ngram_entropy(after_text),
                "coherent": None if coherent is None else bool(coherent),
                "target_per": shown.answers[0],
            }
            for classic, name in (("acc", "trait_acc"), ("tpei", "tpei")):
                if name in opinion:
                    metric[classic] = opinion[name]
        return result

    def _free_answer(self, half: Mapping[str, Any]) -> str | None:
        """The answer that shall show the trait; None where it was not asked for."""
        text = half.get("answers", {}).get(SHOWN)
        return None if text is None else natural_answer(text, self.lm.text.chat_template)
