"""``ConceptEditor``: edit what a concept means, and ask whether its instances follow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from typing_extensions import Unpack

from easyeditor.data.concepts import instance_probes
from easyeditor.editors.base import BaseEditor
from easyeditor.editors.behaviour import measures_with, refuse_requests
from easyeditor.editors.metric_recorder import CaseSummary, MetricDict, request_of
from easyeditor.editors.options import (
    EditOptions,
    RequestOptions,
    classic_options,
    how_to_edit,
    refuse_unknown,
)
from easyeditor.editors.requests import Nested, Texts, listed_texts, make_cases
from easyeditor.editors.result import EditResult
from easyeditor.edits import Case
from easyeditor.errors import EditError
from easyeditor.evaluate.behaviour import BehaviourJudge
from easyeditor.evaluate.query import Measures, answers_of, observe, observe_behind
from easyeditor.hyperparams import HyperParams
from easyeditor.lm.loading import load
from easyeditor.lm.model import LM
from easyeditor.model_spec import ModelSpec

TOKENS = 40
"""Of a definition that the model writes freely, as published."""
PROMPT_ONLY = "prompt_only"


class ConceptEditor(BaseEditor):
    """A model with a method, edited on concepts (ConceptEdit, arXiv 2403.06259).

    Metric dicts have the usual keys, ``post["instance"]`` with ``instance_change`` (1 the instance
    is still one, 0 not, NaN an answer that is neither yes nor no; ``pre`` has the same of the
    unedited model) and, with ``concept_consistency=True``, ``post["gen_concept_text"]``.
    ``prompt_only`` has all scores of the *unedited* model with the new definition in front of every
    prompt, which an edit has to beat.
    """

    @classmethod
    def from_hparams(  # type: ignore[override]  # None: the prompt alone
        cls,
        hparams: HyperParams | None,
        prompt_hparams: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> ConceptEditor | PromptedConcepts:
        """Load the model the hyper-parameters name.

        Args:
            hparams: a method's settings; None: no edit, the definition in front of every prompt.
            prompt_hparams: for that, ``{"model_name": …, "device": …}``.
            options: as of :meth:`BaseEditor.from_hparams`.

        Raises:
            EditError: neither settings nor a model's name.
            ModelLoadError: the model cannot be found or read.
        """
        if hparams is not None:
            return cast(ConceptEditor, super().from_hparams(hparams, **options))
        if not prompt_hparams or "model_name" not in prompt_hparams:
            raise EditError(
                "Without hyper-parameters the definition stands in front of every prompt; name the "
                "model: ConceptEditor.from_hparams(None, {'model_name': …})."
            )
        device = prompt_hparams.get("device")
        return PromptedConcepts(load(ModelSpec(prompt_hparams["model_name"], device=device)))

    def edit(
        self,
        prompts: Texts | None = None,
        target_new: Texts | None = None,
        ground_truth: Texts | None = None,
        rephrase_prompts: Nested | None = None,
        locality_inputs: Mapping[str, Any] | None = None,
        instance_inputs: Mapping[str, Any] | None = None,
        keep_original_weight: bool = False,
        verbose: bool = True,
        *,
        concept_consistency: bool = False,
        judge: BehaviourJudge | None = None,
        **options: Unpack[RequestOptions],
    ) -> EditResult:
        """Give each concept its new definition, and measure.

        Args:
            prompts: what the definitions continue.
            target_new: the new definitions.
            ground_truth: the old ones, where known.
            rephrase_prompts: other wordings; an entry may be a list.
            locality_inputs: what must not change, as of :meth:`BaseEditor.edit`.
            instance_inputs: ``{"instance": {"prompt": [...]}}``: "Whether X belongs to category Y?"
                per edit; an entry may be a list.
            keep_original_weight: as of :meth:`BaseEditor.edit`.
            verbose: log each edit's scores.
            concept_consistency: also let the model define the concept freely.
            judge: says whether that fits the definition, −1, 0 or 1; asks for it, too.
            options: as of :meth:`BaseEditor.edit`; ``subject`` names the concepts.

        Raises:
            EditError: what was asked cannot be carried out; nothing was changed.
        """
        cases, how, measures = _request(
            prompts,
            target_new,
            ground_truth,
            rephrase_prompts,
            locality_inputs,
            instance_inputs,
            keep_original_weight,
            verbose,
            concept_consistency=concept_consistency,
            judge=judge,
            **options,
        )
        alone = prompted_metrics(self.lm, cases, measures)
        result = self.edit_cases(cases, **how)
        for metric, prompted in zip(result.metrics, alone, strict=True):
            after = metric.get("post") or metric["final"]
            metric[PROMPT_ONLY] = prompted["post"]
            for half in (metric["pre"], after, metric[PROMPT_ONLY]):
                _classic(half, concept_consistency)
        return result


class PromptedConcepts:
    """The definition in front of every prompt, in the place of an edit.

    Attributes:
        lm: the model, which is only asked.
    """

    def __init__(self, lm: LM) -> None:
        self.lm = lm

    def edit(
        self, *texts: Any, concept_consistency: bool = False, **request: Any
    ) -> tuple[list[dict[str, Any]], Any, None]:
        """The metrics of :meth:`ConceptEditor.edit`, the model, and None in the place of a patch.

        It takes what that one takes.

        Raises:
            EditError: what was asked cannot be carried out.
        """
        cases, _, measures = _request(*texts, concept_consistency=concept_consistency, **request)
        metrics = prompted_metrics(self.lm, cases, measures)
        for metric in metrics:
            for half in (metric["pre"], metric["post"]):
                _classic(half, concept_consistency)
        return metrics, self.lm.model, None


def prompted_metrics(lm: LM, cases: Sequence[Case], measures: Measures) -> list[dict[str, Any]]:
    """Metric dicts whose ``post`` is of the model with the new definition before every prompt."""
    summary = CaseSummary(cases, measures, None)
    summary.before = observe(lm, cases, measures, summary.scorers)
    metrics = []
    for case in cases:
        name = case.edit.subject or case.edit.prompt.text.strip()
        front = f"Definition of {name}: {case.edit.target.strip()}\n"
        after = observe_behind(lm, front, case, measures, summary.scorers)
        halves = {"pre": summary.of(case), "post": summary.of(case, after)}
        for half, replies in (("pre", summary.before), ("post", after)):
            answers = answers_of(case, replies, measures)
            if answers:
                halves[half]["answers"] = answers
        metrics.append(
            {
                "case_id": case.id,
                "requested_rewrite": request_of(case),
                "time": 0.0,
                **{half: MetricDict(values) for half, values in halves.items()},
            }
        )
    return metrics


def _request(
    prompts: Texts | None = None,
    target_new: Texts | None = None,
    ground_truth: Texts | None = None,
    rephrase_prompts: Nested | None = None,
    locality_inputs: Mapping[str, Any] | None = None,
    instance_inputs: Mapping[str, Any] | None = None,
    keep_original_weight: bool = False,
    verbose: bool = True,
    *,
    concept_consistency: bool = False,
    judge: BehaviourJudge | None = None,
    **options: Unpack[RequestOptions],
) -> tuple[list[Case], EditOptions, Measures]:
    """The cases with their instances, how they are edited, and the measures."""
    missing = [n for n, v in (("prompts", prompts), ("target_new", target_new)) if v is None]
    if missing:
        raise EditError(f"There is nothing to edit: give {' and '.join(missing)}.")
    named, keep = classic_options(options, keep_original_weight)
    refuse_requests(named, "BaseEditor.edit_dataset(ConceptDataset(path))")
    subject, rejected = named.pop("subject", None), named.pop("target_neg", None)
    named.pop("requests", None)
    refuse_unknown(named, EditOptions)
    named.setdefault("force", True)
    plain = make_cases(
        cast(Texts, prompts),
        cast(Texts, target_new),
        ground_truth,
        subject=subject,
        rephrase_prompts=rephrase_prompts,
        locality_inputs=locality_inputs,
        rejected=rejected,
    )
    cases = [_with_instances(case, i, len(plain), instance_inputs) for i, case in enumerate(plain)]
    asks = concept_consistency or judge is not None
    measures = measures_with(named.get("measures"), judge, TOKENS if asks else 0)
    if concept_consistency and not measures.answer_tokens:
        measures = replace(measures, answer_tokens=TOKENS)
    named["measures"] = measures
    return cases, how_to_edit(keep, verbose, named), measures


def _with_instances(case: Case, index: int, n: int, given: Mapping[str, Any] | None) -> Case:
    probes = list(case.probes)
    if given is not None and not isinstance(given, Mapping):
        raise EditError(
            "instance_inputs must map a name to {'prompt': [...]}, one entry per edit, not "
            f"{type(given).__name__}."
        )
    for name, block in (given or {}).items():
        questions = block.get("prompt") if isinstance(block, Mapping) else None
        if questions is None:
            raise EditError(f"instance_inputs[{name!r}] must hold 'prompt', one entry per edit.")
        where = f"instance_inputs[{name!r}]['prompt']"
        entry = listed_texts(where, questions, n)[index]
        some = [] if entry is None else listed_texts(where, entry)
        concept = case.edit.subject or case.edit.prompt.text
        probes += instance_probes(case.edit, some, concept, name)
    return Case(case.id, case.edit, probes)


def _classic(half: dict[str, Any], consistency: bool) -> None:
    """Add the classic keys."""
    instance = half.get("instance")
    if instance is not None:
        share = instance.get("yes")
        instance["instance_change"] = math.nan if share is None else share
    if consistency and "answers" in half:
        half["gen_concept_text"] = half["answers"].get("rewrite", "")
